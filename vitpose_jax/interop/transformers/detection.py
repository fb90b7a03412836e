"""RTDetrForObjectDetection and its processor: from images to boxes."""

import os
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitpose_jax.convert.detectors import load_detector, write_detector
from vitpose_jax.convert.formats.hub_keys import read_preprocessor
from vitpose_jax.convert.formats.rtdetr import images_config
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.interop.transformers.arrays import HUB_OPTIONS, BatchFeature, ModelOutput, kind_of, to_array, to_kind
from vitpose_jax.interop.transformers.configuration import RTDetrConfig
from vitpose_jax.interop.transformers.image_processing import as_list, to_pixels
from vitpose_jax.interop.transformers.modeling import LoadOptions, PreTrainedModel
from vitpose_jax.pipeline.resize import resize, resize_matrix
from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.modeling import RtDetr
from vitpose_jax.rtdetr.postprocess import find_objects
from vitpose_jax.rtdetr.preprocess import prepare
from vitpose_jax.storage.tensors import CONFIG_FILE, read_json


class RTDetrObjectDetectionOutput(ModelOutput):
    """What `RTDetrForObjectDetection` returns.

    Attributes:
        logits: (n, queries, classes).
        pred_boxes: (n, queries, 4), middle x and y, width and height as fractions of the image.
        last_hidden_state: the queries after the last layer, (n, queries, dim).
        intermediate_hidden_states, intermediate_logits: the same after each layer, (n, layers, queries, ...).
    """

    FIELDS: ClassVar[tuple[str, ...]] = (
        "logits",
        "pred_boxes",
        "last_hidden_state",
        "intermediate_hidden_states",
        "intermediate_logits",
    )


class RTDetrImageProcessor:
    """Resizes, scales and normalises images; makes boxes of what the model returns.

    Args:
        values: the keys of a preprocessor_config.json.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, **values: Any):
        self.values = values
        # Only the fields that images_config sets are used.
        self.settings = DetectorConfig(**images_config(values), num_queries=1)
        self.size = dict(zip(("height", "width"), self.settings.image_size, strict=True))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> "RTDetrImageProcessor":
        """The processor of a Hub id or a folder; `kwargs` are options of the Hub, and keys instead of the file's."""
        options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = resolve_source(name, weights=False, **options)
        return cls(**{**(read_preprocessor(folder) or {}), **kwargs})

    def __call__(self, images: Any, *, return_tensors: str | None = None) -> BatchFeature:
        """`preprocess`."""
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(self, images: Any, *, return_tensors: str | None = None) -> BatchFeature:
        """`pixel_values`, (n, 3, 640, 640), float32.

        Args:
            images: one image or a list: PIL, paths, or arrays of NumPy, JAX or PyTorch with values from 0 to 255.
            return_tensors: "np", "jax" or "pt"; None for "np".
        """
        resized = []
        for image in as_list(images):
            pixels, _ = to_pixels(image, None)
            down, across = map(resize_matrix, pixels.shape[:2], self.settings.image_size)
            rows, columns = down.shape[2] - pixels.shape[0], across.shape[2] - pixels.shape[1]
            resized.append(resize(np.pad(pixels, ((0, rows), (0, columns), (0, 0))), down, across))
        pixels = jnp.moveaxis(prepare(jnp.stack(resized), self.settings), -1, 1)
        return BatchFeature(pixel_values=to_kind(pixels, "np" if return_tensors is None else str(return_tensors)))

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None, use_focal_loss: bool = True
    ) -> list[dict[str, Any]]:
        """The objects of each image, the highest score first.

        Args:
            outputs: of the model.
            threshold: only objects with a higher score.
            target_sizes: (height, width) of each image in pixels; None gives boxes as fractions of the image.
            use_focal_loss: always true: no model here was trained otherwise.

        Returns:
            For each image a dict: "scores" (n,), "labels" (n,), "boxes" (n, 4), x1 y1 x2 y2.

        Raises:
            ValueError: if there are not as many target sizes as images.
        """
        if not use_focal_loss:
            raise ValueError("use_focal_loss: expected True, with which every RT-DETR was trained")
        logits, boxes = (jnp.asarray(to_array(value), jnp.float32) for value in (outputs.logits, outputs.pred_boxes))
        n, queries, classes = logits.shape
        sizes = np.ones((n, 2)) if target_sizes is None else np.asarray([to_array(size) for size in target_sizes])
        if len(sizes) != n:
            raise ValueError(f"target_sizes: expected (height, width) for each of {n} images, got {len(sizes)}")
        objects = find_objects(logits, boxes, jnp.asarray(sizes, jnp.float32), jnp.ones(classes, bool), queries)
        results, kind = [], kind_of(outputs.logits)
        for xywh, scores, labels in zip(*map(np.asarray, objects), strict=True):
            rows = scores > threshold
            corners = np.concatenate([xywh[rows, :2], xywh[rows, :2] + xywh[rows, 2:]], axis=1)
            found = {"scores": scores[rows], "labels": labels[rows].astype(np.int64), "boxes": corners}
            results.append({name: to_kind(value, kind) for name, value in found.items()})
        return results


