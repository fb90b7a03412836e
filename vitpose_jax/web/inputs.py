"""Inputs of the page that take what a visitor sends, as it is.

gradio's own would decode images themselves, download what a visitor names by its URL, and open what he names in the
server's working and temporary folders.
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


class _Sent:
    """What both inputs do otherwise than gradio's."""

    # The page in the browser takes them for the class they derive from.
    is_template = True

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """Refuse what was not sent and is no example; else as gradio."""
        path = str(url_or_file_path or "")
        if path and path not in EXAMPLES and not is_in_or_equal(path, get_upload_folder()):
            raise gr.Error("Send the file itself, not its address.", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)  # pyright: ignore

    def preprocess(self, payload: Any) -> str | None:
        """The path of the file that was sent."""
        return None if payload is None or not payload.path else str(payload.path)


class SentImage(_Sent, gr.Image):
    """An image file, which nobody has decoded yet."""


class SentVideo(_Sent, gr.Video):
    """A video file, which nobody has decoded yet."""
