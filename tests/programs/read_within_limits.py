"""Open models, each with little memory and little time: prints a JSON list with the error of each, or null.

    python -m tests.programs.read_within_limits MEGABYTES SECONDS PATH...

A model that needs more raises MemoryError or ends the process with SIGALRM: then there is no output.
"""

import json
import pathlib
import resource
import signal
import sys

import torch

from vitpose_jax.convert.detectors import load_detector
from vitpose_jax.convert.formats.rtdetr import parse_config
from vitpose_jax.convert.sources import open_source
from vitpose_jax.pretrained import from_pretrained
from vitpose_jax.storage.tensors import read_json
from vitpose_jax.training.toml import read_table


def read_rtdetr(folder: pathlib.Path) -> None:
    path = folder / "config.json"
    parse_config(read_json(path), None, source=str(path))


READERS = {".toml": read_table, ".finder": load_detector, ".rtdetr": read_rtdetr}


def address_space() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def main() -> None:
    megabytes, seconds = int(sys.argv[1]), int(sys.argv[2])
    from_pretrained()  # imports, and starts the threads, whose stacks would count
    torch.zeros(1)
    errors = []
    for name in sys.argv[3:]:
        path = pathlib.Path(name)
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + megabytes * 2**20, resource.RLIM_INFINITY))
        signal.alarm(seconds)
        try:
            READERS.get(path.suffix, open_source)(path)
            errors.append(None)
        except (ValueError, OSError) as error:
            errors.append(str(error))
        signal.alarm(0)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
