"""Any number of images on any number of machines: Ray runs the workers, Parquet holds the poses.

    predict_dataset("shards/", "poses", model="usyd-community/vitpose-base-simple")

    extras.py      what to say without Ray or PyArrow
    files.py       files of this machine and of clouds, by name
    inputs.py      what a source holds, cut into partitions: the manifest
    reading.py     the images of a partition
    table.py       poses as rows of Parquet
    worker.py      one estimator: a partition in, a file out
    pool.py        workers on Ray; who is lost is replaced, and its partition goes to another
    output.py      the folder of the results: settings, manifest, which partitions are done
    predict.py     predict_dataset

The extra `ray` has what they need: `pip install "vitpose-jax[ray]"`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.distributed.predict import BulkSummary as BulkSummary
    from vitpose_jax.distributed.predict import predict_dataset as predict_dataset

_HOMES = {"BulkSummary": "predict", "predict_dataset": "predict"}

__all__ = ["BulkSummary", "predict_dataset"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"vitpose_jax.distributed.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vitpose_jax.distributed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
