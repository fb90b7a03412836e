"""VitPoseImageProcessor: from images and boxes to `pixel_values`, and from heatmaps back to keypoints."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitpose_jax.convert.formats.hub_keys import PREPROCESSOR_FILE, read_preprocessor
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.images import load_image
from vitpose_jax.interop.transformers.arrays import HUB_OPTIONS, BatchFeature, is_torch, kind_of, to_array, to_kind
from vitpose_jax.pipeline.packing import pack_images, pixel_bucket
from vitpose_jax.pipeline.postprocess import decode_regions
from vitpose_jax.pipeline.preprocess import crop_regions, normalize
from vitpose_jax.pipeline.regions import BOX_PADDING, boxes_to_regions, check_boxes
from vitpose_jax.pixels.arrays import split_batch
from vitpose_jax.pretrained import describe
from vitpose_jax.storage import atomic
from vitpose_jax.storage.text import shorten
from vitpose_jax.vitpose.config import IMAGENET_MEAN, IMAGENET_STD

FIRST, LAST = "channels_first", "channels_last"
# transformers divides a box by normalize_factor and multiplies it by this number.
UNIT = 200.0


class VitPoseImageProcessor:
    """Crops, scales and normalises; decodes heatmaps. The arguments are those of transformers.

    Args:
        do_affine_transform: crop the boxes; False takes whole images of one size as they are.
        size: {"height": 256, "width": 192} of a crop, in pixels.
        do_rescale, rescale_factor: multiply pixel values by the factor.
        do_normalize, image_mean, image_std: subtract the mean and divide by the standard deviation.
        normalize_factor: 200; another number n pads boxes by 200 / n more.
        kwargs: other keys of a preprocessor_config.json, which are kept.
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        do_affine_transform: bool = True,
        size: dict[str, int] | None = None,
        do_rescale: bool = True,
        rescale_factor: float | int = 1 / 255,
        do_normalize: bool = True,
        image_mean: Any = None,
        image_std: Any = None,
        normalize_factor: float | int = UNIT,
        **kwargs: Any,
    ):
        self.do_affine_transform = do_affine_transform
        self.size = {"height": 256, "width": 192} if size is None else dict(size)
        self.do_rescale, self.rescale_factor = do_rescale, rescale_factor
        self.do_normalize, self.normalize_factor = do_normalize, normalize_factor
        self.image_mean = list(IMAGENET_MEAN) if image_mean is None else image_mean
        self.image_std = list(IMAGENET_STD) if image_std is None else image_std
        self.other = kwargs

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> "VitPoseImageProcessor":
        """The processor of a checkpoint.

        Args:
            name: a Hub id, a folder or a bundled model.
            kwargs: revision, cache_dir, token, local_files_only; or arguments of the class, which replace the file's.

        Raises:
            ValueError: if there is no such checkpoint.
        """
        options = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        path = resolve_source(name, weights=False, **options)
        values = read_preprocessor(path) if path.is_dir() else None
        if values is None:
            config = describe(path).config
            values = {"size": dict(zip(("height", "width"), config.image_size, strict=True))}
            values |= {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
        values = {key: value for key, value in {**values, **kwargs}.items() if value is not None}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        values = {key: value for key, value in vars(self).items() if key != "other"}
        return {**self.other, **values, "image_processor_type": "VitPoseImageProcessor"}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> list[str]:
        """Write preprocessor_config.json into a folder; returns its path in a list."""
        path = Path(folder) / PREPROCESSOR_FILE
        atomic.write_whole(path, (json.dumps(self.to_dict(), indent=2) + "\n").encode())
        return [str(path)]

    def __call__(self, images: Any, boxes: Any = None, **kwargs: Any) -> BatchFeature:
        """`preprocess`."""
        return self.preprocess(images, boxes, **kwargs)

    def preprocess(
        self,
        images: Any,
        boxes: Any = None,
        *,
        do_affine_transform: bool | None = None,
        size: dict[str, int] | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | int | None = None,
        do_normalize: bool | None = None,
        normalize_factor: float | int | None = None,
        image_mean: Any = None,
        image_std: Any = None,
        return_tensors: str | None = None,
        data_format: Any = FIRST,
        input_data_format: Any = None,
    ) -> BatchFeature:
        """Crops of the boxes of images.

        Args:
            images: one image or a list: PIL, paths, or arrays of NumPy, JAX or PyTorch. Whole numbers are pixel values
                from 0 to 255. With `do_rescale=False`, fractions are pixel values from 0 to 1; they are rounded to
                multiples of 1/255.
            boxes: for each image its boxes, x y w h in pixels: lists or arrays. Images may have different numbers of
                boxes, also none.
            return_tensors: "np", "jax" or "pt"; None for "np".
            data_format: "channels_first" or "channels_last" of the result.
            input_data_format: the same of arrays; None to tell it from their shape.

        The other arguments replace the processor's.

        Returns:
            `pixel_values`, (crops, channels, height, width), float32: the boxes of the first image, then the second's.

        Raises:
            ValueError: if there are not as many lists of boxes as images, for a box that is not four finite numbers
                with an area, and for an unknown format.
        """
        size = self.size if size is None else size
        crop = self.do_affine_transform if do_affine_transform is None else do_affine_transform
        rescale = self.do_rescale if do_rescale is None else do_rescale
        factor = (self.rescale_factor if rescale_factor is None else rescale_factor) if rescale else 1.0
        mean, std = ([0.0] * 3, [1.0] * 3)
        if self.do_normalize if do_normalize is None else do_normalize:
            mean, std = (
                np.broadcast_to(own if value is None else value, 3).tolist()
                for value, own in ((image_mean, self.image_mean), (image_std, self.image_std))
            )
        arrays = [to_pixels(image, _format(input_data_format)) for image in as_list(images)]
        values = [array for array, _ in arrays]
        # Fractions were multiplied by 255.
        fractions = bool(arrays) and arrays[0][1]
        if crop and boxes is not None:
            padding = BOX_PADDING * UNIT / (self.normalize_factor if normalize_factor is None else normalize_factor)
            pixels = _crop(values, self._rows(boxes, len(values)), (size["height"], size["width"]), padding)
        else:
            pixels = jnp.asarray(np.stack(values), jnp.float32)
        pixels = normalize(pixels * (factor * 255.0 / (255.0 if fractions else 1.0)), tuple(mean), tuple(std))
        pixels = jnp.moveaxis(pixels, -1, 1) if _format(data_format or FIRST) == FIRST else pixels
        return BatchFeature(pixel_values=to_kind(pixels, "np" if return_tensors is None else str(return_tensors)))

    def post_process_pose_estimation(
        self,
        outputs: Any,
        boxes: Any,
        kernel_size: int = 11,
        threshold: float | None = None,
        target_sizes: Any = None,
        *,
        outputs_flipped: Any = None,
    ) -> list[list[dict[str, Any]]]:
        """Keypoints of each box of each image.

        Args:
            outputs: of the model; `heatmaps` is read, of the model's crops of `boxes`.
            boxes: as in `preprocess`. With `target_sizes`, x y w h as fractions of the image.
            kernel_size: pixels of the Gaussian blur, an odd number.
            threshold: only keypoints with a higher score; None for all.
            target_sizes: (height, width) of each image, in pixels; None if boxes are in pixels.
            outputs_flipped: of the mirrored crops with `flip_pairs`; the heatmaps are averaged.

        Returns:
            For each image a list with one dict for each box: "keypoints" (K, 2), x and y in pixels; "scores" (K,), the
            peak values; "labels" (K,), the keypoints' indices; "bbox" (4,), the box as x1 y1 x2 y2.

        Raises:
            ValueError: if heatmaps, boxes and target sizes do not go together.
        """
        like = outputs.heatmaps
        heatmaps = jnp.asarray(to_array(like), jnp.float32)
        if outputs_flipped is not None:
            heatmaps = (heatmaps + jnp.asarray(to_array(outputs_flipped.heatmaps), jnp.float32)) / 2
        rows = self._rows(boxes, len(boxes), _sizes(target_sizes, boxes))
        flat = np.concatenate([np.zeros((0, 4), np.float32), *rows])
        padding = BOX_PADDING * UNIT / self.normalize_factor
        regions = boxes_to_regions(flat, (self.size["height"], self.size["width"]), padding=padding)
        heatmaps = jnp.moveaxis(heatmaps, 1, -1)
        keypoints, scores = map(
            np.asarray, decode_regions(heatmaps, regions, decode="transformers", kernel_size=kernel_size)
        )
        labels, results, index, kind = np.arange(scores.shape[1]), [], 0, kind_of(like)
        for image_boxes in rows:
            results.append([])
            for x, y, width, height in image_boxes:
                keep = slice(None) if threshold is None else scores[index] > float(threshold)
                pose = {"keypoints": keypoints[index][keep], "scores": scores[index][keep], "labels": labels[keep]}
                pose["bbox"] = np.asarray([x, y, x + width, y + height], np.float32)
                results[-1].append({name: to_kind(value, kind) for name, value in pose.items()})
                index += 1
        return results

    def _rows(self, boxes: Any, count: int, sizes: np.ndarray | None = None) -> list[np.ndarray]:
        """The boxes of each image, checked, in pixels."""
        if len(boxes) != count:
            raise ValueError(f"boxes: expected a list for each of {count} images, got {len(boxes)}")
        rows = [to_array(list(image) if isinstance(image, tuple) else image) for image in boxes]
        if sizes is not None:
            factors = np.tile(sizes[:, ::-1], 2)
            rows = [np.reshape(row, (-1, 4)) * factor for row, factor in zip(rows, factors, strict=True)]
        return [check_boxes(np.asarray(row), name=f"boxes[{image}]") for image, row in enumerate(rows)]


def _crop(images: list[np.ndarray], rows: list[np.ndarray], size: tuple[int, int], padding: float) -> Any:
    """Pixel values of the crops of all boxes."""
    owners = np.repeat(np.arange(len(images)), [len(row) for row in rows])
    if not len(owners):
        return jnp.zeros((0, *size, 3), jnp.float32)
    regions = boxes_to_regions(np.concatenate(rows), size, padding=padding)
    pixels = sum(image.shape[0] * image.shape[1] for image in images)
    return crop_regions(pack_images(images, pixel_bucket(pixels)).select(owners), regions, size)


def _sizes(target_sizes: Any, boxes: Any) -> np.ndarray | None:
    if target_sizes is None:
        return None
    sizes = np.asarray([to_array(size) for size in target_sizes], np.float64).reshape(-1, 2)
    if len(sizes) != len(boxes):
        raise ValueError(f"target_sizes: expected (height, width) for each of {len(boxes)} images, got {len(sizes)}")
    return sizes


def as_list(images: Any) -> list[Any]:
    """One image, a list or a batch in one array, as a list."""
    images = split_batch(images)
    return list(images) if isinstance(images, list | tuple) else [images]


def _format(value: Any) -> str | None:
    if value is None:
        return None
    name = str(getattr(value, "value", value))
    if name not in (FIRST, LAST):
        raise ValueError(f"data_format: expected {FIRST} or {LAST}, got {shorten(value)}")
    return name


def to_pixels(image: Any, layout: str | None) -> tuple[np.ndarray, bool]:
    """An image as uint8 (height, width, 3), and whether its values were fractions of 255."""
    if not (is_torch(image) or hasattr(image, "shape")):
        return load_image(image), False
    array = np.asarray(to_array(image))
    if array.ndim == 3 and (layout == FIRST or (layout is None and array.shape[0] in (1, 3))):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    if array.dtype == np.uint8:
        return load_image(np.ascontiguousarray(array)), False
    if not np.isfinite(array).all() or array.min(initial=0) < 0 or array.max(initial=0) > 255:
        raise ValueError("images: expected pixel values from 0 to 255, or fractions from 0 to 1")
    fractions = bool((array != np.floor(array)).any())
    if fractions and array.max() > 1:
        raise ValueError("images: expected whole pixel values from 0 to 255, or fractions from 0 to 1, got a mixture")
    return load_image(np.rint(array * (255 if fractions else 1)).astype(np.uint8)), fractions
