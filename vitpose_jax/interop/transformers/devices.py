"""Devices by the names of PyTorch: "cpu", "cuda", "cuda:1", and JAX's "tpu"."""

from typing import Any

import jax

from vitpose_jax.storage.text import shorten


class Device(str):
    """The name of a device, "cuda:0", with the attributes of PyTorch's."""

    __slots__ = ()

    @property
    def type(self) -> str:
        """The kind of device: "cpu", "cuda" or "tpu"."""
        return self.partition(":")[0]

    @property
    def index(self) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Its number; None for the first."""
        number = self.partition(":")[2]
        return int(number) if number else None


def infer_device() -> str:
    """The name of the kind of device that JAX computes on: "cuda", "tpu" or "cpu"."""
    return _kind(jax.devices()[0])


def device_name(device: jax.Device) -> Device:
    """The name of a device of JAX."""
    kind = _kind(device)
    return Device(kind if kind == "cpu" else f"{kind}:{device.id}")


def find_device(name: Any) -> jax.Device:
    """The device of a name.

    Args:
        name: "cpu", "cuda", "gpu" or "tpu", with or without ":number"; a number of an accelerator; a device of JAX or
            PyTorch; "auto" or None for JAX's default; {"": one of these}.

    Raises:
        ValueError: if JAX has no such device, or for a model spread over several.
    """
    if isinstance(name, dict):
        if set(name) != {""}:
            raise ValueError(f"device_map: expected one device for the whole model, got {shorten(name)}")
        return find_device(name[""])
    if name is None or name == "auto":
        return jax.devices()[0]
    if isinstance(name, jax.Device):
        return name
    kind, _, number = (f"{infer_device()}:{name}" if isinstance(name, int) else str(name)).partition(":")
    try:
        return jax.devices({"cuda": "gpu"}.get(kind, kind))[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        known = ", ".join(map(device_name, jax.devices()))
        raise ValueError(f"device: expected one that JAX has ({known}, cpu), got {shorten(str(name))}") from error


def _kind(device: jax.Device) -> str:
    return "cuda" if device.platform == "gpu" else device.platform
