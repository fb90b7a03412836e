"""The models of a server, by the names that its visitors see.

All are loaded at the start: a model that cannot be loaded is found before the first visitor comes, and the memory that
the server needs does not depend on what visitors choose.
"""

import dataclasses
import pathlib
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from vitpose_jax.estimator import PoseEstimator
from vitpose_jax.storage.text import shorten
from vitpose_jax.web.batcher import MAX_IMAGES, MAX_WAITING, Batcher
from vitpose_jax.web.overlays import Overlays


@dataclasses.dataclass(frozen=True, eq=False)
class ServedModel:
    """A model of a server.

    Attributes:
        name: as visitors see it.
        batcher: its estimator, for many threads.
        overlays: its heatmaps and attention.
    """

    name: str
    batcher: Batcher
    overlays: Overlays

    @property
    def datasets(self) -> list[str]:
        """The datasets that it has a head for."""
        return [skeleton.name for skeleton in self.batcher.estimator.config.skeletons]

    def describe(self) -> dict[str, Any]:
        """What a program needs to know of it, ready for JSON."""
        config = self.batcher.estimator.config
        skeletons = {skeleton.name: skeleton.to_dict() for skeleton in config.skeletons}
        return {"image_size": list(config.image_size), "datasets": self.datasets, "skeletons": skeletons}


class Models:
    """Estimators by name; the first is the default.

    Args:
        estimators: one or more.
        max_images, max_waiting: of the `Batcher` of each.

    Attributes:
        stopping: set once the server is told to stop; a video that is being tracked ends then.

    Raises:
        ValueError: for no estimator.
    """

    def __init__(
        self,
        estimators: Mapping[str, PoseEstimator],
        *,
        max_images: int = MAX_IMAGES,
        max_waiting: int = MAX_WAITING,
    ):
        if not estimators:
            raise ValueError("estimators: expected one or more, got none")
        self._models = {
            name: ServedModel(
                name, Batcher(estimator, max_images=max_images, max_waiting=max_waiting), Overlays(estimator)
            )
            for name, estimator in estimators.items()
        }
        self.stopping = threading.Event()

    @property
    def names(self) -> list[str]:
        """The names, the default first."""
        return list(self._models)

    @property
    def all(self) -> list[ServedModel]:
        """The models, the default first."""
        return list(self._models.values())

    def choose(self, name: str | None = None) -> ServedModel:
        """The model of a name; None for the default.

        Raises:
            ValueError: for an unknown name, listing the known ones.
        """
        if name is None:
            return self.all[0]
        if name not in self._models:
            raise ValueError(f"model: expected one of {', '.join(self.names)}, got {shorten(name)}")
        return self._models[name]

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return sum(model.batcher.waiting for model in self.all)

    def close(self) -> None:
        """Finish what is being computed; what waits gets a `BusyError`, and a video ends after its frame."""
        self.stopping.set()
        for model in self.all:
            model.batcher.close()


def name_sources(values: Iterable[str]) -> dict[str, str]:
    """Names that visitors see, for sources of models: no path of the server is among them.

    Args:
        values: each a source: a Hub id, which is its own name; a folder or a file, whose last part is its name; or
            "NAME=SOURCE".

    Raises:
        ValueError: if two have the same name.
    """
    sources: dict[str, str] = {}
    for value in values:
        given = re.fullmatch(r"([\w. -]+)=(.+)", value)
        if given and not pathlib.Path(value).exists():
            name, source = given.groups()
        else:
            path = pathlib.Path(value)
            name, source = (
                (path.resolve().stem if path.is_file() else path.resolve().name) if path.exists() else value,
                value,
            )
        if name in sources:
            raise ValueError(f"--model: two are named {name!r}; name one yourself: --model NAME={source}")
        sources[name] = source
    return sources
