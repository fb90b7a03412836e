"""Image files by name, folder or pattern."""

import glob
import pathlib
from collections.abc import Callable, Iterable

from vitpose_jax.images import image_endings
from vitpose_jax.pixels.urls import scheme_of

# So many files that are passed over are named.
NAMED = 3


def find_images(names: Iterable[str], report: Callable[[str], None] | None = None) -> list[pathlib.Path]:
    """The image files that names, folders and patterns refer to.

    Args:
        names: files, folders (their images in sorted order, without sub-folders) and glob patterns. In a folder, the
            ending of its name says whether a file is an image; hidden files are none.
        report: gets one line for each folder with other files.

    Raises:
        ValueError: for a name without an image, for a URL, and for two images whose results would have the same name.
    """
    endings = image_endings()
    paths: dict[pathlib.Path, None] = {}
    for name in names:
        if scheme_of(name) is not None:
            raise ValueError(f"{name}: expected files, folders or patterns, got a URL; download it to a file first")
        path = pathlib.Path(name)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if not file.is_dir() and not file.name.startswith("."))
            images = [file for file in files if file.is_file() and file.suffix.lower() in endings]
            others = [_describe(file) for file in sorted(set(files) - set(images))]
            if others and report is not None:
                more = ", ..." if len(others) > NAMED else ""
                report(f"{name}: passed over {len(others)} files: {', '.join(others[:NAMED])}{more}")
        elif path.exists() or not glob.has_magic(name):
            images = [path]
        else:
            images = [file for file in map(pathlib.Path, sorted(glob.glob(name, recursive=True))) if file.is_file()]
        if not images:
            raise ValueError(f"{name}: no images there")
        paths |= dict.fromkeys(images)
    by_stem: dict[str, pathlib.Path] = {}
    for path in paths:
        if by_stem.setdefault(path.stem, path) != path:
            raise ValueError(f"{path} and {by_stem[path.stem]}: results of both would be named {path.stem!r}")
    return list(paths)


def _describe(file: pathlib.Path) -> str:
    return file.name if file.exists() else f"{file.name} (a broken link)"


def check_not_overwriting(images: Iterable[pathlib.Path], results: Iterable[tuple[pathlib.Path, pathlib.Path]]) -> None:
    """Check that no result would replace one of the images.

    Args:
        images: the files that are read.
        results: the file of each result, and the image that it belongs to.

    Raises:
        ValueError: naming the result and its image.
    """
    inputs = {path.resolve() for path in images}
    for result, path in results:
        if result.resolve() in inputs:
            raise ValueError(f"{result}: results of {path} would overwrite this image; choose another folder")
