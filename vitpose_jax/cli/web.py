"""`vitpose-jax web`: a page in the browser, and an HTTP interface."""

from typing import Annotated, Any

import typer

from vitpose_jax.bundled import DEFAULT_FINDER, DEFAULT_MODEL
from vitpose_jax.cli.common import DType, DTypeOption, GroupSize, Lenient, QuantizeOption, quantize_options, say


def web(
    model: Annotated[str, typer.Option(help="A Hub id, a folder or a file.", metavar="SOURCE")] = DEFAULT_MODEL,
    detector: Annotated[
        str, typer.Option(help="Finds the people: a Hub id or a folder of an RT-DETR.", metavar="SOURCE")
    ] = DEFAULT_FINDER,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 7860,
    max_upload: Annotated[int, typer.Option(min=1, help="Largest file that is taken, in MB.")] = 50,
    dtype: DTypeOption = DType.float32,
    quantize: QuantizeOption = None,
    group_size: GroupSize = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    lenient: Lenient = False,
) -> None:
    """Open a page in the browser that finds people and their keypoints, with an HTTP interface beside it."""
    rounding = quantize_options(quantize, group_size)

    from vitpose_jax.detector import Detector
    from vitpose_jax.estimator import PoseEstimator
    from vitpose_jax.web.batcher import Batcher
    from vitpose_jax.web.server import create_app, open_port, serve
    from vitpose_jax.web.video import create_video_tracker

    listening = open_port(host, port)
    say(f"loading {model} and {detector}")
    finder = None
    if detector != DEFAULT_FINDER:
        finder = Detector.from_pretrained(detector, dtype=dtype.value, strict=not lenient)
    estimator = PoseEstimator.from_pretrained(
        model, dtype=dtype.value, revision=revision, strict=not lenient, detector=finder, **rounding
    )
    say(f"compiling for {estimator.device_kind}")
    estimator.warmup()
    try:
        track_video = create_video_tracker(estimator)
    except ImportError as error:
        say(f"the page takes images alone: {error}")
        track_video = None
    options: dict[str, Any] = {"model_name": model, "max_bytes": max_upload * 1_000_000, "track_video": track_video}
    app = create_app(Batcher(estimator), **options)
    name = "localhost" if host == "127.0.0.1" else host
    say(f"http://{name}:{listening.getsockname()[1]} (Ctrl-C ends it)")
    serve(app, listening)
