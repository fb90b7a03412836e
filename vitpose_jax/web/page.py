"""The page: drop an image or use the camera, see everybody's pose, take the numbers along.

Its handlers are plain functions of a `Batcher`, so tests need no browser. A file that a visitor sends is read by
`load_image` alone; results are files in the cache of the server, which deletes them after an hour.
"""

import functools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
from PIL import Image

from vitpose_jax import __version__
from vitpose_jax.bundled import DEMO_IMAGES
from vitpose_jax.draw import ColourBy, draw_heatmaps, draw_poses
from vitpose_jax.images import load_image
from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.pipeline.preprocess import crop_boxes
from vitpose_jax.poses import Poses
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.web import WEB_EXTRA
from vitpose_jax.web.batcher import Batcher, BusyError
from vitpose_jax.web.files import result_folder
from vitpose_jax.web.limits import check_pixels

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
OVERLAYS = ("poses", "heatmaps", "attention")
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
    batcher: Batcher,
    path: str | None,
    dataset: str | None,
    flip_test: bool,
    decode: Decode,
    threshold: float,
    colour_by: str,
    overlay: str,
) -> Results:
    """The poses in an image, as the page shows them.

    Args:
        batcher: what computes.
        path: the image file; None if the visitor gave none.
        dataset, flip_test, decode: as for a call of the estimator.
        threshold, colour_by: as for `draw_poses`; "automatic" leaves the colours to it.
        overlay: "poses", "heatmaps" or "attention".

    Raises:
        gradio.Error: with a message for the visitor.
    """
    if path is None:
        raise _mistake("Choose an image first.")
    try:
        check_pixels(path)
        image = load_image(path)
        poses = batcher(image, dataset=dataset, flip_test=flip_test, decode=decode)
        drawing = _draw(batcher, image, poses, threshold, colour_by, overlay, dataset)
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
    batcher: Batcher,
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
    size = batcher.estimator.config.image_size
    maps = map_heatmaps if overlay == "heatmaps" else map_attention
    # Of a large image this takes much memory, so one at a time.
    with _OVERLAY:
        return draw_heatmaps(image, maps(batcher, image, boxes, dataset), boxes, size=size)


def _network(batcher: Batcher) -> VitPose:
    model = batcher.estimator.model
    if not isinstance(model, VitPose):
        raise ValueError("an exported model gives poses alone, not heatmaps or attention")
    return model


def _crops(batcher: Batcher, image: np.ndarray, boxes: np.ndarray) -> Any:
    config = batcher.estimator.config
    return crop_boxes(image, boxes, config.image_size, mean=config.image_mean, std=config.image_std)


def map_heatmaps(batcher: Batcher, image: np.ndarray, boxes: np.ndarray, dataset: str | None) -> np.ndarray:
    """The largest value of any keypoint's heatmap: (n, height, width), one for each box."""
    model = _network(batcher)
    parts = [np.asarray(model(_crops(batcher, image, part), dataset), np.float32) for part in _parts(boxes)]
    return np.concatenate(parts).max(axis=-1)


def map_attention(batcher: Batcher, image: np.ndarray, boxes: np.ndarray, dataset: str | None) -> np.ndarray:
    """How much all patches look at each patch in the last block: (n, rows, columns), the mean over its heads."""
    model, config = _network(batcher), batcher.estimator.config
    rows, columns = (side // patch for side, patch in zip(config.image_size, config.patch_size, strict=True))
    maps = []
    for part in _parts(boxes):
        crops = _crops(batcher, image, part)
        attentions: Any = model.backbone(crops, config.dataset_index(dataset), output_attentions=True).attentions
        last = np.asarray(attentions[-1], np.float32)  # n, heads, tokens, tokens
        maps.append(last.mean(axis=(1, 2))[:, -rows * columns :].reshape(-1, rows, columns))
    return np.concatenate(maps)


def _parts(boxes: np.ndarray) -> Iterator[np.ndarray]:
    # The attention of all blocks takes much memory, so few boxes go at a time.
    return (boxes[start : start + 4] for start in range(0, len(boxes), 4))


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


def create_page(batcher: Batcher, *, model_name: str, track_video: Callable[..., Any] | None = None) -> "gr.Blocks":
    """The page.

    Args:
        batcher: what computes.
        model_name: shown in the title.
        track_video: of `video.create_video_tracker`; None for a page without videos.

    Returns:
        Blocks of gradio, to launch or to mount.
    """
    config = batcher.estimator.config
    datasets = [skeleton.name for skeleton in config.skeletons]
    with gr.Blocks(title="vitpose-jax", analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.Markdown(
            f"# Poses of everybody in the picture\n`{model_name}` with [vitpose-jax]"
            f"(https://github.com/vitpose-jax/vitpose-jax) {__version__}. What you send is deleted within two hours."
        )
        with gr.Accordion("Options", open=False), gr.Row():
            dataset = gr.Dropdown(datasets, value=datasets[0], label="Keypoints", interactive=len(datasets) > 1)
            threshold = gr.Slider(0, 1, 0.3, step=0.05, label="Least score of a drawn keypoint")
            flip_test = gr.Checkbox(False, label="Average with the mirrored crops (slower, a little better)")
            decode = gr.Dropdown(list(get_args(Decode)), value="udp", label="Decoding of heatmaps")
            colour_by = gr.Dropdown(["automatic", *get_args(ColourBy)], value="automatic", label="Colours by")
            overlay = gr.Dropdown(list(OVERLAYS), value="poses", label="Draw")
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
            inputs = [image, dataset, flip_test, decode, threshold, colour_by, overlay]
            outputs = [drawing, summary, people, table, file]
            handler = functools.partial(_handle, batcher)
            run.click(handler, inputs, outputs, api_name="estimate", concurrency_limit=CONCURRENCY)
            # A new option draws anew, once there is an image.
            for option in inputs[1:]:
                option.input(
                    functools.partial(_handle_again, batcher),
                    inputs,
                    outputs,
                    api_visibility="private",
                    concurrency_limit=CONCURRENCY,
                    show_progress="minimal",
                )
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
                    [video, dataset, flip_test, threshold, smooth, every],
                    [tracked, tracks],
                    api_name="track",
                    concurrency_limit=1,
                )
    # More visitors than this are told to come again.
    return page.queue(max_size=QUEUE)


def _handle(
    batcher: Batcher,
    image: str | None,
    dataset: str,
    flip_test: bool,
    decode: str,
    threshold: float,
    colour_by: str,
    overlay: str,
) -> Results:
    return estimate(batcher, image, dataset, flip_test, decode, threshold, colour_by, overlay)  # pyright: ignore[reportArgumentType]


def _handle_again(batcher: Batcher, image: str | None, *options: Any) -> Any:
    if image is None:
        return [gr.skip()] * len(Results._fields)
    return _handle(batcher, image, *options)


def _handle_video(
    track_video: Callable[..., Any],
    video: str | None,
    dataset: str,
    flip_test: bool,
    threshold: float,
    smooth: bool,
    every: float,
    progress: "gr.Progress" = gr.Progress(track_tqdm=True),  # noqa: B008 - gradio looks for this default
) -> Any:
    if video is None:
        raise _mistake("Choose a video first.")
    options = {"dataset": dataset, "flip_test": flip_test, "threshold": threshold, "smooth": smooth}
    try:
        return track_video(video, every=int(every), **options)
    except (ValueError, TypeError, OSError, BusyError) as error:
        raise _mistake(str(error).replace(f"{video}: ", "").replace(video, "the video")) from None
