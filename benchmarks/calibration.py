"""What keypoint scores and peak widths say about the error, on labelled people. The plot needs matplotlib.

    python benchmarks/calibration.py --images coco_val/images --annotations coco_val/person_keypoints.json
    python benchmarks/calibration.py --images IMAGES --annotations FILE --output small_open/calibration   # and the plot

The closeness of a keypoint is its part of COCO's object keypoint similarity, exp(-d^2 / (2 area (2 sigma)^2)): 1 on the
label, 0.88 at half the distance that annotators differ by, 0.14 at twice that. Only labelled keypoints count, in their
annotated boxes.
"""

import argparse
import itertools
import pathlib

import numpy as np
from accuracy_tables import calibration_table
from common import report
from reports import ROOT

from vitpose_jax import PoseEstimator
from vitpose_jax.datasets import read_dataset
from vitpose_jax.evaluation.oks import object_keypoint_similarity
from vitpose_jax.skeletons import COCO

MODEL = "vitpose-small-open"
EDGES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, np.inf]
TARGET = ROOT / "docs" / "scores.png"


def measure(model: str, images: pathlib.Path, annotations: pathlib.Path) -> dict[str, np.ndarray]:
    """Closeness, score and relative width of the peak of every labelled keypoint."""
    estimator = PoseEstimator.from_pretrained(model)
    columns: dict[str, list[np.ndarray]] = {"closeness": [], "score": [], "width": []}
    for sample in read_dataset("coco", annotations, images).samples:
        poses, people = estimator(sample.path, sample.boxes, flip_test=True), sample.people
        for index in range(COCO.num_keypoints):
            visible = np.zeros_like(people.visible, bool)
            visible[:, index] = people.visible[:, index] > 0
            closeness = object_keypoint_similarity(
                poses.keypoints, people.keypoints, visible, people.areas, COCO.sigmas
            )
            labelled = visible[:, index]
            variance = np.trace(poses.covariances[:, index], axis1=-2, axis2=-1) / 2
            width = np.sqrt(variance / (sample.boxes[:, 2] * sample.boxes[:, 3]))
            columns["closeness"].append(closeness[labelled])
            columns["score"].append(poses.scores[labelled, index])
            columns["width"].append(width[labelled])
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value in the sorted ones."""
    places = np.empty(len(values))
    places[np.argsort(values, kind="stable")] = np.arange(len(values))
    return places


def summarise(columns: dict[str, np.ndarray]) -> tuple[list[dict], dict[str, float]]:
    """The rows of the table, and the correlations of the ranks of scores and widths with those of the closeness."""
    closeness, scores, widths = columns["closeness"], columns["score"], columns["width"]
    rows = []
    for low, high in itertools.pairwise(EDGES):
        inside = (scores >= low) & (scores < high)
        if inside.any():
            rows.append(
                {
                    "low": low,
                    "high": None if high == np.inf else high,
                    "keypoints": int(inside.sum()),
                    "closeness": float(closeness[inside].mean()),
                    "near": float((closeness[inside] >= 0.5).mean()),
                }
            )
    finite = np.isfinite(widths)
    order = {"score": np.corrcoef(ranks(scores), ranks(closeness))[0, 1]}
    order["width"] = np.corrcoef(ranks(widths[finite]), ranks(closeness[finite]))[0, 1]
    return rows, {name: float(value) for name, value in order.items()}


def draw(rows: list[dict], title: str, target: pathlib.Path) -> None:
    """Closeness against score, with the number of keypoints."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    middles = [row["low"] + 0.05 for row in rows]
    figure, axis = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    axis.bar(middles, [row["near"] for row in rows], width=0.09, color="#9cc9f5", label="closer than 0.5")
    axis.plot(middles, [row["closeness"] for row in rows], marker="o", color="#e07b1f", label="mean closeness")
    for middle, row in zip(middles, rows, strict=True):
        axis.text(middle, 0.02, str(row["keypoints"]), ha="center", fontsize=7)
    axis.set(xlabel="keypoint score", ylim=(0, 1), title=title)
    axis.set_xticks([row["low"] for row in rows])
    axis.legend(loc="upper left")
    figure.savefig(target, dpi=110)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=MODEL)
    options.add_argument("--images", required=True, help="folder of the images")
    options.add_argument("--annotations", required=True, help="COCO's keypoint annotations")
    options.add_argument("--output", metavar="NAME", help="write results/NAME.json, and draw docs/scores.png")
    return options


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    columns = measure(options.model, pathlib.Path(options.images), pathlib.Path(options.annotations))
    rows, correlations = summarise(columns)
    report(calibration_table(rows, correlations), rows, options, rank_correlations=correlations)
    if options.output:
        draw(rows, f"{options.model}, {len(columns['score'])} labelled keypoints", TARGET)
        print(TARGET)


if __name__ == "__main__":
    main()
