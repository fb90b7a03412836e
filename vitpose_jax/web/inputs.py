"""Inputs of the page that take what a visitor sends, as it is.

gradio's own would decode images themselves, download what a visitor names by its URL, and open what he names in the
server's working and temporary folders. Their methods are replaced one by one: a class of one's own, which gradio would
register, makes it write a file beside this one.
"""

from pathlib import Path
from typing import Any

from vitpose_jax.bundled import DEMO_IMAGES
from vitpose_jax.web import WEB_EXTRA

try:
    import gradio as gr
    from gradio.utils import get_upload_folder, is_in_or_equal
except ImportError:
    raise ImportError(WEB_EXTRA) from None

# Files of the package that the page offers.
EXAMPLES = frozenset(str(path) for path in DEMO_IMAGES)


def sent_image(**options: Any) -> "gr.Image":
    """An image whose value is the path of the file as it was sent, not decoded yet.

    Args:
        options: for `gradio.Image`.
    """
    return _take_sent(gr.Image(type="filepath", **options))


def sent_video(**options: Any) -> "gr.Video":
    """A video whose value is the path of the file as it was sent, not decoded yet.

    Args:
        options: for `gradio.Video`.
    """
    return _take_sent(gr.Video(**options))


def _take_sent(component: Any) -> Any:
    move = component.async_move_resource_to_block_cache

    async def move_sent(url_or_file_path: str | Path | None) -> str | None:
        path = str(url_or_file_path or "")
        if path and path not in EXAMPLES and not is_in_or_equal(path, get_upload_folder()):
            raise gr.Error("Send the file itself, not its address.", print_exception=False)
        return await move(url_or_file_path)

    def take_path(payload: Any) -> str | None:
        return None if payload is None or not payload.path else str(payload.path)

    component.async_move_resource_to_block_cache = move_sent
    component.preprocess = take_path
    return component
