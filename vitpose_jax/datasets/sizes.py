"""The size of an image in its annotations against that of the image as it is read.

They differ if the annotated image was turned or resized since: boxes and keypoints then lie in other places, and
nothing else would tell.
"""

import concurrent.futures
import pathlib
from collections.abc import Iterable

from vitpose_jax.images import read_size

# Sizes that were rounded may differ by this, in pixels.
ROUNDING = 1


def check_size(
    path: str | pathlib.Path,
    annotated: tuple[int | float, int | float] | None,
    size: tuple[int, int],
    *,
    others: int = 0,
) -> None:
    """Check that an image has the size in its annotations.

    Args:
        path: of the image.
        annotated: width and height in pixels; None if they are not known.
        size: width and height of the image as it is read, turned to its EXIF orientation.
        others: the number of other images whose sizes differ, for the error.

    Raises:
        ValueError: naming the image, both sizes, and what to do.
    """
    if annotated is None or _agree(annotated, size):
        return
    width, height = (f"{side:g}" for side in annotated)
    turned = "; it was turned, perhaps by its EXIF orientation" if _agree(annotated, (size[1], size[0])) else ""
    raise ValueError(
        f"{path}: expected {width} x {height} pixels, as annotated, got {size[0]} x {size[1]}{turned}; boxes and "
        "keypoints would lie in other places: use the images that were annotated, or scale and turn the annotations"
        + (f" ({others} other images also differ)" if others else "")
    )


def _agree(annotated: tuple[int | float, int | float], size: tuple[int, int]) -> bool:
    return all(abs(expected - got) <= ROUNDING for expected, got in zip(annotated, size, strict=True))


def check_sizes(images: Iterable[tuple[pathlib.Path, tuple[int | float, int | float] | None]]) -> None:
    """Check the sizes of many images, from the headers of their files; those that cannot be read are passed over.

    Args:
        images: the path of each image, and its width and height in the annotations.

    Raises:
        ValueError: as `check_size`, for the first image whose size differs.
    """
    images = [(path, annotated) for path, annotated in images if annotated is not None]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sizes = list(pool.map(_size, (path for path, _ in images)))
    differing = [
        (path, annotated, size)
        for (path, annotated), size in zip(images, sizes, strict=True)
        if size is not None and not _agree(annotated, size)
    ]
    for path, annotated, size in differing:
        check_size(path, annotated, size, others=len(differing) - 1)


def _size(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        return read_size(path)
    except (ValueError, OSError):
        return None
