"""Evaluation: a model's poses on a whole data set, and how good they are.

The data set is cut into blocks of some hundred boxes. Each block goes through the estimator as one stream and is
written to a journal when it is done, so that a run that was killed goes on with the next block. A block always meets
the same images, whoever computes it: a run that was taken up again, or shared out among processes, ends with the same
bytes as one that was not.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitpose_jax import __version__
from vitpose_jax.datasets.dataset import Dataset
from vitpose_jax.estimator import PREFETCH, ItemError, PoseEstimator
from vitpose_jax.evaluation.journal import DECIMALS, Journal, Outcome, from_lines, journals, to_lines
from vitpose_jax.evaluation.oks import KEYPOINT_THRESHOLD
from vitpose_jax.evaluation.scoring import (
    NMS_THRESHOLD,
    Nms,
    check_nms,
    check_scorable,
    measure,
    per_keypoint,
    to_results,
)
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.pipeline.preprocess import BOX_PADDING
from vitpose_jax.poses import Poses
from vitpose_jax.storage import parameters
from vitpose_jax.storage.atomic import write_whole

# A block ends with the image that brings it to so many times `max_batch` boxes. Between blocks the device waits for
# the first images to be read; what a kill loses is a block.
BATCHES_IN_BLOCK = 8

RESULTS, METRICS, PER_KEYPOINT = "results.json", "metrics.json", "per_keypoint.csv"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: the numbers of the data set's protocol, by name; see `scoring.measure`.
        per_keypoint: one row a keypoint; see `scoring.per_keypoint`.
        counts: "images" of the annotations, those with boxes, boxes, results, images that failed with their boxes.
        failures: (image, reason) of those that could not be read.
        results: COCO results.
        settings: everything the numbers depend on, ready for JSON.
        deviations: where the settings are not those of the published figures, a line for each.
    """

    metrics: dict[str, float]
    per_keypoint: list[dict[str, Any]]
    counts: dict[str, int]
    failures: list[tuple[str, str]]
    results: list[dict[str, Any]]
    settings: dict[str, Any]
    deviations: list[str]


