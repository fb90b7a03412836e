"""Inputs of the page that take what a visitor sends, as it is.

gradio's own would decode images themselves, and download what a visitor names by its URL.
"""

from pathlib import Path
from typing import Any

from vitpose_jax.web import WEB_EXTRA

try:
    import gradio as gr
except ImportError:
    raise ImportError(WEB_EXTRA) from None

class _Sent:
    """What both inputs do otherwise than gradio's."""

    # The page in the browser takes them for the class they derive from.
    is_template = True

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """Refuse what was not sent; else as gradio."""
        if str(url_or_file_path or "").partition(":")[0].lower() in ("http", "https", "data", "ftp"):
            raise gr.Error("Send the file itself, not its address.", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)  # pyright: ignore

    def preprocess(self, payload: Any) -> str | None:
        """The path of the file that was sent."""
        if payload is None or not payload.path:
            return None
        if str(payload.path).partition(":")[0].lower() in ("http", "https", "data", "ftp"):
            raise gr.Error("Send the file itself, not its address.", print_exception=False)
        return str(payload.path)

class SentImage(_Sent, gr.Image):
    """An image file, which nobody has decoded yet."""
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class SentVideo(_Sent, gr.Video):
    """A video file, which nobody has decoded yet."""
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component
