"""Mutated files of every kind that is read: each gives a result, or one line that names the file.

    python -m tests.robustness.fuzz --seconds 60 --seed 0 --kinds safetensors toml

A case starts from a small good file, of which bytes, lines, numbers or parts are changed, repeated or cut off. It fails
if the reader raises anything but ValueError, TypeError or OSError, if the error has several lines, control characters
or no name of the file, if it takes longer than SECONDS or needs more memory than MEGABYTES, or if a model with numbers
that are not finite is read in silence. Failing files are kept in the folder --keep. The same seed gives the same cases.
"""

import argparse
import collections
import io
import json
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from PIL import Image

from tests.support.models import smallest_model
from tests.support.reference_torch import original_state_dict, save, tiny_model
from vitpose_jax import VitPoseConfig, checkpoint, load_image
from vitpose_jax.convert.sources import open_source
from vitpose_jax.datasets.archives import ImageStore
from vitpose_jax.datasets.box_files import BoxFile
from vitpose_jax.datasets.coco import read_annotations
from vitpose_jax.datasets.matlab import read_arrays
from vitpose_jax.training.config import read_config

SECONDS = 20
MEGABYTES = 1024

# What a file may be replaced by: numbers at the edges of types, and words of its own format in a wrong place.
NUMBERS = [
    "0",
    "-1",
    "1e400",
    "NaN",
    "1e-320",
    "99999999999999999999",
    "2147483648",
    "4294967295",
    "0.5",
    "true",
    "null",
]
WORDS = ["[]", "{}", '""', '"\\u0000"', '"\\u001b[31m"', "[[[[[[]]]]]]", '"a"', '"' + "a" * 300 + '"']

TOML = """output = "o"
steps = 3
seed = 0
batch_size = 2
precision = "bfloat16"
[model]
preset = "small"
image_size = [192, 144]
[[data]]
dataset = "coco"
annotations = "a.json"
images = ["a.zip", "b.zip"]
ratio = 0.5
weights = { "lsp_.*" = 0.4, "[a-z]+_?" = 1 }
[optim]
learning_rate = 1e-4
frozen = ["attention", "heads\\\\..+"]
milestones = [0.5, 100]
[augmentation]
rotation = 20
"""


class Kind(NamedTuple):
    """A kind of file: the bytes of a good one, the name of the mutated file in `folder`, and what reads it."""

    content: bytes
    path: pathlib.Path
    read: Callable[[pathlib.Path], Any]
    is_text: bool = False


def make_kinds(folder: pathlib.Path) -> dict[str, Kind]:
    """The kinds by name, with their good files in a folder."""
    hub, native, sharded = folder / "hub", folder / "native", folder / "sharded"
    save(tiny_model(), hub)
    checkpoint.save(smallest_model(), native)
    save(tiny_model(), sharded, max_shard_size="20KB")
    config = VitPoseConfig(image_size=(64, 48), hidden_size=24, num_layers=2, num_heads=2, decoder="simple")
    state = original_state_dict(tiny_model())
    pickles = {}
    for name, zipped in (("pth", True), ("old_pth", False)):
        file = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 1}, file, _use_new_zipfile_serialization=zipped)
        pickles[name] = file.getvalue()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8))
    images = {}
    for suffix in ("png", "jpg", "webp", "tif", "gif", "bmp"):
        file = io.BytesIO()
        image.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
        images[suffix] = file.getvalue()
    (folder / "images").mkdir()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", images["png"])
        file.writestr("b/c.jpg", images["jpg"])
    matlab = io.BytesIO()
    scipy.io.savemat(matlab, {"doubles": np.arange(160.0).reshape(16, 2, 5)}, do_compression=True)

    def in_folder(name: str, source: pathlib.Path, file: str) -> Kind:
        return Kind(
            (source / file).read_bytes(), source / file, lambda path: read_model(path.parent), name != "weights"
        )

    coco = json.dumps(coco_document()).encode()
    boxes = json.dumps([{"image_id": 1, "bbox": [1, 2, 10, 12], "score": 0.5, "category_id": 1}] * 3).encode()
    named = json.dumps({"a.png": [[1, 2, 10, 12]], "b.png": []}).encode()
    return {
        "safetensors": in_folder("weights", native, "model.safetensors"),
        "config": in_folder("config", native, "config.json"),
        "hub_config": in_folder("config", hub, "config.json"),
        "preprocessor": in_folder("config", hub, "preprocessor_config.json"),
        "index": in_folder("config", sharded, "model.safetensors.index.json"),
        "pth": Kind(pickles["pth"], folder / "a.pth", lambda path: read_model(path, config)),
        "old_pth": Kind(pickles["old_pth"], folder / "b.pth", lambda path: read_model(path, config)),
        "toml": Kind(TOML.encode(), folder / "a.toml", read_config, True),
        "coco": Kind(coco, folder / "coco.json", lambda path: read_annotations(path, 17), True),
        "boxes": Kind(boxes, folder / "boxes.json", read_boxes, True),
        "named_boxes": Kind(named, folder / "named.json", read_boxes, True),
        "matlab": Kind(matlab.getvalue(), folder / "a.mat", lambda path: read_arrays(path, ["doubles"])),
        "zip": Kind(archive.getvalue(), folder / "a.zip", read_archive),
        **{name: Kind(content, folder / "images" / f"a.{name}", load_image) for name, content in images.items()},
    }


def coco_document() -> dict[str, Any]:
    person = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 20], "area": 300.5, "iscrowd": 0}
    person |= {"num_keypoints": 17, "keypoints": [5, 6, 2] * 17}
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 24}],
        "annotations": [person, person | {"id": 2}],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose"] * 17, "skeleton": [[1, 2]]}],
    }