class RTDetrForObjectDetection(PreTrainedModel):
    """An RT-DETR or RT-DETRv2.

    Args:
        config: its keys; the weights are random.
        seed: of the random weights.

    Attributes:
        network: the `RtDetr` of this library.
    """

    config_class = RTDetrConfig

    def __init__(self, config: RTDetrConfig, *, seed: int = 0):
        super().__init__(config, RtDetr(config.to_own(), rngs=nnx.Rngs(seed)))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a detector.

        Args:
            name: a Hub id or a folder.
            kwargs: dtype, device_map, revision, ..., as in `VitPoseForPoseEstimation.from_pretrained`.

        Raises:
            ValueError: if it is not found, is damaged or is not an RT-DETR.
            TypeError: for an unknown argument.
        """
        options = LoadOptions(kwargs)
        if options.quantize:
            raise ValueError("quantization_config: expected none for a detector, which stays in floating point")
        dtype = jnp.dtype(jnp.float32) if isinstance(options.dtype, str) else options.dtype
        folder = resolve_source(name, **options.hub)
        network = load_detector(folder, dtype=dtype)
        if not isinstance(network, RtDetr):
            raise ValueError(f"{name}: expected an RT-DETR, got a {type(network).__name__}; see vitpose_jax.Detector")
        model = cls.__new__(cls)
        PreTrainedModel.__init__(model, RTDetrConfig(**read_json(folder / CONFIG_FILE)), network, options.device)
        return model

    @property
    def dtype(self) -> Any:
        """The dtype that the model computes in."""
        return jnp.dtype(self.network.dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, preprocessor_config.json and model.safetensors, which transformers loads."""
        write_detector(self.network, Path(folder), overwrite=True)  # pyright: ignore[reportArgumentType]

    def __call__(self, pixel_values: Any, *, return_dict: bool = True) -> Any:
        """Find objects in images.

        Args:
            pixel_values: (n, 3, height, width), of NumPy, JAX or PyTorch; results are of the same.
            return_dict: False returns a tuple.

        Raises:
            ValueError: for images of another size.
        """
        values = self.run(_forward, (), to_array(pixel_values))
        kind = kind_of(pixel_values)
        output = RTDetrObjectDetectionOutput(
            **{name: to_kind(value, kind, pixel_values) for name, value in values.items()}
        )
        return output if return_dict else output.to_tuple()

    forward = __call__


class RTDetrV2ForObjectDetection(RTDetrForObjectDetection):
    """An RT-DETRv2; config.json says which of the two a checkpoint is."""


def _forward(model: RtDetr, pixel_values: jax.Array) -> dict[str, jax.Array]:
    output = model(jnp.moveaxis(pixel_values, 1, -1))
    return {
        "logits": output.logits,
        "pred_boxes": output.boxes,
        "last_hidden_state": output.queries[-1],
        "intermediate_hidden_states": jnp.moveaxis(output.queries, 0, 1),
        "intermediate_logits": jnp.moveaxis(output.layer_logits, 0, 1),
    }
