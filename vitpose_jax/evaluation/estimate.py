"""The poses of a whole dataset, block by block.

    dataset --> blocks of some hundred boxes --> PoseEstimator.stream --> outcomes --> journal

Each block goes through the estimator as one stream and is written to the journal when it is done: a killed run resumes
with the next block. A block always holds the same images, whichever process computes it. So a run that was resumed, or
divided among processes, ends with the same bytes as any other run.
"""

import io
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from vitpose_jax.datasets.dataset import Dataset
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.evaluation.journal import DECIMALS, Journal, Outcome, from_lines, to_lines
from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.poses import Poses
from vitpose_jax.serving.flow import PREFETCH, ItemError

# A block ends with the image that brings it to `max_batch` boxes times this. Between blocks the device waits for the
# first images to be read; a kill loses at most one block.
BATCHES_IN_BLOCK = 8


def estimate_poses(
    estimator: PoseEstimator,
    dataset: Dataset,
    journal: Journal | None,
    *,
    flip_test: bool,
    decode: Decode,
    progress: bool = False,
) -> dict[int, Outcome]:
    """The poses in all boxes of a dataset.

    Every process computes its part of the blocks and returns the outcomes of all.

    Args:
        estimator: the estimator.
        dataset: as read.
        journal: poses in it are not computed again, new ones are appended; None for no journal.
        flip_test: average with the mirrored image.
        decode: how heatmaps become points.
        progress: show a bar on standard error.

    Returns:
        for each image, by its index in `dataset.samples`, the poses or the reason why there are none.
    """
    process, processes = jax.process_index(), jax.process_count()
    resumed = {} if journal is None else journal.outcomes
    # Images that failed are tried again.
    resumed = {index: outcome for index, outcome in resumed.items() if not isinstance(outcome, str)}
    blocks = list(_blocks(dataset, BATCHES_IN_BLOCK * estimator.max_batch))
    to_compute = [block for block in blocks[process::processes] if not set(block) <= resumed.keys()]
    computed: dict[int, Outcome] = {}
    with _bar(dataset, to_compute, shown=progress and process == 0) as bar:
        for block in to_compute:
            outcomes = {}
            for index, outcome in _run(estimator, dataset, block, flip_test=flip_test, decode=decode):
                outcomes[index] = outcome
                bar.update(len(dataset.samples[index].boxes))
            if journal is not None:
                journal.append(outcomes)
            computed |= outcomes
    # Every process has read the whole journal: only new outcomes are exchanged.
    return dict(sorted((resumed | _gather(computed, dataset.protocol.skeleton.num_keypoints)).items()))


def _blocks(dataset: Dataset, size: int) -> Iterator[list[int]]:
    """Indices of consecutive images that together have `size` boxes or a few more."""
    block: list[int] = []
    boxes = 0
    for index, sample in enumerate(dataset.samples):
        block.append(index)
        boxes += len(sample.boxes)
        if boxes >= size:
            yield block
            block, boxes = [], 0
    if block:
        yield block


def _run(
    estimator: PoseEstimator, dataset: Dataset, block: list[int], *, flip_test: bool, decode: Decode
) -> Iterator[tuple[int, Outcome]]:
    """The outcomes of a block's images, by index."""
    samples = [dataset.samples[index] for index in block]
    stream = estimator.stream(
        ((sample.path, sample.boxes) for sample in samples),
        dataset=dataset.protocol.skeleton.name,
        flip_test=flip_test,
        decode=decode,
        prefetch=max(PREFETCH, estimator.max_batch),
        errors="return",
    )
    for index, poses in zip(block, stream, strict=True):
        yield index, str(poses.__cause__ or poses) if isinstance(poses, ItemError) else _outcome(poses)


def _outcome(poses: Poses) -> Outcome:
    """The poses as one rounded array; a reason if they are not finite."""
    points = np.concatenate([poses.keypoints, poses.scores[..., None]], axis=-1).astype(np.float64)
    if not np.isfinite(points).all():
        return "the model's keypoints are not finite"
    return np.round(points, DECIMALS) + 0.0  # -0 becomes 0


def _bar(dataset: Dataset, blocks: list[list[int]], *, shown: bool) -> Any:
    boxes = sum(len(dataset.samples[index].boxes) for index in itertools.chain.from_iterable(blocks))
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
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    for process, (row, length) in enumerate(zip(gathered, lengths, strict=True)):
        if process != jax.process_index():
            outcomes = outcomes | from_lines(io.BytesIO(row[:length].tobytes()), num_keypoints)
    return outcomes
