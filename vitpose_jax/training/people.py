"""People to train on: each with the part of its image that any augmentation can reach.

A crop in training needs the pixels around a box and no others. They are cut out as whole pixels, a window of the
image: nothing is sampled twice, and a crop of the window is the crop of the image.
"""

import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from vitpose_jax.datasets.archives import ImageStore, Paths, expand_archives
from vitpose_jax.datasets.dataset import Dataset, read_dataset
from vitpose_jax.datasets.protocols import Protocol
from vitpose_jax.pipeline.regions import BOX_PADDING, boxes_to_regions
from vitpose_jax.skeletons import Skeleton
from vitpose_jax.training.augment import Augmentation

Weights: TypeAlias = Mapping[str, int | float] | Callable[[str], int | float | Sequence[int | float]]

# Data sets that the original trains without half bodies.
WHOLE_BODIES = ("mpii",)
ORIGINAL = Augmentation()

_log = logging.getLogger(__name__)


class Person(NamedTuple):
    """A person, and a window of its image. Coordinates are in pixels of the window.

    Attributes:
        image: the window, RGB.
        offset: (x, y) of the window's first pixel in the image.
        center, scale: of the box, as `boxes_to_regions` has them for inference.
        keypoints: (x, y); anything where not labelled.
        visible: 0 not labelled, 1 labelled but hidden, 2 visible.
        weights: how much each keypoint's label counts.
        path: of the image.
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
    """The annotated people of a data set, by number. It can be pickled, and read by several threads.

    Args:
        dataset: with its annotated boxes, not a detector's.
        size: height and width of the crops.
        archives: .zip files that hold the images, see `ImageStore`; () where they are files.
        augmentation: what crops are made with: the windows hold what it can reach.
        min_keypoints: leave out people with fewer labelled keypoints.
        weights: how much the labels of a file count, from 0: a function of the file's name that gives a number or K
            of them; or a mapping from regular expressions, of which the first that matches the beginning of the
            name counts. 1 where none does. Keypoints of weight 0 count as not labelled, people with no others are
            left out.
        cache: "memory" keeps the windows once they are decoded, in each process for itself.
        skip_broken: put the next person in the place of one whose image cannot be read, log it, and count it in
            `broken`. Without it, that is an error.

    Attributes:
        broken: paths of the images that could not be read by this process.

    Raises:
        ValueError: for a detector's boxes; where nobody is left; for an image that no archive holds, a pattern that
            no file matches, or weights that are negative, not finite or not K.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        size: tuple[int, int] = (256, 192),
        archives: Paths = (),
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
        self.protocol: Protocol = dataset.protocol
        self.size = size
        self.skip_broken = skip_broken
        self.broken: set[str] = set()
        self._windows_kept: dict[int, tuple[np.ndarray, np.ndarray]] | None = None if cache is None else {}
        self._images = ImageStore(archives)
        paths = [str(sample.path) for sample in dataset.samples]
        for path in paths if self._images.archives else ():
            self._images.find(path)
        rows = np.repeat(np.arange(len(paths)), [len(sample.people) for sample in dataset.samples])
        people = [sample.people for sample in dataset.samples]
        count = self.skeleton.num_keypoints
        boxes = np.concatenate([np.zeros((0, 4)), *(group.boxes for group in people)])
        visible = np.concatenate([np.zeros((0, count), np.int32), *(group.visible for group in people)])
        keypoints = np.concatenate([np.zeros((0, count, 2)), *(group.keypoints for group in people)])
        label_weights = _label_weights(weights, paths, count)[rows]
        visible = np.where(label_weights > 0, visible, 0)
        kept = ((visible > 0).sum(axis=1) >= min_keypoints) & label_weights.any(axis=1)
        if not kept.any():
            raise ValueError(
                f"{dataset.annotations}: expected people with {min_keypoints} or more keypoints, "
                f"got none among {len(kept)}"
            )
        self._paths, self._rows = tuple(paths), rows[kept]
        self._keypoints, self._visible = keypoints[kept].astype(np.float32), visible[kept].astype(np.int32)
        self._weights = label_weights[kept].astype(np.float32)
        regions = boxes_to_regions(boxes[kept], size, stretch=self.protocol.stretch)
        self._center, self._scale = np.asarray(regions.center), np.asarray(regions.scale)
        self._windows = reachable_windows(
            self._center,
            self._scale,
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
        """The people of a data set on disk.

        Args:
            name, annotations: as in `read_dataset`.
            images: the folder that file names in it are relative to; or .zip archives in that folder: one,
                several or a glob pattern.
            options: of this class.

        Raises:
            ValueError: as `read_dataset`, `ImageStore` and this class do; for archives in several folders.
        """
        if isinstance(images, str | os.PathLike) and pathlib.Path(images).is_dir():
            return cls(read_dataset(name, annotations, images), **options)
        archives = expand_archives(images)
        folders = {archive.parent for archive in archives}
        if len(folders) != 1:
            raise ValueError(f"images: expected a folder, or .zip archives in one folder, got {images}")
        return cls(read_dataset(name, annotations, folders.pop()), archives=archives, **options)

    @property
    def skeleton(self) -> Skeleton:
        """Of the annotations."""
        return self.protocol.skeleton

    @property
    def upper_body(self) -> Bool[np.ndarray, " K"]:
        """Which keypoints belong to the upper body; none where the data set is trained without half bodies."""
        half_bodies = self.protocol.name not in WHOLE_BODIES
        return np.isin(np.arange(self.skeleton.num_keypoints), self.skeleton.upper_body) & half_bodies

    def __repr__(self) -> str:
        return f"PersonSource({self.protocol.name}, {len(self)} people)"

    def __getstate__(self) -> dict[str, Any]:
        kept = None if self._windows_kept is None else {}
        return {**vars(self), "_windows_kept": kept, "broken": set()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Person:
        """A person.

        Raises:
            IndexError: for a number that nobody has.
            ValueError, OSError: naming the file, for an image that cannot be read; with `skip_broken`, where none
                can.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected 0 to {len(self) - 1}, got {index}")
        for person in (*range(index, len(self)), *range(index)) if self.skip_broken else (index,):
            try:
                return self._person(person)
            except (ValueError, OSError) as error:
                path = self._paths[self._rows[person]]
                if not self.skip_broken:
                    raise
                if path not in self.broken:
                    self.broken.add(path)
                    _log.warning("skipped broken image %d of this process: %s", len(self.broken), error)
        raise ValueError(f"{self!r}: expected an image that can be read, got none")

    def _person(self, index: int) -> Person:
        path = self._paths[self._rows[index]]
        if self._windows_kept is not None and index in self._windows_kept:
            window, offset = self._windows_kept[index]
        else:
            image = self._images.load(path)
            left, top, right, bottom = _inside(self._windows[index], *image.shape[:2])
            window, offset = image[top:bottom, left:right], np.array([left, top], np.int32)
            if self._windows_kept is not None:
                window = window.copy()  # a view would keep the whole image
                self._windows_kept[index] = window, offset
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
    """The weights of each image's keypoints."""
    names = [os.path.basename(path) for path in paths]
    result = np.ones((len(names), num_keypoints))
    if isinstance(weights, Mapping):
        for pattern in weights:
            if not any(re.match(pattern, name) for name in names):
                raise ValueError(f"weights: no file's name begins with {pattern!r}")
        for row, name in zip(result, names, strict=True):
            row[:] = next((weight for pattern, weight in weights.items() if re.match(pattern, name)), 1.0)
    elif weights is not None:
        for row, name in zip(result, names, strict=True):
            weight = np.asarray(weights(name), np.float64)
            if weight.shape not in ((), (num_keypoints,)):
                raise ValueError(f"weights: {name}: expected a number or {num_keypoints} of them, got {weight.shape}")
            row[:] = weight
    for name, row in zip(names, result, strict=True):
        if not np.isfinite(row).all() or (row < 0).any():
            raise ValueError(f"weights: {name}: expected finite numbers from 0, got {row.tolist()}")
    return result


def reachable_windows(
    center: Float[np.ndarray, "n 2"],
    scale: Float[np.ndarray, "n 2"],
    keypoints: Float[np.ndarray, "n K 2"],
    visible: Bool[np.ndarray, "n K"],
    *,
    upper_body: Bool[np.ndarray, " K"],
    size: tuple[int, int] = (256, 192),
    augmentation: Augmentation = ORIGINAL,
) -> Int[np.ndarray, "n 4"]:
    """Windows that hold every pixel which `augment_crops` can sample.

    A region w wide and h high, turned by up to A degrees, reaches max(w/2 |cos a| + h/2 |sin a|) over |a| <= A to
    the side, and likewise up and down. Its largest size is 1 + `scale` times that of the box or of half a body; that
    of the box is also shifted by `jitter`. With the default augmentation and a box of a crop's aspect that is 1.41
    times the padded region's width to each side of its centre and 1.10 times its height up and down.

    Args:
        center, scale: of the boxes in pixels of the image, from `boxes_to_regions`.
        keypoints, visible, upper_body, size, augmentation: as in `augment_regions`; its `extent` may not be larger
            than its default.

    Returns:
        left, top, right, bottom in pixels of the image, right and bottom exclusive; they may leave the image.
    """
    largest = 1 + augmentation.scale
    turn = math.radians(min(2 * augmentation.rotation, 90)) if augmentation.rotation_probability else 0.0

    def reach(sides):
        half = largest * sides / 2
        # A rectangle reaches farthest where its diagonal points that way, if it can be turned so far.
        angle = np.minimum(turn, np.arctan2(half[:, ::-1], half))
        return half * np.cos(angle) + half[:, ::-1] * np.sin(angle)

    jitter = augmentation.jitter * scale / BOX_PADDING if augmentation.jitter_probability else 0.0
    low, high = center - reach(scale) - jitter, center + reach(scale) + jitter
    if augmentation.half_body and upper_body.any():
        enough = visible.sum(axis=1) > augmentation.half_body_keypoints
        aspect = size[1] / size[0]
        for part in (visible & upper_body, visible & ~upper_body):
            taken = enough & (part.sum(axis=1) >= 2)
            inside = part[taken, :, None]
            points = keypoints[taken]
            middle = np.where(inside, points, 0).sum(axis=1) / inside.sum(axis=1)
            sides = points.max(axis=1, where=inside, initial=-np.inf) - points.min(axis=1, where=inside, initial=np.inf)
            width = np.maximum(sides[:, 0], sides[:, 1] * aspect) * augmentation.half_body_padding
            around = reach(np.stack([width, width / aspect], axis=-1))
            low[taken] = np.minimum(low[taken], middle - around)
            high[taken] = np.maximum(high[taken], middle + around)
    # One pixel more for what interpolation reads beyond a sample, and one for rounding.
    return np.concatenate([np.floor(low) - 1, np.ceil(high) + 2], axis=1).astype(np.int64)


def _inside(window: Int[np.ndarray, "4"], height: int, width: int) -> tuple[int, int, int, int]:
    """The part of a window inside an image; where there is none, the pixel of the image nearest to it."""
    left, top = (int(np.clip(at, 0, side - 1)) for at, side in zip(window[:2], (width, height), strict=True))
    right = int(np.clip(window[2], left + 1, width))
    bottom = int(np.clip(window[3], top + 1, height))
    return left, top, right, bottom
