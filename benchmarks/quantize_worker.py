"""A fresh process that loads a model and runs it once; prints its time and peak memory as JSON. See quantize.py."""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from vitpose_jax import from_pretrained
from vitpose_jax.serving.program import Program
from vitpose_jax.vitpose.quantized import num_bytes

# How each setting loads the model: the dtype of its parameters, or their quantization.
SETTINGS = {
    "float32": {"param_dtype": "float32"},
    "bfloat16": {"param_dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
}


def peak() -> int:
    """The most memory of this process so far, in bytes; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def program(folder: str, setting: str, dtype: str) -> tuple[Program, nnx.Module]:
    """The compiled network of a checkpoint, and the model."""
    model = from_pretrained(folder, dtype=dtype, check_finite=False, **SETTINGS[setting])
    return Program(model, lambda model, crops: model(crops)), model


def main(folder: str, setting: str, dtype: str) -> None:
    """Load, run, print."""
    jax.block_until_ready(jnp.zeros(1))
    row = {"setting": setting, "start_bytes": peak()}
    begin = time.perf_counter()
    run, model = program(folder, setting, dtype)
    row |= {"load_s": time.perf_counter() - begin, "load_bytes": peak(), "parameter_bytes": num_bytes(model)}
    crops = jnp.zeros((1, *model.config.image_size, 3), dtype)
    jax.block_until_ready(run(crops))
    print(json.dumps(row | {"run_bytes": peak()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
