"""Evaluation: a model's poses on a whole dataset, and how good they are.

check --> estimate_poses (block by block, with a journal) --> scoring --> Evaluation --> files
"""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from vitpose_jax.datasets.dataset import Dataset
from vitpose_jax.datasets.protocols import Protocol
from vitpose_jax.datasets.sizes import check_sizes
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.evaluation.estimate import estimate_poses
from vitpose_jax.evaluation.journal import Journal, Outcome, journals
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
from vitpose_jax.evaluation.settings import Settings
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.serving.requests import check_flip_pairs
from vitpose_jax.storage.atomic import remove_leftovers, write_whole

RESULTS, METRICS, PER_KEYPOINT = "results.json", "metrics.json", "per_keypoint.csv"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: the numbers of the dataset's protocol, by name; see `scoring.measure`.
        per_keypoint: one row per keypoint; see `scoring.per_keypoint`.
        counts: "images" in the annotations, "images_with_boxes", "boxes", "boxes_without_area", "results",
            "failed_images" and "failed_boxes".
        failures: (image, reason) of the images that failed, for the detector or for the estimator.
        results: COCO results.
        settings: everything the numbers depend on, ready for JSON; see `settings.Settings`.
        deviations: where the settings differ from the published protocol, one line each.
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
    """Estimate the poses in all boxes of a dataset and measure them by its protocol.

    With `jax.distributed` initialised, every process calls this with the same arguments. Each computes its part of
    the blocks on the devices of its estimator, which must be its own (`jax.local_devices()`). All return the whole
    evaluation; the first process writes it.

    Args:
        estimator: with stretch=True for MPII. For the original's numbers use border="opencv", see `deviations`.
        dataset: from `read_dataset`.
        flip_test: average with the mirrored image.
        decode: how heatmaps become points; default: the protocol's.
        oks_nms: "hard", "soft" or None; not used for MPII.
        keypoint_threshold, nms_threshold: see `scoring.to_results`.
        limit: only the first images that have boxes; None for all.
        output: folder for results.json (COCO results), metrics.json and per_keypoint.csv, all written at the end,
            and poses.jsonl, written during the run.
        resume: take the poses of an earlier run from the output folder and compute the missing ones. Images that
            failed are tried again. Options of scoring may differ from the earlier run, options of the poses may not.
        overwrite: replace the results in the output folder.
        model_name: written to metrics.json.
        progress: show a bar on standard error.

    Raises:
        ValueError: if the estimator has no head for the dataset or a different stretch, or flip_test is set for a
            skeleton without flip pairs; for an image of another size than annotated; if the output folder holds
            results and neither resume nor overwrite is given; if results to resume have other settings; for
            annotations without a value that the metric needs.
        ImportError: if the package that the metric needs is not installed.
    """
    protocol = dataset.protocol
    decode = decode or protocol.decode
    get_decoding(decode)
    check_nms(protocol, oks_nms)
    if resume and overwrite:
        raise ValueError("expected one of resume and overwrite, got both")
    check_estimator(estimator, protocol)
    if flip_test:
        check_flip_pairs(estimator.config.skeleton(protocol.skeleton.name))
    dataset = dataset if limit is None else dataset.first(limit)
    check_scorable(dataset)
    check_images([sample.path for sample in dataset.samples])
    check_sizes((sample.path, sample.size) for sample in dataset.samples)
    folder = None if output is None else pathlib.Path(output)
    if folder is not None:
        check_output(folder, resume=resume, overwrite=overwrite)
        if jax.process_index() == 0:
            remove_leftovers(folder)
            if overwrite:
                # Old numbers must not remain beside new poses.
                for path in _results(folder):
                    path.unlink()
    if jax.process_count() > 1:
        # No process reads another's new journal as an old one. And processes connect while all are at the same point.
        multihost_utils.sync_global_devices("evaluation begins")

    settings = Settings.create(
        estimator,
        dataset,
        hash_model=folder is not None,
        flip_test=flip_test,
        decode=decode,
        limit=limit,
        model=model_name,
        detector=dataset.detector,
        oks_nms=None if protocol.metric == "pckh" else oks_nms,
        nms_threshold=nms_threshold,
        keypoint_threshold=keypoint_threshold,
    )
    journal = None if folder is None else _open_journal(folder, settings, dataset, resume=resume)
    outcomes = estimate_poses(estimator, dataset, journal, flip_test=flip_test, decode=decode, progress=progress)
    evaluation = _score(dataset, outcomes, settings)
    if folder is not None and journal is not None:
        _finish(evaluation, outcomes, journal, folder)
    return evaluation