def evaluate(
    estimator: PoseEstimator,
    dataset: Dataset,
    *,
    flip_test: bool = True,
    decode: Decode | None = None,
    oks_nms: Nms = "hard",
    keypoint_threshold: float = KEYPOINT_THRESHOLD,
    nms_threshold: float = NMS_THRESHOLD,
    limit: int | None = None,
    output: str | os.PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    model_name: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Estimate the poses in all boxes of a data set and measure them by its protocol.

    With `jax.distributed` initialised every process calls this alike: each takes its share of the blocks, on the
    devices of its estimator, which must be its own (`jax.local_devices()`); all return the whole evaluation, and the
    first one writes it.

    Args:
        estimator: with stretch=True for MPII; for the original's numbers with border="opencv", see `deviations`.
        dataset: from `read_dataset`.
        flip_test: average with the mirrored image.
        decode: None for the protocol's.
        oks_nms: "hard", "soft" or None; MPII has none.
        keypoint_threshold, nms_threshold: see `scoring.to_results`.
        limit: only the first so many images that have boxes.
        output: folder for results.json (COCO results), metrics.json and per_keypoint.csv, all written at the end,
            and poses.jsonl, written as the run goes.
        resume: take the poses of an earlier run from the output folder and compute what is missing. Images that
            failed are tried again. How poses are scored may differ from that run, not how they are made.
        overwrite: begin anew in a folder that holds results.
        model_name: to be noted with the results.
        progress: a bar on standard error.

    Raises:
        ValueError: where the estimator has no head for the data set or does not crop as it asks; where the output
            folder holds results and not one of resume and overwrite is given; where they are of other settings.
        ImportError: where the package that the metric needs is not installed.
    """
    folder = None if output is None else pathlib.Path(output)
    protocol = dataset.protocol
    decode = decode or protocol.decode
    get_decoding(decode)
    check_nms(protocol, oks_nms)
    if resume and overwrite:
        raise ValueError("expected one of resume and overwrite, got both")
    _check_estimator(estimator, dataset)
    dataset = dataset if limit is None else dataset.first(limit)
    check_scorable(dataset)
    _check_images(dataset)
    if folder is not None:
        earlier = [folder / name for name in (METRICS, RESULTS, PER_KEYPOINT) if (folder / name).exists()]
        if not (resume or overwrite):
            for path in (*journals(folder), *earlier):
                raise ValueError(
                    f"{folder} already holds {path.name}; resume it, overwrite it or choose another folder"
                )
        if overwrite and jax.process_index() == 0:
            # The numbers of an earlier run do not outlive its poses.
            for path in earlier:
                path.unlink()
    process, processes = jax.process_index(), jax.process_count()
    if processes > 1:
        # Nobody takes another's new journal for an old one. And connections are made while all are near one another.
        multihost_utils.sync_global_devices("evaluation begins")

    nms = None if protocol.metric == "pckh" else oks_nms
    made = _how_made(estimator, dataset, flip_test=flip_test, decode=decode, limit=limit)
    journal, outcomes = None, {}
    if folder is not None:
        made["model_sha256"] = _hash_model(estimator)
        journal = Journal(
            folder, made, protocol.skeleton.num_keypoints, resume=resume, process=process, processes=processes
        )
        outcomes = {place: outcome for place, outcome in journal.outcomes.items() if not isinstance(outcome, str)}

    blocks = list(_blocks(dataset, BATCHES_IN_BLOCK * estimator.max_batch))
    mine = [block for block in blocks[process::processes] if not set(block) <= outcomes.keys()]
    computed: dict[int, Outcome] = {}
    with _bar(dataset, mine, shown=progress and process == 0) as bar:
        for block in mine:
            found = {}
            for place, outcome in _run(estimator, dataset, block, flip_test=flip_test, decode=decode):
                found[place] = outcome
                bar.update(len(dataset.samples[place].boxes))
            if journal is not None:
                journal.append(found)
            computed |= found
    # What an earlier run left, all have read for themselves.
    outcomes = dict(sorted((outcomes | _gather(computed, protocol.skeleton.num_keypoints)).items()))

    poses = {place: outcome for place, outcome in outcomes.items() if not isinstance(outcome, str)}
    failed = {place: outcome for place, outcome in sorted(outcomes.items()) if isinstance(outcome, str)}
    results = to_results(
        dataset,
        poses,
        image_size=estimator.config.image_size,
        padding=estimator.padding,
        nms=nms,
        keypoint_threshold=keypoint_threshold,
        nms_threshold=nms_threshold,
    )
    settings = {
        **made,
        "model": model_name,
        "image_size": list(estimator.config.image_size),
        "min_score": dataset.min_score,
        "oks_nms": nms,
        "nms_threshold": nms_threshold,
        "keypoint_threshold": keypoint_threshold,
        "versions": {"vitpose_jax": __version__, "jax": jax.__version__},
    }
    evaluation = Evaluation(
        metrics=measure(dataset, poses, results),
        per_keypoint=per_keypoint(dataset, poses),
        counts={
            "images": dataset.num_images,
            "images_with_boxes": len(dataset.samples),
            "boxes": dataset.num_boxes,
            "boxes_without_area": dataset.skipped_boxes,
            "results": len(results),
            "failed_images": len(failed),
            "failed_boxes": sum(len(dataset.samples[place].boxes) for place in failed),
        },
        failures=[(str(dataset.samples[place].path), reason) for place, reason in failed.items()],
        results=results,
        settings=settings,
        deviations=_deviations(dataset, settings),
    )
    if journal is not None:
        if process == 0:
            journal.rewrite(outcomes)
            _write(evaluation, folder)
        if processes > 1:
            multihost_utils.sync_global_devices("evaluation written")
        if process == 0:
            journal.remove_others()
    return evaluation


def _check_images(dataset: Dataset, count: int = 10) -> None:
    """See that images are where they are looked for; one or the other may be missing."""
    if not any(sample.path.exists() for sample in dataset.samples[:count]):
        raise ValueError(f"{dataset.samples[0].path}: no such image, nor the next; expected the folder they lie in")


def _check_estimator(estimator: PoseEstimator, dataset: Dataset) -> None:
    protocol = dataset.protocol
    held = estimator.config.skeleton(protocol.skeleton.name)
    if held.num_keypoints != protocol.skeleton.num_keypoints:
        raise ValueError(
            f"{protocol.name}: expected a head of {protocol.skeleton.num_keypoints} keypoints, got {held.num_keypoints}"
        )
    if estimator.stretch != protocol.stretch:
        raise ValueError(
            f"{protocol.name}: expected an estimator with stretch={protocol.stretch}, got {estimator.stretch}"
        )


def _how_made(estimator: PoseEstimator, dataset: Dataset, **options: Any) -> dict[str, Any]:
    """Everything the poses depend on but the model."""
    return {
        "dataset": dataset.protocol.name,
        "annotations": _hash_file(dataset.annotations),
        "detections": dataset.detections and _hash_file(dataset.detections),
        "boxes": dataset.num_boxes,
        "dtype": np.dtype(estimator.model.backbone.dtype).name,
        "max_batch": estimator.max_batch,
        "border": estimator.border,
        "padding": estimator.padding,
        "stretch": estimator.stretch,
        **options,
    }


def _deviations(dataset: Dataset, settings: dict[str, Any]) -> list[str]:
    """Where settings are not those of the published figures."""
    protocol = dataset.protocol
    published = {
        "decode": protocol.decode,
        "dtype": "float32",
        "flip_test": True,
        "border": "opencv",
        "padding": BOX_PADDING,
        "min_score": 0.0,
        "oks_nms": None if protocol.metric == "pckh" else "hard",
        "nms_threshold": NMS_THRESHOLD,
        "keypoint_threshold": KEYPOINT_THRESHOLD,
        "limit": None,
    }
    lines = [f"{name} {settings[name]}, not {value}" for name, value in published.items() if settings[name] != value]
    boxes = "annotations" if dataset.detections is None else "detections"
    return [f"boxes of the {boxes}, not {protocol.boxes}"] * (boxes != protocol.boxes) + lines


def _hash_model(estimator: PoseEstimator) -> str:
    """Of the configuration and of all weights."""
    digest = hashlib.sha256(json.dumps(estimator.config.to_dict(), sort_keys=True).encode())
    for name, leaf in sorted(parameters.flatten(estimator.model).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _hash_file(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _blocks(dataset: Dataset, size: int) -> Iterator[list[int]]:
    """Places of images that follow one another, until they have `size` boxes."""
    block: list[int] = []
    boxes = 0
    for place, sample in enumerate(dataset.samples):
        block.append(place)
        boxes += len(sample.boxes)
        if boxes >= size:
            yield block
            block, boxes = [], 0
    if block:
        yield block


def _run(
    estimator: PoseEstimator, dataset: Dataset, block: list[int], *, flip_test: bool, decode: Decode
) -> Iterator[tuple[int, Outcome]]:
    """The poses of the images of a block."""
    samples = [dataset.samples[place] for place in block]
    stream = estimator.stream(
        ((sample.path, sample.boxes) for sample in samples),
        dataset=dataset.protocol.skeleton.name,
        flip_test=flip_test,
        decode=decode,
        prefetch=max(PREFETCH, estimator.max_batch),
        errors="return",
    )
    for place, found in zip(block, stream, strict=True):
        yield place, str(found.__cause__ or found) if isinstance(found, ItemError) else _outcome(found)


def _outcome(poses: Poses) -> Outcome:
    points = np.concatenate([poses.keypoints, poses.scores[..., None]], axis=-1).astype(np.float64)
    if not np.isfinite(points).all():
        return "the model's keypoints are not finite"
    return np.round(points, DECIMALS) + 0.0  # -0 becomes 0


def _bar(dataset: Dataset, blocks: list[list[int]], *, shown: bool) -> Any:
    from tqdm import tqdm

    boxes = sum(len(dataset.samples[place].boxes) for place in itertools.chain.from_iterable(blocks))
    return tqdm(total=boxes, unit="person", disable=not shown, file=sys.stderr)


def _gather(outcomes: dict[int, Outcome], num_keypoints: int) -> dict[int, Outcome]:
    """The outcomes of all processes."""
    if jax.process_count() == 1:
        return outcomes
    lines = np.frombuffer(b"".join(to_lines(outcomes)), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray([len(lines)]))).ravel()
    # An array without elements cannot be gathered.
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: len(lines)] = lines
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    for process, (row, length) in enumerate(zip(everyone, lengths, strict=True)):
        if process != jax.process_index():
            outcomes = outcomes | from_lines(io.BytesIO(row[:length].tobytes()), num_keypoints)
    return outcomes


def _write(evaluation: Evaluation, folder: pathlib.Path) -> None:
    """The files of an evaluation, the metrics last."""
    write_whole(folder / RESULTS, _to_json(evaluation.results))
    table = io.StringIO()
    writer = csv.DictWriter(table, list(evaluation.per_keypoint[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(evaluation.per_keypoint)
    write_whole(folder / PER_KEYPOINT, table.getvalue().encode())
    document = {
        "metrics": {name: value if math.isfinite(value) else None for name, value in evaluation.metrics.items()},
        "counts": evaluation.counts,
        "failures": [{"image": image, "reason": reason} for image, reason in evaluation.failures],
        "settings": evaluation.settings,
        "deviations": evaluation.deviations,
    }
    write_whole(folder / METRICS, _to_json(document, indent=1))


def _to_json(document: object, **options: Any) -> bytes:
    return (json.dumps(document, allow_nan=False, **options) + "\n").encode()
