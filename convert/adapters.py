"""Adapter folders: a model as its base and what a training of adapters changed in it.

    config.json          "model_type": "vitpose_jax_adapter", a format version, the fields of `AdapterFile`, and
                         "model": the configuration, as in a native folder
    model.safetensors    "<kernel>.lora_a" and "<kernel>.lora_b" of the adapted kernels; and, under their own names, all
                         tensors that the base does not have or that differ from it, such as a trained head

`from_pretrained` reads such a folder as any other source: it opens the base too, and adds the adapters to its kernels
while they are read. So `convert` writes a model without adapters. The base is found by the path or Hub id in the
folder; a relative path starts at the folder, if it leads somewhere from there. A checksum tells another base from it.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_jax.storage import parameters
from vitpose_jax.storage.int4 import GROUP_SIZE
from vitpose_jax.storage.tensors import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LazyTensor,
    open_safetensors,
    read_json,
    write_folder,
)
from vitpose_jax.storage.text import printable, shorten
from vitpose_jax.vitpose.adapters import LORA_A, LORA_B, Lora, merge_kernel
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.quantized import KINDS, Quantization, dequantize_tensors, quantize_tensors

from .formats.format import Tensors, vitpose_shapes
from .formats.native import VERSION, parse_config

MODEL_TYPE = "vitpose_jax_adapter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """What an adapter folder says, besides its tensors.

    Attributes:
        base: the source of the model that the adapters belong to.
        base_sha256: `fingerprint` of its tensors.
        lora: which kernels have adapters.
        quantization: how the kernels of the blocks of the base were stored in the training; None for floating point.
        model: the configuration of the model.
    """

    base: str
    base_sha256: str
    lora: Lora
    quantization: Quantization | None
    model: VitPoseConfig

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        values = {
            "model_type": MODEL_TYPE,
            "format": VERSION,
            "base": self.base,
            "base_sha256": self.base_sha256,
            **dataclasses.asdict(self.lora),
            "quantize": None if self.quantization is None else self.quantization.kind,
            "group_size": None if self.quantization is None else self.quantization.group_size,
            "model": self.model.to_dict(),
        }
        return values | {"kernels": list(self.lora.kernels)}


def is_adapter(folder: Path) -> bool:
    """Whether this is a folder that says that it holds adapters."""
    return (folder / CONFIG_FILE).is_file() and read_json(folder / CONFIG_FILE).get("model_type") == MODEL_TYPE


def read_adapter(folder: Path) -> tuple[AdapterFile, dict[str, LazyTensor]]:
    """What an adapter folder says, and its tensors, not read yet.

    Raises:
        ValueError: if a file is missing or damaged.
    """
    path = folder / CONFIG_FILE
    values = read_json(path)
    kinds = {"base": str, "base_sha256": str, "rank": int, "alpha": int | float, "kernels": list, "model": dict}
    expected = {"model_type", "format", "quantize", "group_size", *kinds}
    if values.get("format") != VERSION:
        raise ValueError(f"{path}: expected format {VERSION}, got {shorten(values.get('format'))}")
    if set(values) != expected:
        raise ValueError(f"{path}: expected {', '.join(sorted(expected))}, got {shorten(sorted(values))}")
    for name, kind in kinds.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise ValueError(f"{path}: {name}: got {shorten(values[name])}")
    model = parse_config({**values["model"], "model_type": "vitpose_jax", "format": VERSION}, source=str(path))
    if values["quantize"] not in (None, *KINDS) or type(values["group_size"]) not in (int, type(None)):
        raise ValueError(
            f"{path}: quantize, group_size: expected one of {', '.join(KINDS)} with a number, or null, "
            f"got {shorten(values['quantize'])}, {shorten(values['group_size'])}"
        )
    if not all(isinstance(name, str) for name in values["kernels"]):
        raise ValueError(f"{path}: kernels: expected names, got {shorten(values['kernels'])}")
    try:
        lora = Lora(rank=values["rank"], alpha=float(values["alpha"]), kernels=tuple(values["kernels"]))
        quantization = None
        if values["quantize"] is not None:
            quantization = Quantization(kind=values["quantize"], group_size=values["group_size"] or GROUP_SIZE)
            for name in lora.kernels:
                if name in vitpose_shapes(model):
                    quantization.scale_shape(vitpose_shapes(model)[name])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {printable(error)}") from error
    adapter = AdapterFile(
        base=values["base"],
        base_sha256=values["base_sha256"],
        lora=lora,
        quantization=quantization,
        model=model,
    )
    return adapter, open_safetensors(folder / WEIGHTS_FILE)


def merged_tensors(adapter: AdapterFile, tensors: Tensors, base: Tensors, *, source: str) -> dict[str, LazyTensor]:
    """The tensors of the model that a folder stands for, by flat name; each is computed when it is read.

    Args:
        adapter: what the folder says.
        tensors: of the folder.
        base: those of the base.
        source: the folder, for the error message.

    Raises:
        ValueError: for another base than that of the training; or listing at once all adapters that are missing or have
            a wrong shape.
    """
    if fingerprint(base) != adapter.base_sha256:
        raise ValueError(f"{source}: expected the model that its adapters were trained on, got another: {adapter.base}")
    shapes, lora = vitpose_shapes(adapter.model), adapter.lora
    unknown = [f"unexpected {name} among its kernels" for name in lora.kernels if name not in shapes]
    parameters.raise_problems(unknown, source=source)
    expected: dict[str, tuple[int, ...]] = {}
    for name in lora.kernels:
        expected |= lora.shapes(name, shapes[name])
    # Other tensors are compared with the model's when all are together.
    own = {name: tensor for name, tensor in tensors.items() if name in expected or name.endswith((LORA_A, LORA_B))}
    parameters.raise_problems(parameters.differences(expected, own), source=source)
    result = dict(base_tensors(base, adapter.quantization))
    # A base may have more heads, or another one.
    result = {name: tensor for name, tensor in result.items() if name in shapes}
    result |= {name: tensor for name, tensor in tensors.items() if name not in own}
    for name in lora.kernels:
        if name not in result or tuple(result[name].shape) != shapes[name]:
            continue  # reported where all tensors are compared with the model's
        pair = tensors[name + LORA_A], tensors[name + LORA_B]
        result[name] = _merged(result[name], *pair, lora.factor, by_layer=adapter.quantization is None)
    return result


def base_tensors(tensors: Tensors, quantization: Quantization | None) -> Tensors:
    """The tensors of a base in floating point, with kernels that are rounded as they were in the training."""
    return tensors if quantization is None else dequantize_tensors(quantize_tensors(tensors, quantization))


def _merged(base: LazyTensor, a: LazyTensor, b: LazyTensor, factor: float, *, by_layer: bool) -> LazyTensor:
    def layer(index: int) -> np.ndarray:
        return merge_kernel(base.layer(index), a.layer(index), b.layer(index), factor)

    def read() -> np.ndarray:
        return merge_kernel(np.asarray(base), np.asarray(a), np.asarray(b), factor)

    # A kernel that is rounded here is rounded as a whole, whatever part of it is read.
    return LazyTensor(tuple(base.shape), np.dtype(np.float32), read, read_layer=layer if by_layer else None)


def fingerprint(tensors: Tensors) -> str:
    """SHA-256 of the biases and norms of a backbone as float32, which differ between any two trainings.

    They stay in floating point in every kind of file, and are a small part of it.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith("backbone.") and (name.endswith((".bias", "_bias")) or ".norm" in name):
            digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
            digest.update(np.asarray(tensors[name], np.float32).tobytes())
    return digest.hexdigest()


