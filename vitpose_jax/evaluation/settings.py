"""The settings of an evaluation: one record of everything that the numbers depend on.

Settings --+--> header()       the first line of the journal: what the poses depend on
           +--> to_dict()      "settings" in metrics.json
           +--> deviations()   where they differ from the published protocol, one line each
"""

import dataclasses
from typing import Any

import jax

from vitpose_jax import __version__
from vitpose_jax.bulk import settings as bulk_settings
from vitpose_jax.bulk.settings import hash_file
from vitpose_jax.datasets.dataset import Dataset
from vitpose_jax.datasets.protocols import Protocol
from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.evaluation.oks import KEYPOINT_THRESHOLD
from vitpose_jax.evaluation.scoring import NMS_THRESHOLD, Nms
from vitpose_jax.pipeline.regions import BOX_PADDING

FLOATING_POINT = "floating point"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoseSettings:
    """What the poses depend on, ready for JSON. A run can be resumed only with the same values.

    Attributes:
        dataset: the protocol's name.
        annotations: name and SHA-256 of the annotation file.
        detections: name and SHA-256 of the file of a detector's boxes; None for annotated boxes.
        boxes: their number.
        decode: how heatmaps become points.
        dtype: in which the network computes.
        runtime: "onnxruntime" or "openvino"; None for JAX.
        max_batch: the most boxes in one batch.
        flip_test: poses are averaged over the image and the mirrored image.
        border, padding, stretch: of the crops, see `PoseEstimator`.
        limit: only the first images; None for all.
        model_sha256: of configuration and weights; None if poses are not written to a folder.
    """

    dataset: str
    annotations: str
    detections: str | None
    boxes: int
    decode: str
    dtype: str
    runtime: str | None
    max_batch: int
    flip_test: bool
    border: str
    padding: float
    stretch: bool
    limit: int | None
    model_sha256: str | None

    def header(self) -> dict[str, Any]:
        """The settings of the poses alone, by name, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(PoseSettings)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PoseSettings):
    """Everything that the numbers of an evaluation depend on, ready for JSON.

    Attributes:
        model: the model's name.
        detector: the name of the detector that found the boxes in the same run; None for boxes of the annotations or
            of a file.
        weights: of the blocks: "floating point", "int8" or "int4" with the size of the groups.
        image_size: height and width of the crops in pixels.
        min_score: detections have at least this score.
        oks_nms, nms_threshold, keypoint_threshold: see `scoring.to_results`.
        versions: of vitpose_jax and jax.
    """

    model: str | None
    detector: str | None
    weights: str
    image_size: list[int]
    min_score: float
    oks_nms: Nms
    nms_threshold: float
    keypoint_threshold: float
    versions: dict[str, str]

    @classmethod
    def create(cls, estimator: PoseEstimator, dataset: Dataset, *, hash_model: bool, **options: Any) -> "Settings":
        """The settings of an evaluation.

        Args:
            estimator: the estimator.
            dataset: only the first images, if there is a limit.
            hash_model: hash the weights; slow for a large model.
            options: the remaining attributes: flip_test, decode, limit, model, detector, oks_nms,
                nms_threshold and keypoint_threshold.
        """
        return cls(
            dataset=dataset.protocol.name,
            annotations=hash_file(dataset.annotations),
            detections=None if dataset.detections is None else hash_file(dataset.detections),
            boxes=dataset.num_boxes,
            dtype=estimator.dtype.name,
            runtime=None if estimator.runtime == "jax" else estimator.runtime,
            max_batch=estimator.max_batch,
            border=estimator.border,
            padding=estimator.padding,
            stretch=estimator.stretch,
            model_sha256=bulk_settings.hash_model(estimator.model) if hash_model else None,
            weights=_describe_weights(estimator),
            image_size=list(estimator.config.image_size),
            min_score=dataset.min_score,
            versions={"vitpose_jax": __version__, "jax": jax.__version__},
            **options,
        )

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, ready for JSON."""
        return dataclasses.asdict(self)

    def published(self, protocol: Protocol) -> "Settings":
        """These settings with the values of the published protocol."""
        return dataclasses.replace(
            self,
            decode=protocol.decode,
            dtype="float32",
            runtime=None,
            weights=FLOATING_POINT,
            flip_test=True,
            border="opencv",
            padding=BOX_PADDING,
            limit=None,
            min_score=0.0,
            oks_nms=None if protocol.metric == "pckh" else "hard",
            nms_threshold=NMS_THRESHOLD,
            keypoint_threshold=KEYPOINT_THRESHOLD,
        )

    def deviations(self, protocol: Protocol) -> list[str]:
        """Where these settings differ from the published protocol, one line each."""
        boxes = "annotations" if self.detections is None else "detections"
        lines = [f"boxes of the {boxes}, not {protocol.boxes}"] if boxes != protocol.boxes else []
        published = self.published(protocol).to_dict()
        return lines + [
            f"{name} {value}, not {published[name]}"
            for name, value in self.to_dict().items()
            if value != published[name]
        ]


def _describe_weights(estimator: PoseEstimator) -> str:
    quantization = getattr(estimator.model, "quantization", None)
    if quantization is None:
        return FLOATING_POINT
    return "int8" if quantization.kind == "int8" else f"int4, groups of {quantization.group_size}"
