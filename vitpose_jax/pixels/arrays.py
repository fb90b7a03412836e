"""Pixels in arrays of NumPy, JAX, PyTorch and others: any of them becomes height x width x RGB in 8 bits."""

from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
from jaxtyping import UInt8

# The order of an array's channels: OpenCV's is "bgr".
ChannelOrder: TypeAlias = Literal["rgb", "bgr"]

CHANNELS = (1, 3, 4)
# Values of a float image may leave 0 to 1 by this: resizing overshoots a little.
OVERSHOOT = 0.01

_SHAPES = "(height, width, 3), (height, width, 4), (height, width), or with the channels first, (3, height, width)"


@runtime_checkable
class ArrayImage(Protocol):
    """An array or tensor: of NumPy, JAX, PyTorch or any other library that gives NumPy its values."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


def check_channel_order(channel_order: str) -> None:
    """Check the name of an order of channels.

    Raises:
        ValueError: for any but "rgb" and "bgr".
    """
    if channel_order not in get_args(ChannelOrder):
        raise ValueError(f"channel_order: expected 'rgb' or 'bgr', got {channel_order!r}")


def is_array(image: object) -> bool:
    """Whether this is an array or a tensor, and no PIL image."""
    return hasattr(image, "shape") and hasattr(image, "dtype") and hasattr(image, "__array__")


def is_tensor(value: object) -> bool:
    """Whether this is a tensor of PyTorch, which is not imported for it."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def on_host(value: Any) -> Any:
    """A tensor of PyTorch as an array of NumPy, wherever it is; anything else as it is.

    NumPy does not know PyTorch's bfloat16; its numbers are exact in float32.
    """
    if not is_tensor(value):
        return value
    tensor = value.detach().cpu()
    return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()


def split_batch(images: Any) -> Any:
    """The list of images of a batch, an array of four axes; anything else as it is."""
    return list(images) if is_array(images) and len(images.shape) == 4 else images


def result_bytes(image: Any) -> int:
    """The bytes that `array_to_rgb` holds for an array: its own, or those of the converted one."""
    array_bytes = int(np.prod(image.shape, dtype=np.int64))
    if str(image.dtype).endswith("uint8") and len(image.shape) == 3:
        return array_bytes
    return 3 * array_bytes


def array_to_rgb(image: Any, channel_order: ChannelOrder = "rgb") -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an array or a tensor; for uint8 RGB or RGBA a view of it, if it is in the host's memory.

    Args:
        image: uint8, 0 to 255, or floats, 0 to 1; (height, width), or three axes with 1, 3 or 4 channels. They stand
            first if the last axis cannot be channels. Where both can, an array of NumPy or JAX has them last, and a
            tensor is refused.
        channel_order: of three and four channels.

    Raises:
        ValueError: for another shape, a tensor whose channels may stand first or last, and floats outside 0 to 1.
        TypeError: for another dtype.
    """
    array = np.asarray(on_host(image))
    if array.dtype != np.uint8 and not _is_float(array.dtype):
        raise TypeError(
            f"image: expected an array of uint8, 0 to 255, or of floats, 0 to 1, got {array.dtype}; "
            "convert it, as in image.astype(numpy.uint8)"
        )
    array = _channels_last(array, is_tensor=is_tensor(image))
    if array.dtype != np.uint8:
        array = _floats_to_bytes(array)
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    array = array[:, :, :3]
    return array[:, :, ::-1] if channel_order == "bgr" else array


def _is_float(dtype: np.dtype) -> bool:
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def _channels_last(array: np.ndarray, *, is_tensor: bool) -> np.ndarray:
    shape = array.shape
    if array.ndim == 4:
        raise ValueError(
            f"image: expected one image, {_SHAPES}, got the batch {shape}; "
            "give the batch itself to the estimator, or one image at a time: batch[0]"
        )
    if array.ndim not in (2, 3) or 0 in shape:
        raise ValueError(f"image: expected shape {_SHAPES}, got {shape}")
    if array.ndim == 2:
        return array
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    if first and last and is_tensor:
        raise ValueError(
            f"image: expected a shape that says where the channels are, got {shape}; "
            "give (height, width, 3): tensor.permute(1, 2, 0).numpy()"
        )
    if not first and not last:
        raise ValueError(f"image: expected shape {_SHAPES}, got {shape}")
    return array if last else array.transpose(1, 2, 0)


def _floats_to_bytes(array: np.ndarray) -> UInt8[np.ndarray, "..."]:
    array = array.astype(np.float32)
    lowest, highest = float(array.min()), float(array.max())
    if not (lowest >= -OVERSHOOT and highest <= 1 + OVERSHOOT):  # also for NaN
        if highest > 1 and lowest >= 0:
            remedy = "for values 0 to 255 give uint8: image.astype(numpy.uint8)"
        else:
            remedy = "undo the normalisation: image * std + mean"
        raise ValueError(f"image: expected floats from 0 to 1, got {lowest:.4g} to {highest:.4g}; {remedy}")
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)
