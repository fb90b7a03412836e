"""One server for the page and the HTTP interface, on the same estimators."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from vitpose_jax.web import WEB_EXTRA
from vitpose_jax.web.api import MAX_BYTES, create_router
from vitpose_jax.web.limits import LimitedBody
from vitpose_jax.web.models import Models

# Nothing is asked of the network: no statistics, no fonts, no look for newer versions. gradio reads it when imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import fastapi
    import gradio as gr
    import gradio.routes
    import gradio.themes
    import uvicorn
except ImportError:
    raise ImportError(WEB_EXTRA) from None

from vitpose_jax.web.page import create_page

# Seconds that requests under way have once the server is told to stop.
GRACE = 20


def create_app(
    models: Models,
    *,
    max_bytes: int = MAX_BYTES,
    track_video: Callable[..., Any] | None = None,
) -> "fastapi.FastAPI":
    """The page at /, the HTTP interface at /v1.

    Args:
        models: what computes; closed when the server stops.
        max_bytes: of a file that is sent.
        track_video: see `create_page`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: "fastapi.FastAPI") -> AsyncIterator[None]:
        yield
        models.close()

    # Without pages of documentation, which load scripts from the network.
    app = fastapi.FastAPI(title="vitpose-jax", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.include_router(create_router(models, max_bytes=max_bytes))
    # A file that is sent to the page comes with a few lines around it.
    app.add_middleware(LimitedBody, max_bytes=max_bytes + 10_000)  # pyright: ignore[reportArgumentType]
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        app,
        create_page(models, track_video=track_video),
        path="/",
        max_file_size=max_bytes,
        theme=theme,
        footer_links=["api"],
        show_error=True,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
    )
    inner = [getattr(route, "app", None) for route in app.routes]
    pages = [page for page in inner if isinstance(page, gradio.routes.App)]

    def end_long_answers() -> None:
        models.stopping.set()
        for page in pages:
            # Each open page holds a connection that would last until it is closed.
            page.stop_event.set()

    app.state.end_long_answers = end_long_answers
    return app


def open_port(host: str = "127.0.0.1", port: int = 7860) -> socket.socket:
    """A socket that listens.

    Args:
        host: the address; by default only this machine reaches it.
        port: 0 for any that is free.

    Raises:
        OSError: if the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"{host}:{port}: {error.strerror or error}") from None


def serve(app: "fastapi.FastAPI", listening: socket.socket) -> None:
    """Run until the process is told to stop; requests under way are answered, but a video ends after its frame.

    Args:
        app: of `create_app`.
        listening: of `open_port`.
    """
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that ends long answers before it waits for the others."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        self.config.app.state.end_long_answers()  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
        await super().shutdown(sockets)
