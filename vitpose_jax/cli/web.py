"""`vitpose-jax web`: a page in the browser, and an HTTP interface."""

import gc
from typing import Annotated

import typer

from vitpose_jax.bundled import DEFAULT_FINDER, DEFAULT_MODEL
from vitpose_jax.cli.common import (
    DType,
    DTypeOption,
    GroupSize,
    Lenient,
    QuantizeOption,
    Runtime,
    RuntimeOption,
    quantize_options,
    say,
)


def web(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A Hub id, a folder, a file, or the bundled model; repeatable: visitors choose. The first is the "
            "default. Visitors see the last part of a path, or NAME.",
            metavar="[NAME=]SOURCE",
        ),
    ] = None,
    detector: Annotated[
        str, typer.Option(help="Finds the people: a Hub id or a folder of an RT-DETR.", metavar="SOURCE")
    ] = DEFAULT_FINDER,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 7860,
    max_upload: Annotated[int, typer.Option(min=1, help="Largest file that is taken, in MB.")] = 50,
    dtype: DTypeOption = DType.float32,
    runtime: RuntimeOption = Runtime.jax,
    quantize: QuantizeOption = None,
    group_size: GroupSize = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    lenient: Lenient = False,
) -> None:
    """Open a page in the browser that finds people and their keypoints, with an HTTP interface beside it."""
    rounding = quantize_options(quantize, group_size)

    from vitpose_jax.detector import Detector
    from vitpose_jax.estimator import PoseEstimator
    from vitpose_jax.web.models import Models, name_sources
    from vitpose_jax.web.server import create_app, open_port, serve
    from vitpose_jax.web.video import create_video_tracker

    sources = name_sources(model or [DEFAULT_MODEL])
    if revision is not None and len(sources) > 1:
        raise ValueError(f"--revision is of one model: expected one --model, got {len(sources)}")
    listening = open_port(host, port)
    finder = None
    if detector != DEFAULT_FINDER:
        say(f"loading {detector}")
        finder = Detector.from_pretrained(detector, dtype=dtype.value, strict=not lenient)
    estimators = {}
    for name, source in sources.items():
        say(f"loading {source}")
        estimators[name] = PoseEstimator.from_pretrained(
            source,
            runtime=runtime.value,
            dtype=dtype.value,
            revision=revision,
            strict=not lenient,
            detector=finder,
            **rounding,
        )
    for name, estimator in estimators.items():
        say(f"compiling {name} for {estimator.device_kind}")
        estimator.warmup()
    if runtime is not Runtime.jax:
        say("the page draws no heatmaps and no attention: they need --runtime jax")
    models = Models(estimators)
    try:
        track_video = create_video_tracker(models)
    except ImportError as error:
        say(f"the page takes images alone: {error}")
        track_video = None
    app = create_app(models, max_bytes=max_upload * 1_000_000, track_video=track_video)
    address = "localhost" if host == "127.0.0.1" else host
    say(f"http://{address}:{listening.getsockname()[1]} (Ctrl-C ends it)")
    try:
        serve(app, listening)
    finally:
        # The interpreter would look through all objects of JAX and gradio before it ends, for seconds.
        gc.freeze()
