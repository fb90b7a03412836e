"""The folder of the results.

    poses-000000.parquet ...   one file for each partition; that it exists says that the partition is done
    _run/settings.jsonl        what the results depend on
    _run/model.jsonl           and what only a worker knows: checksums of the weights
    _run/manifest.parquet      the partitions

Readers of Parquet pass over names that begin with an underscore: `pyarrow.parquet.read_table(folder)` reads the poses.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitpose_jax.bulk.settings import describe_differences
from vitpose_jax.distributed.files import delete_files, exists, is_folder, join, list_files, make_folder, read_file
from vitpose_jax.distributed.files import write_file as _write_file
from vitpose_jax.distributed.inputs import Kind, Manifest, Piece, encode_manifest, open_manifest

_RESULT = re.compile(r"poses-(\d{6,})\.parquet")


class Output:
    """A folder of results.

    Args:
        folder: its name; it need not exist.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._run = join(folder, "_run")
        self._given: Mapping[str, Any] = {}
        self._settings, self._model, self._manifest = (
            join(self._run, name) for name in ("settings.jsonl", "model.jsonl", "manifest.parquet")
        )

    def start(
        self,
        settings: Mapping[str, Any],
        find: Callable[[], tuple[Kind, Iterable[list[Piece]]]],
        *,
        overwrite: bool,
    ) -> Manifest:
        """The manifest of an earlier run with these settings; or of a new one.

        Other settings of a run in which no worker ever loaded its model, so that nothing depends on them, are replaced.

        Args:
            settings: by name, ready for JSON.
            find: the partitions of the source, for a new run.
            overwrite: delete the results of an earlier run.

        Raises:
            ValueError: naming the settings that differ, or if there are results without them; as `find`.
        """
        self._given = settings
        if not overwrite and exists(self._settings):
            if exists(self._model) or self.done():
                self._check(self._settings, settings)
            else:
                overwrite = bool(self._differences(self._settings, settings))
        elif not overwrite and self.done():
            raise ValueError(
                f"{self.folder}: holds results without {self._settings.removeprefix(self.folder + '/')}, so their "
                "settings are not known; overwrite them or choose another folder"
            )
        if not overwrite and exists(self._manifest):
            self._remove_leftovers()
            return open_manifest(self._manifest)
        # What may fail comes first.
        content = encode_manifest(*find())
        if overwrite:
            # The settings go last: a folder with some of the old results keeps them.
            delete_files([join(self.folder, _result(number)) for number in self.done()])
            delete_files([name for name in (self._model, self._manifest, self._settings) if exists(name)])
        make_folder(self._run)
        self._remove_leftovers()
        self._write(self._settings, settings)
        _write_file(self._manifest, content, temporary=self._run)
        return open_manifest(self._manifest)

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Check what a worker says about its model against what is recorded; the first one is recorded.

        Raises:
            ValueError: naming what differs; also settings that another run replaced since `start`.
        """
        self._check(self._settings, self._given)
        if exists(self._model):
            self._check(self._model, model)
        else:
            self._write(self._model, model)

    def done(self) -> set[int]:
        """The numbers of the partitions whose results exist."""
        if not is_folder(self.folder):
            return set()
        names = (name.rpartition("/")[2] for name in list_files(self.folder, recursive=False))
        return {int(match[1]) for match in map(_RESULT.fullmatch, names) if match is not None}

    def write(self, number: int, content: bytes) -> None:
        """Write the results of a partition.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        _write_file(join(self.folder, _result(number)), content, temporary=self._run)

    def _check(self, name: str, settings: Mapping[str, Any]) -> None:
        differing = self._differences(name, settings)
        if differing:
            raise ValueError(
                f"{self.folder}: holds results with other settings: {'; '.join(differing)}; "
                "overwrite them or choose another folder"
            )

    @staticmethod
    def _differences(name: str, settings: Mapping[str, Any]) -> list[str]:
        return describe_differences(json.loads(read_file(name)), settings)

    def _write(self, name: str, settings: Mapping[str, Any]) -> None:
        _write_file(name, (json.dumps(settings, sort_keys=True) + "\n").encode(), temporary=self._run)

    def _remove_leftovers(self) -> None:
        delete_files([name for name in list_files(self._run, recursive=False) if name.endswith(".tmp")])


def _result(number: int) -> str:
    return f"poses-{number:06d}.parquet"
