"""The page: drop an image or use the camera, see everybody's pose, take the numbers along.

Its handlers are plain functions of `Models`, so tests need no browser. A file that a visitor sends is read by
`load_image` alone; results are files in the cache of the server, which deletes them after an hour.
"""

import functools
import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, cast, get_args

import numpy as np
from PIL import Image

from vitpose_jax import __version__
from vitpose_jax.bundled import DEMO_IMAGES
from vitpose_jax.draw import ColourBy, draw_heatmaps, draw_poses
from vitpose_jax.images import load_image
from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.poses import Poses
from vitpose_jax.web import WEB_EXTRA
from vitpose_jax.web.batcher import BusyError
from vitpose_jax.web.files import result_folder
from vitpose_jax.web.limits import check_pixels
from vitpose_jax.web.models import Models, ServedModel
from vitpose_jax.web.overlays import Kind

try:
    import gradio as gr
except ImportError:
    raise ImportError(WEB_EXTRA) from None

from vitpose_jax.web.inputs import sent_image, sent_video

# Seconds between looks for old files, and the age at which they are deleted.
DELETE_CACHE = (600, 3600)
# People whose pictures and heatmaps are shown: the highest-scoring.
MAX_SHOWN = 32
# Requests of one kind that are handled at the same time; the batcher puts them together.
CONCURRENCY = 4
# Requests of the page that may wait.
QUEUE = 64

_OVERLAY = threading.Lock()
DRAWINGS = ("poses", *get_args(Kind))
TABLE_HEADER = ["person", "keypoint", "x", "y", "score"]


class Results(NamedTuple):
    """What the page shows of an image, in the order of its outputs.

    Attributes:
        drawing: the image with poses, heatmaps or attention.
        summary: one line.
        people: a picture of each person, with a caption.
        table: a row for each keypoint: person, keypoint, x, y in pixels of the image, score.
        file: a JSON file with everything.
    """

    drawing: Image.Image
    summary: str
    people: list[tuple[Image.Image, str]]
    table: list[list[Any]]
    file: str


def estimate(
    models: Models,
    path: str | None,
    model: str | None,
    dataset: str | None,
    flip_test: bool,
    decode: Decode,
    threshold: float,
    colour_by: str,
    overlay: str,
) -> Results:
    """The poses in an image, as the page shows them.

    Args:
        models: what computes.
        path: the image file; None if the visitor gave none.
        model: the name of one of them; None for the default.
        dataset, flip_test, decode: as for a call of the estimator.
        threshold, colour_by: as for `draw_poses`; "automatic" leaves the colours to it.
        overlay: one of `DRAWINGS`.

    Raises:
        gradio.Error: with a message for the visitor.
    """
    if path is None:
        raise _mistake("Choose an image first.")
    try:
        check_pixels(path)
        served, image = models.choose(model), load_image(path)
        poses = served.batcher(image, dataset=dataset, flip_test=flip_test, decode=decode)
        drawing = _draw(served, image, poses, threshold, colour_by, overlay, dataset)
    except (ValueError, TypeError, OSError, BusyError) as error:
        # Without the name that the file has on the server.
        raise _mistake(str(error).replace(f"{path}: ", "").replace(path, "the image")) from None
    count = len(poses)
    who = f"{count or 'No'} {'person' if count == 1 else 'people'}"
    summary = f"{who} in an image of {image.shape[1]} x {image.shape[0]} pixels"
    return Results(drawing, summary, _crop_people(image, poses, threshold), _table(poses), _write_json(poses))


def _mistake(message: str) -> "gr.Error":
    # The server's log is spared the traceback.
    return gr.Error(message, print_exception=False)


