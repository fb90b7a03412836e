"""Image files by name, folder or pattern."""

import glob
import pathlib
from collections.abc import Iterable

IMAGE_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def find_images(names: Iterable[str]) -> list[pathlib.Path]:
    """Files for names of files, folders (their images, sorted, not those of sub-folders) and glob patterns.

    Raises:
        ValueError: where a name leads to no image, or two images have the same name without its ending, so that
            their results would overwrite each other.
    """
    paths: dict[pathlib.Path, None] = {}
    for name in names:
        path = pathlib.Path(name)
        if path.is_dir():
            files = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            found = sorted(file for file in files if file.suffix.lower() in IMAGE_ENDINGS)
        elif path.exists() or not glob.has_magic(name):
            found = [path]
        else:
            found = [file for file in map(pathlib.Path, sorted(glob.glob(name, recursive=True))) if file.is_file()]
        if not found:
            raise ValueError(f"{name}: no images there")
        paths |= dict.fromkeys(found)
    by_stem: dict[str, pathlib.Path] = {}
    for path in paths:
        if by_stem.setdefault(path.stem, path) != path:
            raise ValueError(f"{path} and {by_stem[path.stem]}: results of both would be named {path.stem!r}")
    return list(paths)


def check_not_overwriting(images: Iterable[pathlib.Path], results: Iterable[tuple[pathlib.Path, pathlib.Path]]) -> None:
    """See that no result would take the place of one of the images.

    Args:
        images: that are read.
        results: where each will be written, and the image that it is of.

    Raises:
        ValueError: naming the result and its image.
    """
    given = {path.resolve() for path in images}
    for result, path in results:
        if result.resolve() in given:
            raise ValueError(f"{result}: results of {path} would overwrite this image; choose another folder")
