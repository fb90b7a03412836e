"""People to train on: each with the part of its image that augmentation can reach.

A training crop needs only the pixels around its box. They are cut out as whole pixels, a window of the image: nothing
is resampled, so a crop of the window equals the crop of the image.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from vitpose_jax.datasets.archives import ImageStore, Paths, folder_and_archives
from vitpose_jax.datasets.dataset import Dataset, read_dataset
from vitpose_jax.datasets.protocols import Protocol
from vitpose_jax.datasets.sizes import check_size
from vitpose_jax.pipeline.regions import BOX_PADDING, Regions, boxes_to_regions
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.text import shorten
from vitpose_jax.training.augment import Augmentation
from vitpose_jax.training.name_rules import compile_pattern, match_start

Weights: TypeAlias = Mapping[str, int | float] | Callable[[str], int | float | Sequence[int | float]]

# Datasets that the original trains without half-body augmentation.
WHOLE_BODIES = ("mpii",)
ORIGINAL = Augmentation()

_log = logging.getLogger(__name__)


class Person(NamedTuple):
    """A person and a window of its image. Coordinates are in pixels of the window.

    Attributes:
        image: the window, RGB.
        offset: (x, y) of the window's first pixel in the image.
        center, scale: of the box, from `boxes_to_regions` as for inference.
        keypoints: (x, y); any value if not labelled.
        visible: 0 not labelled, 1 labelled but hidden, 2 visible.
        weights: weight of each keypoint's label.
        path: path of the image.
    """

    image: UInt8[np.ndarray, "height width 3"]
    offset: Int32[np.ndarray, "2"]
    center: Float32[np.ndarray, "2"]
    scale: Float32[np.ndarray, "2"]
    keypoints: Float32[np.ndarray, "K 2"]
    visible: Int32[np.ndarray, " K"]
    weights: Float32[np.ndarray, " K"]
    path: str


class PersonSource:
    """The annotated people of a dataset, by index. It can be pickled, and read by several threads.

    Args:
        dataset: a dataset with annotated boxes, not a detector's.
        size: height and width of the crops.
        archives: .zip files that hold the images, see `ImageStore`; () if the images are files.
        load: reads an image by its path, as uint8 RGB, instead of `ImageStore`: for images in memory
            `{"a.png": image, ...}.__getitem__`. Loader workers need one that can be pickled.
        augmentation: the augmentation of the crops: a window holds all pixels that it can reach.
        min_keypoints: people with fewer labelled keypoints are left out.
        weights: weights of the labels, 0 or more: a function of the image's file name that returns a number or K
            numbers; or a mapping from regular expressions to numbers: the first expression that matches the start of
            the file name counts, and the weight is 1 if none does. Keypoints of weight 0 count as not labelled; people
            without other keypoints are left out.
        cache: "memory" keeps decoded windows, in each process separately.
        skip_broken: if an image cannot be read, use the next person instead, log it and add it to `broken`. Otherwise
            it is an error.

    Attributes:
        broken: paths of the images that this process could not read.

    Raises:
        ValueError: for a detector's boxes; if no person is left; for an image that no archive holds, a pattern that no
            file name matches, or weights that are negative, not finite or not K; for `load` together with `archives`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        size: tuple[int, int] = (256, 192),
        archives: Paths = (),
        load: Callable[[str], UInt8[np.ndarray, "height width 3"]] | None = None,
        augmentation: Augmentation = ORIGINAL,
        min_keypoints: int = 1,
        weights: Weights | None = None,
        cache: Literal["memory"] | None = None,
        skip_broken: bool = False,
    ) -> None:
        if dataset.detections is not None:
            raise ValueError(f"{dataset.annotations}: expected annotated boxes, got those of {dataset.detections}")
        if cache not in (None, "memory"):
            raise ValueError(f"cache: expected 'memory' or None, got {cache!r}")
        if load is not None and archives:
            raise ValueError("expected load or archives, got both")
        self.protocol: Protocol = dataset.protocol
        self.size = size
        self.skip_broken = skip_broken
        self.broken: set[str] = set()
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] | None = None if cache is None else {}
        store = ImageStore(archives)
        self._load = store.load if load is None else load
        paths = [str(sample.path) for sample in dataset.samples]
        for path in paths if store.archives else ():
            store.find(path)
        image_indices = np.repeat(np.arange(len(paths)), [len(sample.people) for sample in dataset.samples])
        people = [sample.people for sample in dataset.samples]
        count = self.skeleton.num_keypoints
        boxes = np.concatenate([np.zeros((0, 4)), *(group.boxes for group in people)])
        visible = np.concatenate([np.zeros((0, count), np.int32), *(group.visible for group in people)])
        keypoints = np.concatenate([np.zeros((0, count, 2)), *(group.keypoints for group in people)])
        label_weights = _label_weights(weights, paths, count)[image_indices]
        visible = np.where(label_weights > 0, visible, 0)
        usable = ((visible > 0).sum(axis=1) >= min_keypoints) & label_weights.any(axis=1)
        if not usable.any():
            raise ValueError(
                f"{dataset.annotations}: expected people with {min_keypoints} or more keypoints, "
                f"got none among {len(usable)}"
            )
        self._paths = [paths[index] for index in image_indices[usable]]
        self._sizes = [dataset.samples[index].size for index in image_indices[usable]]
        self._keypoints, self._visible = keypoints[usable].astype(np.float32), visible[usable].astype(np.int32)
        self._weights = label_weights[usable].astype(np.float32)
        regions = boxes_to_regions(boxes[usable], size, stretch=self.protocol.stretch)
        self._center, self._scale = np.asarray(regions.center), np.asarray(regions.scale)
        self._windows = reachable_windows(
            regions,
            self._keypoints,
            self._visible > 0,
            upper_body=self.upper_body,
            size=size,
            augmentation=augmentation,
        )

    @classmethod
    def read(
        cls, name: str | Protocol, annotations: str | os.PathLike, images: Paths, **options: Any
    ) -> "PersonSource":
        """The people of a dataset on disk.

        Args:
            name, annotations: as in `read_dataset`.
            images: the folder of the images, or .zip archives in that folder: one, several or a glob pattern. File
                names in the annotations are relative to the folder.
            options: the other arguments of this class.

        Raises:
            ValueError: as in `read_dataset`, `ImageStore` and this class; for archives in several folders.
        """
        folder, archives = folder_and_archives(images)
        return cls(read_dataset(name, annotations, folder), archives=archives, **options)

    @property
    def skeleton(self) -> Skeleton:
        """The skeleton of the annotations."""
        return self.protocol.skeleton

    @property
    def upper_body(self) -> Bool[np.ndarray, " K"]:
        """True for keypoints of the upper body; all False if the dataset is trained without half bodies."""
        half_bodies = self.protocol.name not in WHOLE_BODIES
        return np.isin(np.arange(self.skeleton.num_keypoints), self.skeleton.upper_body) & half_bodies

    def __repr__(self) -> str:
        return f"PersonSource({self.protocol.name}, {len(self)} people)"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": None if self._cache is None else {}, "broken": set()}

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Person:
        """A person.

        Raises:
            IndexError: for an index out of range.
            ValueError, OSError: if the image cannot be read, or has another size than annotated, naming it; with
                `skip_broken`, if no image can be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected 0 to {len(self) - 1}, got {index}")
        for candidate in (*range(index, len(self)), *range(index)) if self.skip_broken else (index,):
            try:
                return self._person(candidate)
            except (ValueError, OSError) as error:
                path = self._paths[candidate]
                if not self.skip_broken:
                    raise
                if path not in self.broken:
                    self.broken.add(path)
                    _log.warning("skipped broken image %d of this process: %s", len(self.broken), error)
        raise ValueError(f"{self!r}: expected an image that can be read, got none")

    def _person(self, index: int) -> Person:
        path = self._paths[index]
        if self._cache is not None and index in self._cache:
            window, offset = self._cache[index]
        else:
            image = self._load(path)
            check_size(path, self._sizes[index], (image.shape[1], image.shape[0]))
            left, top, right, bottom = _inside(self._windows[index], *image.shape[:2])
            window, offset = image[top:bottom, left:right], np.array([left, top], np.int32)
            if self._cache is not None:
                window = window.copy()  # a view would keep the whole image in memory
                self._cache[index] = window, offset
        return Person(
            image=window,
            offset=offset,
            center=(self._center[index] - offset).astype(np.float32),
            scale=self._scale[index],
            keypoints=(self._keypoints[index] - offset).astype(np.float32),
            visible=self._visible[index],
            weights=self._weights[index],
            path=path,
        )


def _label_weights(weights: Weights | None, paths: list[str], num_keypoints: int) -> Float[np.ndarray, "images K"]:
    """The weights of the keypoints, for each image."""
    names = [os.path.basename(path) for path in paths]
    result = np.ones((len(names), num_keypoints))
    if isinstance(weights, Mapping):
        patterns = {compile_pattern(pattern): weight for pattern, weight in weights.items()}
        for pattern in patterns:
            if not any(match_start(pattern, name) for name in names):
                raise ValueError(f"weights: expected file names that start with {shorten(pattern.pattern)}, got none")
        for row, name in zip(result, names, strict=True):
            row[:] = next((weight for pattern, weight in patterns.items() if match_start(pattern, name)), 1.0)
    elif weights is not None:
        for row, name in zip(result, names, strict=True):
            weight = np.asarray(weights(name), np.float64)
            if weight.shape not in ((), (num_keypoints,)):
                raise ValueError(
                    f"weights: {name}: expected a number or {num_keypoints} numbers, got shape {weight.shape}"
                )
            row[:] = weight
    for name, row in zip(names, result, strict=True):
        if not np.isfinite(row).all() or (row < 0).any():
            raise ValueError(f"weights: {name}: expected finite numbers, 0 or more, got {row.tolist()}")
    return result


def reachable_windows(
    regions: Regions,
    keypoints: Float[np.ndarray, "n K 2"],
    visible: Bool[np.ndarray, "n K"],
    *,
    upper_body: Bool[np.ndarray, " K"],
    size: tuple[int, int] = (256, 192),
    augmentation: Augmentation = ORIGINAL,
) -> Int[np.ndarray, "n 4"]:
    """Windows that hold every pixel that `augment_crops` can sample.

    A region of width w and height h, rotated by up to A degrees, extends max(w/2 |cos a| + h/2 |sin a|) over |a| <= A
    to each side of its centre; likewise up and down. Its maximum size is 1 + `scale` times the size of the box or of
    the half body, and the box is also shifted by `jitter`. With the default augmentation and a box of the crop's
    aspect, that is 1.41 times the padded region's width to each side and 1.10 times its height up and down.

    Args:
        regions: of the boxes in pixels of the image, from `boxes_to_regions`.
        keypoints, visible, upper_body, size, augmentation: as in `augment_regions`, whose `extent` must not exceed its
            default.

    Returns:
        left, top, right, bottom in pixels of the image, right and bottom exclusive. Windows may extend outside the
        image.
    """
    center, scale = np.asarray(regions.center), np.asarray(regions.scale)
    largest = 1 + augmentation.scale
    max_angle = math.radians(min(2 * augmentation.rotation, 90)) if augmentation.rotation_probability else 0.0

    def reach(sides):
        half = largest * sides / 2
        # A rectangle extends farthest when its diagonal points to the side, if it can be rotated that far.
        angle = np.minimum(max_angle, np.arctan2(half[:, ::-1], half))
        return half * np.cos(angle) + half[:, ::-1] * np.sin(angle)

    jitter = augmentation.jitter * scale / BOX_PADDING if augmentation.jitter_probability else 0.0
    low, high = center - reach(scale) - jitter, center + reach(scale) + jitter
    if augmentation.half_body and upper_body.any():
        enough = visible.sum(axis=1) > augmentation.half_body_keypoints
        aspect = size[1] / size[0]
        for part in (visible & upper_body, visible & ~upper_body):
            possible = enough & (part.sum(axis=1) >= 2)
            inside = part[possible, :, None]
            points = keypoints[possible]
            middle = np.where(inside, points, 0).sum(axis=1) / inside.sum(axis=1)
            sides = points.max(axis=1, where=inside, initial=-np.inf) - points.min(axis=1, where=inside, initial=np.inf)
            width = np.maximum(sides[:, 0], sides[:, 1] * aspect) * augmentation.half_body_padding
            extent = reach(np.stack([width, width / aspect], axis=-1))
            low[possible] = np.minimum(low[possible], middle - extent)
            high[possible] = np.maximum(high[possible], middle + extent)
    # One more pixel for interpolation, and one for rounding.
    return np.concatenate([np.floor(low) - 1, np.ceil(high) + 2], axis=1).astype(np.int64)


def _inside(window: Int[np.ndarray, "4"], height: int, width: int) -> tuple[int, int, int, int]:
    """The part of a window inside the image; if there is none, the nearest pixel of the image."""
    left, top = (int(np.clip(at, 0, side - 1)) for at, side in zip(window[:2], (width, height), strict=True))
    right = int(np.clip(window[2], left + 1, width))
    bottom = int(np.clip(window[3], top + 1, height))
    return left, top, right, bottom