def _draw(
    served: ServedModel,
    image: np.ndarray,
    poses: Poses,
    threshold: float,
    colour_by: str,
    overlay: str,
    dataset: str | None,
) -> Image.Image:
    if overlay == "poses" or not len(poses):
        chosen: ColourBy | None = None if colour_by == "automatic" else colour_by  # pyright: ignore[reportAssignmentType]
        return draw_poses(image, poses, threshold=threshold, colour_by=chosen)
    boxes = np.asarray(poses.boxes)[:MAX_SHOWN]
    size = served.batcher.estimator.config.image_size
    # Of a large image this takes much memory, so one at a time.
    with _OVERLAY:
        return draw_heatmaps(image, served.overlays(image, boxes, cast(Kind, overlay), dataset), boxes, size=size)


def _crop_people(image: np.ndarray, poses: Poses, threshold: float) -> list[tuple[Image.Image, str]]:
    height, width = image.shape[:2]
    drawn = np.asarray(draw_poses(image, poses, threshold=threshold))
    scores = None if poses.box_scores is None else np.asarray(poses.box_scores)
    people = []
    for index, (x, y, box_width, box_height) in enumerate(np.asarray(poses.boxes)[:MAX_SHOWN]):
        margin = 0.1 * max(box_width, box_height)
        left, top = np.floor(np.clip([x - margin, y - margin], 0, [width - 1, height - 1])).astype(int)
        right, bottom = np.ceil(
            np.clip([x + box_width + margin, y + box_height + margin], [left + 1, top + 1], [width, height])
        ).astype(int)
        score = "" if scores is None else f", score {scores[index]:.2f}"
        people.append((Image.fromarray(drawn[top:bottom, left:right]), f"person {index + 1}{score}"))
    return people


def _table(poses: Poses) -> list[list[Any]]:
    return [
        [index + 1, name, round(float(x), 1), round(float(y), 1), round(float(score), 3)]
        for index, (skeleton, keypoints, scores, _) in enumerate(poses.rows())
        for name, (x, y), score in zip(skeleton.keypoints, keypoints, scores, strict=True)
    ]


def _write_json(poses: Poses) -> str:
    path = result_folder() / "poses.json"
    path.write_text(json.dumps(poses.to_dict(), indent=1))
    return str(path)


