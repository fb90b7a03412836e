"""`predict` on several devices and in several processes writes what one device writes."""

import json
import socket
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.support import programs
from tests.support.cli import run
from tests.support.images import random_image
from tests.support.models import TINY, random_model
from tests.tolerances import KEYPOINTS
from vitpose_jax import VitPoseConfig, checkpoint

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images, one of them broken, and a model."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "images").mkdir()
    for number in range(4):
        Image.fromarray(random_image(number)).save(folder / "images" / f"{number}.png")
    (folder / "images" / "broken.png").write_bytes(b"no image")
    checkpoint.save(random_model(VitPoseConfig(**TINY)), folder / "model")
    return folder


def arguments(folder, output) -> list[str]:
    values = ["predict", folder / "images", "--model", folder / "model", "--output", output, "--boxes", "10,10,50,80"]
    return [str(value) for value in values]


def assert_same(output, expected) -> None:
    names = sorted(path.name for path in expected.glob("*.json"))
    assert sorted(path.name for path in output.glob("*.json")) == names and len(names) == 4
    assert (output / "settings.jsonl").read_bytes() == (expected / "settings.jsonl").read_bytes()
    for name in names:
        ours, theirs = (json.loads((place / name).read_text())["poses"][0]["keypoints"] for place in (output, expected))
        for point, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose([point["x"], point["y"]], [other["x"], other["y"]], rtol=0, atol=KEYPOINTS)


def test_more_devices_than_there_are(capsys, folder, tmp_path):
    status, _, said = run(capsys, *arguments(folder, tmp_path / "out"), "--devices", "64")
    assert status == 1 and "--devices: expected at most" in said and said.count("\n") == 1


@pytest.mark.slow
def test_two_devices_and_two_processes_write_what_one_writes(folder, tmp_path):
    # All with one level: heatmaps of random weights have no clear peaks, so rounding moves keypoints.
    level = "--xla_backend_optimization_level=0"
    for output, count in (("one", 1), ("devices", 2)):
        flags = f"{level} --xla_force_host_platform_device_count={count}"
        command = programs.command("command_line", *arguments(folder, tmp_path / output), "--devices", str(count))
        done = subprocess.run(command, env=programs.environment(XLA_FLAGS=flags), capture_output=True, text=True)
        # One image is broken.
        assert done.returncode == 1 and "4 of 5 images done" in done.stdout, done.stderr
    assert_same(tmp_path / "devices", tmp_path / "one")

    def two(*more: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        line = [*arguments(folder, tmp_path / "processes"), "--distributed", *more]
        processes = [
            subprocess.Popen(
                programs.command("predict_in_two_processes", address, number, *line),
                env=programs.environment(XLA_FLAGS=level),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        return [process.communicate(timeout=200)[0] for process in processes]

    printed = two()
    # Each computed its own part, and the broken image failed in one of them.
    assert sorted(text.count("images done") for text in printed) == [1, 1], printed
    assert sum(text.count("1 images failed") for text in printed) == 1
    assert_same(tmp_path / "processes", tmp_path / "one")
    # A second run computes what is missing, in whichever process.
    (tmp_path / "processes" / "2.json").unlink()
    printed = two()
    assert all("3 of 5 images are done already" in text for text in printed)
    assert_same(tmp_path / "processes", tmp_path / "one")
    assert all("'coco'" in text for text in two("--format", "coco", "--output", str(tmp_path / "coco")))
