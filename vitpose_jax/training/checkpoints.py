"""The state of a training on disk: the last one, and that of the best model, by orbax.

    checkpoints/<step>/state      the `TrainState`, each process its part
    checkpoints/<step>/position   JSON: where the data loader stands, the same in all processes, and what else is noted

Writing goes on in the background while training does. A checkpoint has another name until it is whole: what a kill
cuts short is not seen again. In several processes all call alike, and the folder is one that all share.
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


class Checkpoints:
    """The checkpoints of one training; close it, or use it in a `with`.

    Args:
        folder: made where it does not exist. What a killed run left unfinished there is removed.
    """

    def __init__(self, folder: str | os.PathLike):
        policies = checkpoint_managers
        kept = [
            policies.LatestN(1),
            policies.BestN(n=1, get_metric_fn=_value),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=_value,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        folder = pathlib.Path(folder).absolute()
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=("state", "position"))

    @property
    def last(self) -> int | None:
        """The step of the last whole checkpoint."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all whole checkpoints."""
        return sorted(self._manager.all_steps())

    def save(
        self, state: TrainState, loader: dict[str, Any], note: dict[str, Any], *, value: float | None = None
    ) -> None:
        """Save a state; returns when it has been copied, before it is on disk.

        Args:
            state: the next step may use it up once this returns.
            loader: `Loader.get_state`.
            note: anything ready for JSON.
            value: how good the model is, more being better; None or NaN where nobody measured:
                then any other is better.
        """
        jax.block_until_ready(state)
        step = int(state.step)
        metrics = {"value": -math.inf if value is None or math.isnan(value) else value}
        position = {"loader": loader, "note": note}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """A state that was saved.

        Args:
            like: a state of the same training: its shapes, and how it lies on devices.
            step: of which checkpoint; None for the last.

        Returns:
            The state, the state of the loader, and what was noted.

        Raises:
            ValueError: where there is no such checkpoint.
        """
        step = self.last if step is None else step
        if step is None or step not in self.steps:
            raise ValueError(f"{self._manager.directory}: no checkpoint of step {step}; there are {self.steps}")
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        position = restored["position"]
        return restored["state"], position["loader"], position["note"]

    def wait(self) -> None:
        """Until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and end the threads."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _value(metrics: dict[str, float]) -> float:
    return metrics["value"]