def create_page(models: Models, *, track_video: Callable[..., Any] | None = None) -> "gr.Blocks":
    """The page.

    Args:
        models: what computes; visitors choose among them.
        track_video: of `video.create_video_tracker`; None for a page without videos.

    Returns:
        Blocks of gradio, to launch or to mount.
    """
    default = models.choose()
    # Those of all models: programs choose both at once, and what does not fit is refused in words.
    datasets = list(dict.fromkeys(dataset for model in models.all for dataset in model.datasets))
    with gr.Blocks(title="vitpose-jax", analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        title = f"`{default.name}` with " if len(models.names) == 1 else ""
        gr.Markdown(
            f"# Poses of everybody in the picture\n{title}[vitpose-jax]"
            f"(https://github.com/vitpose-jax/vitpose-jax) {__version__}. What you send is deleted within two hours."
        )
        with gr.Row(visible=len(models.names) > 1 or len(datasets) > 1):
            model = gr.Dropdown(
                models.names, value=default.name, label="Model", elem_id="model", interactive=len(models.names) > 1
            )
            dataset = gr.Dropdown(
                datasets, value=datasets[0], label="Keypoints", elem_id="dataset", interactive=len(datasets) > 1
            )
        with gr.Accordion("Options", open=False), gr.Row():
            threshold = gr.Slider(0, 1, 0.3, step=0.05, label="Least score of a drawn keypoint")
            flip_test = gr.Checkbox(False, label="Average with the mirrored crops (slower, a little better)")
            decode = gr.Dropdown(list(get_args(Decode)), value="udp", label="Decoding of heatmaps")
            colour_by = gr.Dropdown(["automatic", *get_args(ColourBy)], value="automatic", label="Colours by")
            overlay = gr.Dropdown(list(DRAWINGS), value="poses", label="Draw")
        with gr.Tab("Image"):
            with gr.Row():
                with gr.Column():
                    image = sent_image(format="png", sources=["upload", "webcam", "clipboard"], label="Image")
                    run = gr.Button("Find people", variant="primary")
                    gr.Examples([[str(path)] for path in DEMO_IMAGES], [image])
                with gr.Column():
                    drawing = gr.Image(
                        format="png",
                        label="Poses",
                        elem_id="drawing",
                        interactive=False,
                        buttons=["download", "fullscreen"],
                    )
                    summary = gr.Markdown()
                    file = gr.File(label="All numbers (JSON)", elem_id="numbers", interactive=False)
            people = gr.Gallery(
                label="People",
                elem_id="people",
                columns=6,
                height="auto",
                object_fit="contain",
                interactive=False,
                buttons=["fullscreen"],
            )
            table = gr.Dataframe(headers=TABLE_HEADER, label="Keypoints, in pixels of the image", interactive=False)
            inputs = [image, model, dataset, flip_test, decode, threshold, colour_by, overlay]
            outputs = [drawing, summary, people, table, file]
            handler = functools.partial(_handle, models)
            run.click(handler, inputs, outputs, api_name="estimate", concurrency_limit=CONCURRENCY)
            # A new option draws anew, once there is an image; a new model first says which datasets it has.
            fitting = functools.partial(_fitting_datasets, models)
            changed = model.input(fitting, [model, dataset], [dataset], api_visibility="private")
            for event in (changed.then, *(option.input for option in inputs[2:])):
                event(
                    functools.partial(_handle_again, models),
                    inputs,
                    outputs,
                    api_visibility="private",
                    concurrency_limit=CONCURRENCY,
                    show_progress="minimal",
                )
            if datasets != default.datasets:
                page.load(fitting, [model, dataset], [dataset], api_visibility="private")
        if track_video is not None:
            with gr.Tab("Video"):
                with gr.Row():
                    with gr.Column():
                        video = sent_video(label="Video", elem_id="clip", sources=["upload", "webcam"])
                        smooth = gr.Checkbox(False, label="Smooth the keypoints over time")
                        every = gr.Slider(1, 10, 5, step=1, label="Look for new people in every n-th frame")
                        run_video = gr.Button("Follow people", variant="primary")
                    with gr.Column():
                        tracked = gr.Video(label="Poses", elem_id="tracked", interactive=False, buttons=["download"])
                        tracks = gr.File(label="Poses of all frames (JSON lines)", interactive=False)
                run_video.click(
                    functools.partial(_handle_video, track_video),
                    [video, model, dataset, flip_test, threshold, smooth, every],
                    [tracked, tracks],
                    api_name="track",
                    concurrency_limit=1,
                )
    # More visitors than this are told to come again.
    return page.queue(max_size=QUEUE)


def _handle(
    models: Models,
    image: str | None,
    model: str,
    dataset: str,
    flip_test: bool,
    decode: str,
    threshold: float,
    colour_by: str,
    overlay: str,
) -> Results:
    return estimate(models, image, model, dataset, flip_test, decode, threshold, colour_by, overlay)  # pyright: ignore[reportArgumentType]


def _handle_again(models: Models, image: str | None, *options: Any) -> Any:
    if image is None:
        return [gr.skip()] * len(Results._fields)
    return _handle(models, image, *options)


def _fitting_datasets(models: Models, model: str, dataset: str) -> Any:
    datasets = models.choose(model).datasets
    return gr.Dropdown(datasets, value=dataset if dataset in datasets else datasets[0])


def _handle_video(
    track_video: Callable[..., Any],
    video: str | None,
    model: str,
    dataset: str,
    flip_test: bool,
    threshold: float,
    smooth: bool,
    every: float,
    progress: "gr.Progress" = gr.Progress(track_tqdm=True),  # noqa: B008 - gradio looks for this default
) -> Any:
    if video is None:
        raise _mistake("Choose a video first.")
    options = {"model": model, "dataset": dataset, "flip_test": flip_test, "threshold": threshold, "smooth": smooth}
    try:
        return track_video(video, every=int(every), **options)
    except (ValueError, TypeError, OSError, BusyError) as error:
        raise _mistake(str(error).replace(f"{video}: ", "").replace(video, "the video")) from None