def write_adapter(
    folder: str | Path,
    adapter: AdapterFile,
    tensors: Mapping[str, Any],
    adapters: Mapping[str, Any],
    base: Tensors,
    *,
    overwrite: bool = False,
) -> None:
    """Write an adapter folder, whole or not at all.

    Args:
        folder: created if it does not exist.
        adapter: what it says.
        tensors: of the model without adapters, by flat name. Those of the base are left out.
        adapters: by flat name.
        base: the tensors of the base.
        overwrite: replace what is already there.

    Raises:
        ValueError: if the folder holds a checkpoint and `overwrite` is not set; if kernels that have adapters are not
            those of the base.
    """
    base = base_tensors(base, adapter.quantization)
    changed = {name: tensor for name, tensor in tensors.items() if not _same(base.get(name), tensor)}
    wrong = sorted(set(adapter.lora.kernels) & set(changed))
    if wrong:
        raise ValueError(f"{adapter.base}: expected the kernels that have adapters, got others for {', '.join(wrong)}")
    write_folder(folder, {**changed, **adapters}, {CONFIG_FILE: adapter.to_dict()}, overwrite=overwrite)


def _same(base: Any, tensor: Any) -> bool:
    if base is None or tuple(base.shape) != tuple(tensor.shape):
        return False
    return np.array_equal(np.asarray(base, np.float32), np.asarray(tensor, np.float32))