def read_model(path: pathlib.Path, config: VitPoseConfig | None = None) -> None:
    """All tensors of a checkpoint."""
    for name, tensor in open_source(path, config=config).tensors.items():
        if not np.isfinite(np.asarray(tensor, np.float32)).all():
            raise AssertionError(f"{name} is not finite, and was read")


def read_boxes(path: pathlib.Path) -> None:
    """The boxes of the images that the good files have."""
    boxes = BoxFile(path)
    for name in ("a.png", "b.png", "1.png"):
        if not np.isfinite(boxes[pathlib.Path(name)].boxes).all():
            raise AssertionError("boxes are not finite, and were read")


def read_archive(path: pathlib.Path) -> None:
    """All images of an archive."""
    store = ImageStore(path)
    for name in ("a.png", "b/c.jpg"):
        store.load(path.parent / name)


def mutate(content: bytes, is_text: bool, source: random.Random) -> bytes:
    """The content with one to four changes."""
    for _ in range(source.choice([1, 1, 1, 2, 4])):
        content = (mutate_text if is_text and source.random() < 0.7 else mutate_bytes)(content, source)
    return content


def mutate_bytes(content: bytes, source: random.Random) -> bytes:
    """Bytes changed, cut out, repeated, or a number of 4 or 8 bytes replaced."""
    if not content:
        return b"\0"
    # Sizes stand at the beginning and at the end of most files.
    at = source.choice([source.randrange(len(content)), source.randrange(min(200, len(content)))])
    at = len(content) - 1 - at if source.random() < 0.2 else at
    length = source.choice([1, 1, 4, 8, 100])
    kind = source.randrange(6)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + length :]
    if kind == 2:
        return content[:at] + content[at : at + length] * source.choice([2, 50]) + content[at + length :]
    if kind == 3:
        number = source.choice([0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1])
        return content[:at] + number.to_bytes(8, "little")[: source.choice([4, 8])] + content[at + 8 :]
    if kind == 4:
        return content[:at] + bytes([content[at] ^ (1 << source.randrange(8))]) + content[at + 1 :]
    return content[:at] + source.randbytes(length) + content[at + length :]


def mutate_text(content: bytes, source: random.Random) -> bytes:
    """A number or a text replaced; a line or a part repeated; brackets nested."""
    text = content.decode("utf-8", "replace")
    starts = [index for index, character in enumerate(text) if character.isdigit() or character == '"']
    kind = source.randrange(4)
    if kind == 0 or not starts:
        lines = text.split(source.choice([",", "\n"]))
        lines.insert(source.randrange(len(lines) + 1), source.choice(lines))
        return ",".join(lines).encode() if "," in text else "\n".join(lines).encode()
    start = source.choice(starts)
    end = start + 1
    if text[start] == '"':
        end = text.find('"', start + 1) + 1 or len(text)
    else:
        while end < len(text) and text[end] in "0123456789.e-+":
            end += 1
    if kind == 1:
        depth = source.choice([1, 3, 5000])
        return (text[:start] + "[" * depth + text[start:end] + "]" * depth + text[end:]).encode()
    return (text[:start] + source.choice(NUMBERS + WORDS) + text[end:]).encode()


def check(kind: Kind, content: bytes) -> str:
    """How a case ends: "read", "refused", or what is wrong with it."""
    kind.path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(kind.path)
        result = "read"
    except (ValueError, TypeError, OSError) as error:
        result = "refused"
        if not is_one_line(str(error), kind.path):
            result = f"{error!r} in {traceback.format_exc(limit=-2).splitlines()[-3]}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        result = f"{error!r} in {traceback.format_exc(limit=-2).splitlines()[-3]}"
    finally:
        signal.alarm(0)
        kind.path.write_bytes(kind.content)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"needed {grown:.0f} MB" if grown > MEGABYTES else result


def is_one_line(message: str, path: pathlib.Path) -> bool:
    """Whether an error names the file or its folder, and has one line; lists of tensors have a line for each."""
    lines = message.split("\n")
    listed = all(line.startswith("  ") for line in lines[1:]) and len(lines) < 30
    return (path.name in message or path.parent.name in message) and listed and all(map(str.isprintable, lines))


class Hang(BaseException):
    """A case took longer than SECONDS."""


def stop(*_: object) -> None:
    raise Hang


def run(
    kinds: dict[str, Kind], seconds: float, seed: int, keep: pathlib.Path | None
) -> tuple[dict[str, collections.Counter[str]], list[str]]:
    """Cases of all kinds in turn until the time is over: how they ended by kind, and the failures."""
    signal.signal(signal.SIGALRM, stop)
    source, end = random.Random(seed), time.monotonic() + seconds
    ends: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in kinds}
    failures = []
    while time.monotonic() < end:
        for name, kind in kinds.items():
            content = mutate(kind.content, kind.is_text, source)
            result = check(kind, content)
            ends[name][result if result in ("read", "refused") else "failed"] += 1
            if result not in ("read", "refused"):
                failures.append(f"{name}: {result}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}_{len(failures)}_{kind.path.name}").write_bytes(content)
    return ends, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="default: all")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the files that fail")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kinds = make_kinds(pathlib.Path(folder))
        kinds = {name: kind for name, kind in kinds.items() if not options.kinds or name in options.kinds}
        ends, failures = run(kinds, options.seconds, options.seed, options.keep)
    print(f"{'kind':14} {'cases':>7} {'read':>7} {'refused':>8} {'failed':>7}")
    for name, counts in ends.items():
        print(f"{name:14} {counts.total():7} {counts['read']:7} {counts['refused']:8} {counts['failed']:7}")
    for failure in sorted(set(failures))[:40]:
        print(failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