def check_estimator(estimator: PoseEstimator, protocol: Protocol) -> None:
    """Check that the estimator's head and crops suit a protocol.

    Raises:
        ValueError: naming what is expected.
    """
    skeleton = estimator.config.skeleton(protocol.skeleton.name)
    if skeleton.num_keypoints != protocol.skeleton.num_keypoints:
        raise ValueError(
            f"{protocol.name}: expected a head of {protocol.skeleton.num_keypoints} keypoints, "
            f"got {skeleton.num_keypoints}"
        )
    if estimator.stretch != protocol.stretch:
        raise ValueError(
            f"{protocol.name}: expected an estimator with stretch={protocol.stretch}, got {estimator.stretch}"
        )


def check_images(paths: Sequence[pathlib.Path], count: int = 10) -> None:
    """Check that at least one of the first images exists; a few may be missing.

    Raises:
        ValueError: naming the first image, if none does.
    """
    if not any(path.exists() for path in paths[:count]):
        raise ValueError(
            f"{paths[0]}: expected an image, got no file for any of the first {count} images; "
            f"is this the folder of the images?"
        )


def check_output(folder: pathlib.Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Check that a folder holds no results of an evaluation, unless they are resumed or overwritten.

    Raises:
        ValueError: naming the folder and one of its files.
    """
    if not (resume or overwrite):
        for path in (*journals(folder), *_results(folder)):
            raise ValueError(f"{folder} already holds {path.name}; resume it, overwrite it or choose another folder")


def _results(folder: pathlib.Path) -> list[pathlib.Path]:
    return [folder / name for name in (METRICS, RESULTS, PER_KEYPOINT) if (folder / name).exists()]


def _open_journal(folder: pathlib.Path, settings: Settings, dataset: Dataset, *, resume: bool) -> Journal:
    return Journal(
        folder,
        settings.header(),
        dataset.protocol.skeleton.num_keypoints,
        resume=resume,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def _score(dataset: Dataset, outcomes: dict[int, Outcome], settings: Settings) -> Evaluation:
    """The evaluation of the outcomes."""
    poses = {index: outcome for index, outcome in outcomes.items() if not isinstance(outcome, str)}
    failures = {index: outcome for index, outcome in outcomes.items() if isinstance(outcome, str)}
    height, width = settings.image_size
    results = to_results(
        dataset,
        poses,
        image_size=(height, width),
        padding=settings.padding,
        nms=settings.oks_nms,
        keypoint_threshold=settings.keypoint_threshold,
        nms_threshold=settings.nms_threshold,
    )
    return Evaluation(
        metrics=measure(dataset, poses, results),
        per_keypoint=per_keypoint(dataset, poses),
        counts={
            "images": dataset.num_images,
            "images_with_boxes": len(dataset.samples),
            "boxes": dataset.num_boxes,
            "boxes_without_area": dataset.skipped_boxes,
            "results": len(results),
            "failed_images": len(failures) + len(dataset.failures),
            "failed_boxes": sum(len(dataset.samples[index].boxes) for index in failures),
        },
        failures=[
            *dataset.failures,
            *((str(dataset.samples[index].path), reason) for index, reason in failures.items()),
        ],
        results=results,
        settings=settings.to_dict(),
        deviations=settings.deviations(dataset.protocol),
    )


def _finish(evaluation: Evaluation, outcomes: dict[int, Outcome], journal: Journal, folder: pathlib.Path) -> None:
    """Write the files of an evaluation; the first process does, after it has everything."""
    first = jax.process_index() == 0
    if first:
        journal.rewrite(outcomes)
        _write(evaluation, folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("evaluation written")
    if first:
        journal.remove_others()


def _write(evaluation: Evaluation, folder: pathlib.Path) -> None:
    """Write results.json, per_keypoint.csv and, last, metrics.json."""
    # Old numbers, of other options of scoring, must not remain beside new results.
    (folder / METRICS).unlink(missing_ok=True)
    write_whole(folder / RESULTS, to_json(evaluation.results))
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
    write_whole(folder / METRICS, to_json(document, indent=1))


def to_json(document: object, **options: Any) -> bytes:
    """The bytes of a JSON file."""
    return (json.dumps(document, allow_nan=False, **options) + "\n").encode()
