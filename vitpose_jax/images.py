"""Reading images: a file, a PIL image or an array becomes height x width x RGB in 8 bits."""

import logging
import os
import struct
import threading
import zlib
from typing import Any, BinaryIO, TypeAlias

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

# What `load_image` reads: a path, a PIL image, or a uint8 array of NumPy or JAX.
ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | jax.Array

# Pillow reads the pixels of an open image on first use, and fails when two threads do so at once.
_PIL_LOCK = threading.Lock()

# What Pillow's decoders raise on damaged files, on files too large for the memory and on unsupported ones. The AVIF
# decoder raises RuntimeError.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

# The ranges of sensors, in bits: values of an image with more than 8 bits are scaled by the smallest that holds them.
_BITS = (8, 10, 12, 14, 16, 24, 32)

_log = logging.getLogger("vitpose_jax")

# EXIF's tag of the orientation.
_ORIENTATION = 0x0112

# What Pillow knows by name, but does not decode by itself.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def load_image(image: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image as an RGB array. Several threads may call it, also with the same PIL image.

    Args:
        image: a path, a PIL image, or a uint8 array of NumPy or JAX: (height, width, 3) RGB, (height, width, 4) RGBA
            or (height, width) grey.

    Returns:
        The pixel values, 0 to 255. The result can be the input array itself or a view of it: do not write to it.
        Files and PIL images are turned to their EXIF orientation. Grey values are repeated for all three channels,
        alpha is dropped, Pillow converts palettes and CMYK. Values of more than 8 bits are scaled by the range in use:
        the smallest of 8, 10, 12, 14 and 16 bits that holds them all. Pillow cuts colours of 16 bits to their upper 8;
        a message says so if all of these are 0. For an animation, this is the first frame.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: with the file's name, for a folder or a pipe, for a file that is not an image, for a damaged or
            truncated image, for an image without pixels, and for an image with more pixels than twice
            `PIL.Image.MAX_IMAGE_PIXELS`, Pillow's limit against decompression bombs; for an array of another shape.
        TypeError: for an array of another dtype, and for any other type.
    """
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        with _open_file(path) as file:
            return _decode(_open(file, path), path)
    if isinstance(image, Image.Image):
        with _PIL_LOCK:
            return _decode(image, getattr(image, "filename", "") or "image")
    if isinstance(image, np.ndarray | jax.Array):
        return _from_array(np.asarray(image))
    raise TypeError(f"image: expected a path, a PIL image or a uint8 array, got {type(image).__name__}")


def image_endings() -> frozenset[str]:
    """The endings of names of image files that Pillow reads, in lower case: ".jpg", ".avif", ..."""
    Image.init()
    readable = Image.OPEN.keys() - _NOT_DECODED
    return frozenset(ending for ending, name in Image.EXTENSION.items() if name in readable)


def decoded_bytes(image: object) -> int:
    """The bytes that `load_image` returns for an image, from the header of a file; 0 for what it cannot read."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        try:
            with _open_file(path) as file:
                width, height = _open(file, path).size
        except (OSError, ValueError):
            return 0
        return 3 * width * height
    if isinstance(image, Image.Image):
        return 3 * image.width * image.height
    return image.nbytes if isinstance(image, np.ndarray | jax.Array) else 0


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of the image that `load_image` reads from a file, from its header.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not an image.
    """
    path = os.fspath(path)
    with _open_file(path) as file:
        image = _open(file, path)
        try:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except _DAMAGE as error:
            raise ValueError(f"{path}: damaged image ({error})") from None
        return (image.height, image.width) if turned else (image.width, image.height)


def own(entry: Any) -> Any:
    """An entry of a stream that its owner may change after the next one: arrays and frames of animations are copied.

    Args:
        entry: an image, or a tuple of an image and what belongs to it.
    """
    if isinstance(entry, tuple):
        return tuple(own(part) for part in entry)
    if isinstance(entry, np.ndarray):
        return entry.copy()
    if isinstance(entry, Image.Image) and getattr(entry, "is_animated", False):
        with _PIL_LOCK:
            return entry.copy()
    return entry


def _open_file(path: str) -> BinaryIO:
    """Open a file, and nothing that reading could wait for.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: for a folder, a pipe, a device, or a path that no file can have.
        OSError: if it cannot be read.
    """
    if "\0" in path:
        raise ValueError(f"{path!r}: expected a path, got one with a null character")
    if os.path.isdir(path):
        raise ValueError(f"{path}: expected an image file, got a folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: expected an image file, got a pipe or a device")
    try:
        return open(path, "rb")
    except FileNotFoundError:
        link = " (a broken link)" if os.path.islink(path) else ""
        raise FileNotFoundError(f"{path}: no such file{link}") from None


def _from_array(array: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    if array.dtype != np.uint8:
        raise TypeError(f"image: expected an array of uint8, 0 to 255, got {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ValueError(
            f"image: expected shape (height, width, 3), (height, width, 4) or (height, width), got {array.shape}"
        )
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    return array[:, :, :3]


def _open(file: BinaryIO, path: str) -> Image.Image:
    """Read the header of an image file, but not its pixels.

    This replaces `Image.open`, which warns about images with more than `MAX_IMAGE_PIXELS` pixels: warnings cannot be
    silenced for a single thread.
    """
    prefix = file.read(16)
    for register_formats in (Image.preinit, Image.init):  # the common formats first, then all
        register_formats()
        for name in Image.ID:
            factory, accept = Image.OPEN[name]
            try:
                accepted = accept is None or accept(prefix)
                if accepted and not isinstance(accepted, str):  # a string is the reason for a rejection
                    file.seek(0)
                    return factory(file, path)
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # the file has another format
            except _DAMAGE as error:
                raise ValueError(f"{path}: damaged image ({error})") from None
    raise ValueError(f"{path}: expected an image, got a file in no format that Pillow reads")


def _decode(image: Image.Image, source: str) -> UInt8[np.ndarray, "height width 3"]:
    width, height = image.size
    if width == 0 or height == 0:
        raise ValueError(f"{source}: expected at least one pixel, got {width} x {height}")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise ValueError(f"{source}: expected at most {2 * limit} pixels, got {width} x {height}")
    # What Pillow will decode from, which it forgets then.
    sixteen_bits = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        pixels = _to_rgb(ImageOps.exif_transpose(image) if turned else image)
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{source}: truncated, damaged or unsupported image ({reason})") from None
    if sixteen_bits and not pixels.any():
        _log.warning("%s: its colours have 16 bits, and all are below 256 of 65535: this image is black", source)
    return pixels


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode == "F":
        raise ValueError("pixel values are floats of unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow uses "I", which has 32 bits, also for files with 16; and many cameras store 8 or 12 bits in 16.
        values = np.asarray(image).astype(np.int64).clip(0)
        bits = next(bits for bits in _BITS if values.max() < 2**bits)
        return np.repeat((values >> (bits - 8)).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P":
        # Converting directly to RGB, Pillow warns if the palette has an alpha for each colour.
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
