"""What an exported file says about itself, as JSON: all that is needed to use it without the model.

A StableHLO file holds this text in the header of its safetensors file, an ONNX file in its metadata; both under `KEY`.
"""

import dataclasses
import json
from typing import Any

from vitpose_jax.skeletons import Skeleton
from vitpose_jax.storage.text import join, printable, shorten

KEY = "vitpose_jax.export"
# Raised when a file can no longer be read by older code.
VERSION = 1
PARTS = ("network", "path")
# In which networks compute.
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """The contents of an exported file.

    Attributes:
        part: "network", from normalised crops to heatmaps; or "path", from pixels and boxes to keypoints.
        config: `VitPoseConfig.to_dict` of a network with one head and no experts.
        dtype: in which the network computes.
        inputs, outputs: name, shape and dtype of each array. A string in a shape is a size that may be any number from
            1 on, "n" for crops and "p" for pixels.
        options: of the path: flip_test, decode, border, padding, stretch; see `PoseEstimator`. Empty for a network.
        platforms: on which a StableHLO program runs, in JAX's names: cpu, cuda, rocm, tpu. Empty for ONNX.
        versions: of the packages that wrote the file, by name.
        weights: of a StableHLO file: the names of the tensors that the program takes before its inputs, in order.
        sha256: of a StableHLO file: of its program and its weights, in this order; of an ONNX file: of all of it before
            this text, which is the last in it.
    """

    part: str
    config: dict[str, Any]
    dtype: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    platforms: list[str] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    weights: list[str] = dataclasses.field(default_factory=list)
    sha256: str = ""

    @property
    def skeleton(self) -> Skeleton:
        """The keypoints, in the order of the heatmaps' channels."""
        (values,) = self.config["skeletons"]
        return Skeleton.from_dict(values)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a crop, in pixels."""
        height, width = self.config["image_size"]
        return height, width

    @property
    def image_mean(self) -> tuple[float, ...]:
        """For each channel, of pixels scaled to 0..1."""
        return tuple(self.config["image_mean"])

    @property
    def image_std(self) -> tuple[float, ...]:
        """Standard deviation for each channel, of pixels scaled to 0..1."""
        return tuple(self.config["image_std"])

    def to_json(self) -> str:
        """The text that a file holds."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "Metadata":
        """The inverse of `to_json`.

        Args:
            text: of a file.
            source: the file, for the error.

        Raises:
            ValueError: for a text that is not this, or of a newer version.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}: damaged metadata: not valid JSON ({printable(error)})") from error
        version = values.pop("version", None) if isinstance(values, dict) else None
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"{source}: damaged metadata: expected a version, got {shorten(version)}")
        if version > VERSION:
            raise ValueError(f"{source}: has version {version} of the format, newer than this package's {VERSION}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if set(values) != set(fields):
            raise ValueError(f"{source}: damaged metadata: expected {sorted(fields)}, got {join(sorted(values))}")
        kinds = {"str": str, "list": list, "dict": dict}
        for name, field in fields.items():
            kind = kinds[getattr(field.type, "__name__", str(field.type))]
            if not isinstance(values[name], kind):
                raise ValueError(f"{source}: damaged metadata: {name}: expected a {kind.__name__}")
            for element in values[name] if kind is list else ():
                if name in ("inputs", "outputs"):
                    _check_array_spec(element, f"{source}: damaged metadata: {name}")
                elif not isinstance(element, str):
                    raise ValueError(f"{source}: damaged metadata: {name}: expected names, got {shorten(element)}")
        metadata = cls(**values)
        if metadata.dtype not in DTYPES:
            raise ValueError(
                f"{source}: damaged metadata: dtype: expected one of {', '.join(DTYPES)}, got {shorten(metadata.dtype)}"
            )
        if metadata.part not in PARTS:
            raise ValueError(f"{source}: part: expected one of {', '.join(PARTS)}, got {shorten(metadata.part)}")
        try:
            _ = metadata.skeleton, metadata.image_size, metadata.image_mean, metadata.image_std
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: damaged metadata: config: {printable(error)}") from error
        return metadata


def _check_array_spec(value: Any, where: str) -> None:
    """Check the description of an input or output."""
    kinds = {"name": str, "shape": list, "dtype": str}
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise ValueError(f"{where}: expected arrays with {', '.join(kinds)}, got {shorten(value)}")
    for name, kind in kinds.items():
        if not isinstance(value[name], kind):
            raise ValueError(f"{where}: {name}: expected a {kind.__name__}, got {shorten(value[name])}")
    for side in value["shape"]:
        if not isinstance(side, str) and (type(side) is not int or side < 1):
            raise ValueError(f"{where}: shape: expected names and numbers from 1 on, got {shorten(value['shape'])}")


def onnx_property(text: str) -> bytes:
    """The bytes that hold the metadata in an ONNX file. Joined to those of a model without, they are the file.

    The fields of a protobuf file stand one after the other: field 14 of a model is a property, whose fields 1 and 2 are
    its name and its value.
    """

    def field(number: int, content: bytes) -> bytes:
        size, rest = [], len(content)
        while rest > 127:
            size.append(rest & 127 | 128)
            rest >>= 7
        return bytes([number << 3 | 2, *size, rest]) + content

    return field(14, field(1, KEY.encode()) + field(2, text.encode()))


def array_spec(name: str, shape: tuple[int | str, ...], dtype: str) -> dict[str, Any]:
    """The description of an input or output."""
    return {"name": name, "shape": list(shape), "dtype": dtype}
