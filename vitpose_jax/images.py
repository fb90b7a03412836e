"""Reading images: a file, a URL, bytes, a PIL image or an array becomes height x width x RGB in 8 bits."""

import io
import logging
import os
import struct
import threading
import zlib
from typing import IO, Any, TypeAlias, cast

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vitpose_jax.pixels.arrays import (
    ArrayImage,
    ChannelOrder,
    array_to_rgb,
    check_channel_order,
    is_array,
    result_bytes,
)
from vitpose_jax.pixels.urls import RemoteImage, file_path, remote, scheme_of

# What `load_image` reads: a path, a URL, the bytes of a file, a PIL image, or an array of NumPy, JAX, PyTorch, ...
ImageLike: TypeAlias = (
    str | os.PathLike | bytes | bytearray | io.BytesIO | Image.Image | np.ndarray | jax.Array | ArrayImage | RemoteImage
)

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


def load_image(image: ImageLike, *, channel_order: ChannelOrder = "rgb") -> UInt8[np.ndarray, "height width 3"]:
    """Read an image as an RGB array. Several threads may call it, also with the same PIL image.

    Args:
        image: a path; a URL as a string, http://, https:// or file://; the bytes of a file, also in a `io.BytesIO`; a
            PIL image; or an array of NumPy, JAX or PyTorch: uint8, or floats from 0 to 1; (height, width, 3) RGB,
            (height, width, 4) RGBA, (height, width) or (height, width, 1) grey, or with the channels first, as in
            (3, height, width).
        channel_order: of arrays, "rgb" or "bgr", as OpenCV has it. Files and PIL images know theirs.

    Returns:
        The pixel values, 0 to 255. The result can be the input array itself or a view of it: do not write to it.
        Files and PIL images are turned to their EXIF orientation. Grey values are repeated for all three channels,
        alpha is dropped, Pillow converts palettes and CMYK. Values of more than 8 bits are scaled by the range in use:
        the smallest of 8, 10, 12, 14 and 16 bits that holds them all. Pillow cuts colours of 16 bits to their upper 8;
        a message says so if all of these are 0. For an animation, this is the first frame. A URL is downloaded within
        `urls.MAX_SECONDS` seconds and up to `urls.MAX_BYTES` bytes; redirects lead to http and https alone.

    Raises:
        FileNotFoundError: if the file does not exist.
        ConnectionError: if a URL cannot be downloaded.
        ValueError: with the file's name, for a folder or a pipe, for a file that is not an image, for a damaged or
            truncated image, for an image without pixels, and for an image with more pixels than twice
            `PIL.Image.MAX_IMAGE_PIXELS`, Pillow's limit against decompression bombs; for another kind of URL; for an
            array of another shape, or of floats outside 0 to 1; for an unknown channel order.
        TypeError: for an array of another dtype, and for any other type.
    """
    check_channel_order(channel_order)
    if isinstance(image, Image.Image):
        with _PIL_LOCK:
            return _decode(image, getattr(image, "filename", "") or "image")
    if is_array(image):
        return array_to_rgb(image, channel_order)
    file, name = _open_source(image)
    with file:
        return _decode(_open(file, name), name)


def image_endings() -> frozenset[str]:
    """The endings of names of image files that Pillow reads, in lower case: ".jpg", ".avif", ..."""
    Image.init()
    readable = Image.OPEN.keys() - _NOT_DECODED
    return frozenset(ending for ending, name in Image.EXTENSION.items() if name in readable)


def decoded_bytes(image: object) -> int:
    """The bytes that `load_image` returns for an image, from the header of a file; 0 for what it cannot read."""
    if isinstance(image, Image.Image):
        return 3 * image.width * image.height
    if is_array(image):
        return result_bytes(image)
    try:
        file, name = _open_source(image)
        with file:
            width, height = _open(file, name).size
    except (OSError, ValueError, TypeError):
        return 0
    return 3 * width * height


def read_size(image: str | os.PathLike[str] | bytes | RemoteImage) -> tuple[int, int]:
    """Width and height of the image that `load_image` reads from a file, from its header.

    Args:
        image: a path, the bytes of a file, or one behind a URL.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not an image.
    """
    opened, name = _open_source(image)
    with opened as file:
        header = _open(file, name)
        try:
            turned = header.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except _DAMAGE as error:
            raise ValueError(f"{name}: damaged image ({error})") from None
        return (header.height, header.width) if turned else (header.width, header.height)


def own(entry: Any) -> Any:
    """An entry of a stream that its owner may change after the next one: arrays and frames of animations are copied.

    A URL becomes a `RemoteImage`, so that one download tells the size of the image and gives its pixels.

    Args:
        entry: an image, or a tuple of an image and what belongs to it.
    """
    if isinstance(entry, tuple):
        return tuple(own(part) for part in entry)
    if isinstance(entry, np.ndarray):
        return entry.copy()
    if hasattr(entry, "detach") and hasattr(entry, "clone"):
        return entry.detach().clone()
    if isinstance(entry, bytearray):
        return bytes(entry)
    if isinstance(entry, io.BytesIO):
        return entry.getvalue()
    if isinstance(entry, Image.Image) and getattr(entry, "is_animated", False):
        with _PIL_LOCK:
            return entry.copy()
    return remote(entry)


def _open_source(image: Any) -> tuple[io.BufferedIOBase, str]:
    """The file of an image that is neither a PIL image nor an array, and its name for errors.

    Raises:
        FileNotFoundError, ConnectionError, ValueError, TypeError: as `load_image`.
    """
    image = remote(image)
    if isinstance(image, RemoteImage):
        return io.BytesIO(image.read()), image.url
    if isinstance(image, bytes | bytearray):
        return io.BytesIO(image), "image"
    if isinstance(image, io.BytesIO):
        return io.BytesIO(image.getvalue()), "image"  # from its beginning, wherever it stands
    if not isinstance(image, str | os.PathLike):
        raise TypeError(
            "image: expected a path, a URL, the bytes of a file, a PIL image or an array, "
            f"got {type(image).__name__}{_remedy(image)}"
        )
    path = os.fspath(image)
    scheme = scheme_of(path) if isinstance(image, str) else None
    if scheme == "file":
        path = file_path(path)
    elif scheme is not None and not os.path.exists(path):
        raise ValueError(f"{path}: expected a path or a URL with http, https or file, got the scheme {scheme!r}")
    return _open_file(path), path


def _remedy(image: object) -> str:
    if hasattr(image, "read"):
        return "; give its bytes: file.read()"
    if isinstance(image, list | tuple):
        return "; give numpy.asarray(image, numpy.uint8)"
    return ""


def _open_file(path: str) -> io.BufferedIOBase:
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


def _open(file: io.BufferedIOBase, path: str) -> Image.Image:
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
                    return factory(cast(IO[bytes], file), path)
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
