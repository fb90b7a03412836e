"""Training states on disk, written by orbax: the last one, and that of the best model.

    checkpoints/<micro-step>/state      the `TrainState`; each process writes its part
    checkpoints/<micro-step>/position   JSON: the state of the data loader, the same in all processes, and a note

States are written in the background while training continues. A checkpoint gets its name when it is complete, so a
killed process leaves no broken one. All processes make the same calls, with a folder that all of them share.
"""

import math
import os
import pathlib
from typing import Any

import jax

from vitpose_jax.training.step import TrainState

try:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers
except ImportError as error:
    raise ImportError('training needs orbax-checkpoint: pip install "vitpose-jax[train]"') from error

# The name of `TrainState.micro_step` and of the loader's `micro_step` on disk, from version 0.1 on.
MICRO_STEP = "step"


class Checkpoints:
    """The checkpoints of one training run; close it, or use it in a `with`.

    Args:
        folder: created if it does not exist. Incomplete checkpoints of a killed process are removed from it.
    """

    def __init__(self, folder: str | os.PathLike):
        policies = [
            checkpoint_managers.LatestN(1),
            checkpoint_managers.BestN(n=1, get_metric_fn=_value),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=_value,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        folder = pathlib.Path(folder).absolute()
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=("state", "position"))

    @property
    def last(self) -> int | None:
        """The micro-step of the last complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    @property
    def micro_steps(self) -> list[int]:
        """The micro-steps of all complete checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(
        self, state: TrainState, loader: dict[str, Any], note: dict[str, Any], *, value: float | None = None
    ) -> None:
        """Save a state. Returns when the state has been copied, before it is on disk.

        Args:
            state: it may be donated to the next micro-step when this returns.
            loader: the state of the loader, from `Loader.get_state`.
            note: any JSON values.
            value: quality of the model, higher is better. None or NaN if it was not evaluated: worse than any number.
        """
        jax.block_until_ready(state)
        metrics = {"value": -math.inf if value is None or math.isnan(value) else value}
        position = {"loader": _renamed(loader, "micro_step", MICRO_STEP), "note": note}
        items = ocp.args.Composite(state=ocp.args.StandardSave(_to_disk(state)), position=ocp.args.JsonSave(position))
        self._manager.save(int(state.micro_step), args=items, metrics=metrics, force=True)

    def restore(
        self, like: TrainState, micro_step: int | None = None
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """A saved state.

        Args:
            like: a state of the same run, for shapes, dtypes and shardings.
            micro_step: which checkpoint; None for the last.

        Returns:
            The state, the state of the loader, and the note.

        Raises:
            ValueError: if there is no such checkpoint.
        """
        micro_step = self.last if micro_step is None else micro_step
        if micro_step is None or micro_step not in self.micro_steps:
            raise ValueError(
                f"{self._manager.directory}: expected a checkpoint of micro-step {micro_step}, got {self.micro_steps}"
            )
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), _to_disk(like)
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
        restored = self._manager.restore(micro_step, args=items)
        state = TrainState(**_renamed(restored["state"], MICRO_STEP, "micro_step"))
        position = restored["position"]
        return state, _renamed(position["loader"], MICRO_STEP, "micro_step"), position["note"]

    def wait(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and stop the writer's threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _value(metrics: dict[str, float]) -> float:
    return metrics["value"]


def _to_disk(state: TrainState) -> dict[str, Any]:
    return _renamed(state._asdict(), "micro_step", MICRO_STEP)


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in values.items()}
