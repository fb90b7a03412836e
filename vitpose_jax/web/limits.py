"""What a visitor may send: the pixels of an image, the bytes of a request."""

from typing import Any

from vitpose_jax.images import ImageLike, decoded_bytes

# Pixels of an image, and of a frame of a video.
MAX_PIXELS = 50_000_000
# Bytes of a request that holds no file.
MAX_JSON = 1_000_000


def check_pixels(image: ImageLike, max_pixels: int = MAX_PIXELS) -> None:
    """Check the size of an image before it is decoded.

    Raises:
        ValueError: if it has more pixels.
    """
    pixels = decoded_bytes(image) // 3
    if pixels > max_pixels:
        raise ValueError(f"expected an image of at most {max_pixels // 10**6} million pixels, got {pixels}")


class LimitedBody:
    """Middleware that ends a request whose body is too long while it arrives; ASGI.

    Args:
        app: what answers.
        max_bytes: of a body; of one in JSON, `MAX_JSON`.
    """

    def __init__(self, app: Any, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        kind = dict(scope["headers"]).get(b"content-type", b"")
        limit = min(MAX_JSON, self.max_bytes) if kind.startswith(b"application/json") else self.max_bytes
        count, started = 0, False

        async def limited() -> Any:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > limit:
                raise _TooLongError
            return message

        async def note(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, limited, note)
        except _TooLongError:
            if not started:
                text = f'{{"error": "expected a request of at most {limit} bytes, got more"}}'.encode()
                headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
                await send({"type": "http.response.start", "status": 413, "headers": headers})
                await send({"type": "http.response.body", "body": text})


class _TooLongError(Exception):
    """A body that is too long."""
