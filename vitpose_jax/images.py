"""Reading images: a file, a PIL image or an array becomes height x width x RGB in 8 bits."""

import os
import struct
import threading
from typing import BinaryIO, TypeAlias

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

# What `load_image` reads: a path, a PIL image, or a uint8 array of NumPy or JAX.
ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | jax.Array

# Pillow reads the pixels of an open image on first use, and fails when two threads do so at once.
_PIL_LOCK = threading.Lock()

# What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


def load_image(image: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image as an RGB array. Several threads may call it, also with the same PIL image.

    Args:
        image: a path, a PIL image, or an array (NumPy or JAX) of uint8: (height, width, 3) RGB,
            (height, width, 4) RGBA or (height, width) grey.

    Returns:
        The pixels; possibly the array that was given or a view of it, so do not write to it. The orientation that
        EXIF names is applied to files and PIL images. Grey is repeated, alpha dropped, 16 bits are cut to the upper
        8, palettes and CMYK are converted as Pillow does. Of an animation, the first frame.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming the file, for a folder, for what is not an image, is damaged or truncated or has no
            pixels, and for more pixels than twice `PIL.Image.MAX_IMAGE_PIXELS`, Pillow's guard against
            decompression bombs; for an array of another shape.
        TypeError: for an array of another dtype, and for anything else.
    """
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if os.path.isdir(path):
            raise ValueError(f"{path}: expected an image file, got a folder")
        try:
            with open(path, "rb") as file:
                return _decode(_open(file, path), path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file") from None
    if isinstance(image, Image.Image):
        with _PIL_LOCK:
            return _decode(image, getattr(image, "filename", "") or "image")
    if isinstance(image, np.ndarray | jax.Array):
        return _from_array(np.asarray(image))
    raise TypeError(f"image: expected a path, a PIL image or a uint8 array, got {type(image).__name__}")


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
    """The image in a file, its header read but not its pixels.

    As `Image.open`, which cannot serve: from `MAX_IMAGE_PIXELS` on it warns, and warnings cannot be silenced in one
    thread alone.
    """
    prefix = file.read(16)
    for register_formats in (Image.preinit, Image.init):  # the common formats, then all
        register_formats()
        for name in Image.ID:
            factory, accept = Image.OPEN[name]
            try:
                accepted = accept is None or accept(prefix)
                if accepted and not isinstance(accepted, str):  # a string says why not
                    file.seek(0)
                    return factory(file, path)
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # so a format says that the file is another's
            except _DAMAGE as error:
                raise ValueError(f"{path}: damaged image ({error})") from None
    raise ValueError(f"{path}: expected an image, got a file of no format that Pillow reads")


def _decode(image: Image.Image, source: str) -> UInt8[np.ndarray, "height width 3"]:
    width, height = image.size
    if width == 0 or height == 0:
        raise ValueError(f"{source}: expected at least one pixel, got {width} x {height}")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise ValueError(f"{source}: expected at most {2 * limit} pixels, got {width} x {height}")
    try:
        return _to_rgb(ImageOps.exif_transpose(image))
    except _DAMAGE as error:
        raise ValueError(f"{source}: truncated, damaged or unsupported image ({error})") from None


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode == "F":
        raise ValueError("pixels are floats of an unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # "I" has 32 bits, but Pillow uses it for files of 16.
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P":
        # Straight to RGB, Pillow warns where the palette has an alpha for each colour.
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
