"""The HTTP interface: an image goes in, poses come out as JSON.

    POST /v1/poses    the bytes of an image file;
                      ?boxes=[[x,y,width,height]]&model=NAME&dataset=coco&flip_test=true&decode=udp
    GET  /v1/models   the models, with their datasets and skeletons
    GET  /v1/model    one of them: ?model=NAME, or the default
    GET  /v1/health   whether the server takes requests

Mistakes are answered with {"error": "..."} and 400, 413 (too many bytes) or 503 (too many requests); 500 is the
server's fault.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any, get_args

from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.storage.text import printable, shorten
from vitpose_jax.web import WEB_EXTRA
from vitpose_jax.web.batcher import Batcher, BusyError
from vitpose_jax.web.limits import check_pixels
from vitpose_jax.web.models import Models

try:
    from fastapi import APIRouter, Request
    from fastapi.responses import JSONResponse
except ImportError:
    raise ImportError(WEB_EXTRA) from None

# Bytes of an image file.
MAX_BYTES = 50_000_000
# Boxes of a request.
MAX_BOXES = 200
# Characters of an error message.
LONGEST_ERROR = 500

_OPTIONS = ("boxes", "model", "dataset", "flip_test", "decode")


class _RefusedError(Exception):
    """A request that is answered with a status and a message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def create_router(models: Models, *, max_bytes: int = MAX_BYTES) -> APIRouter:
    """The routes.

    Args:
        models: what computes.
        max_bytes: of an image file; a longer request is refused while it is read.
    """
    router = APIRouter(prefix="/v1")
    reading = _Reading()

    @router.post("/poses")
    async def poses(request: Request) -> JSONResponse:
        try:
            options = _read_options(dict(request.query_params))
            batcher = models.choose(options.pop("model")).batcher
            with reading.one(batcher):
                content = await _read_body(request, max_bytes)
            check_pixels(content)
            found = await asyncio.wrap_future(batcher.submit(content, **options))
        except _RefusedError as error:
            return _refuse(error.status, error)
        except BusyError as error:
            return _refuse(503, error)
        except (ValueError, TypeError) as error:
            return _refuse(400, error)
        except (RuntimeError, MemoryError) as error:
            return _refuse(500, error)
        return JSONResponse(found.to_dict())

    @router.get("/models")
    async def all_models() -> JSONResponse:
        described = {model.name: model.describe() for model in models.all}
        return JSONResponse({"default": models.choose().name, "models": described})

    @router.get("/model")
    async def one_model(model: str | None = None) -> JSONResponse:
        try:
            served = models.choose(model)
        except ValueError as error:
            return _refuse(400, error)
        return JSONResponse({"name": served.name, **served.describe()})

    @router.get("/health")
    async def health() -> JSONResponse:
        max_waiting = sum(model.batcher.max_waiting for model in models.all)
        return JSONResponse({"status": "ok", "waiting": models.waiting, "max_waiting": max_waiting})

    return router


class _Reading:
    """Counts the requests whose bodies are being read: with those that wait, at most as many as may wait."""

    def __init__(self) -> None:
        self._count = 0

    @contextlib.contextmanager
    def one(self, batcher: Batcher) -> Iterator[None]:
        if self._count + batcher.waiting >= batcher.max_waiting:
            raise BusyError(f"{self._count + batcher.waiting} requests are waiting already; try again later")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


async def _read_body(request: Request, max_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            raise _RefusedError(413, f"expected an image file of at most {max_bytes} bytes, got more")
    if not content:
        raise _RefusedError(400, "expected the bytes of an image file as the body, got nothing")
    return bytes(content)


def _read_options(query: dict[str, str]) -> dict[str, Any]:
    unknown = sorted(set(query) - set(_OPTIONS))
    if unknown:
        raise _RefusedError(400, f"{printable(unknown[0])}: expected one of {', '.join(_OPTIONS)}")
    options: dict[str, Any] = {"model": query.get("model"), "dataset": query.get("dataset")}
    if "boxes" in query:
        try:
            options["boxes"] = json.loads(query["boxes"])
        except (ValueError, RecursionError):
            raise _RefusedError(
                400, f"boxes: expected a JSON list [[x, y, width, height], ...], got {shorten(query['boxes'])}"
            ) from None
        if not isinstance(options["boxes"], list) or len(options["boxes"]) > MAX_BOXES:
            raise _RefusedError(
                400, f"boxes: expected a JSON list of at most {MAX_BOXES} boxes, got {shorten(query['boxes'])}"
            )
    flip_test = query.get("flip_test", "false").lower()
    if flip_test not in ("true", "false", "1", "0"):
        raise _RefusedError(400, f"flip_test: expected true or false, got {shorten(flip_test)}")
    options["flip_test"] = flip_test in ("true", "1")
    options["decode"] = query.get("decode", "udp")
    if options["decode"] not in get_args(Decode):
        raise _RefusedError(
            400, f"decode: expected one of {', '.join(get_args(Decode))}, got {shorten(options['decode'])}"
        )
    return options


def _refuse(status: int, error: Exception) -> JSONResponse:
    return JSONResponse({"error": printable(error, LONGEST_ERROR)}, status_code=status)
