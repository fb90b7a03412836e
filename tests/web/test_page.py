"""What the page shows, its server over a real socket, and what the server does not give away."""

import asyncio
import json
import os
import subprocess
import time
import urllib.error
import urllib.request

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from tests.support import programs
from tests.support.cli import run
from tests.support.models import SMALL_PLUS, smallest_model
from tests.support.server import running
from vitpose_jax import PoseEstimator
from vitpose_jax.bundled import DEMO_IMAGE
from vitpose_jax.web import files
from vitpose_jax.web.batcher import Batcher
from vitpose_jax.web.page import create_page, estimate


@pytest.fixture(scope="module")
def batcher():
    batcher = Batcher(PoseEstimator.from_pretrained())
    yield batcher
    batcher.close()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("web") / "photograph.png"
    Image.open(DEMO_IMAGE).resize((256, 256)).save(path)
    return str(path)


def shown(batcher, path, overlay="poses", **changes):
    options = {"dataset": None, "flip_test": False, "decode": "udp", "threshold": 0.3, "colour_by": "automatic"}
    return estimate(batcher, path, *{**options, **changes}.values(), overlay)


@pytest.mark.parametrize("overlay", ["poses", "heatmaps", "attention"])
def test_an_image_gives_drawing_people_table_and_file(batcher, photograph, overlay):
    results = shown(batcher, photograph, overlay)
    with open(results.file) as file:
        poses = json.load(file)["poses"]
    assert len(poses) >= 1 and len(results.people) == len(poses) and len(results.table) == 17 * len(poses)
    assert results.table[0][:2] == [1, "nose"] and results.table[0][2] == round(poses[0]["keypoints"][0]["x"], 1)
    assert "in an image of 256 x 256 pixels" in results.summary
    difference = np.asarray(results.drawing).astype(int) - np.asarray(Image.open(photograph).convert("RGB"))
    assert (difference != 0).any(axis=-1).mean() > 0.01


def test_an_image_without_people_says_so(batcher, tmp_path):
    Image.new("RGB", (200, 100), (90, 120, 90)).save(tmp_path / "green.png")
    for overlay in ("poses", "heatmaps"):
        results = shown(batcher, str(tmp_path / "green.png"), overlay)
        assert results.summary.startswith("No people") and results.people == [] and results.table == []


def test_mistakes_are_words_without_paths_of_the_server(batcher, tmp_path):
    with pytest.raises(gr.Error, match="Choose an image first"):
        shown(batcher, None)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(gr.Error) as raised:
        shown(batcher, str(tmp_path / "text.png"))
    assert str(tmp_path) not in str(raised.value) and "Pillow" in str(raised.value)


def test_a_page_offers_the_datasets_of_the_model():
    batcher = Batcher(PoseEstimator(smallest_model(**SMALL_PLUS)))

    async def create():
        # In an event loop: without one, gradio makes several and leaves them open.
        return create_page(batcher, model_name="plus", track_video=lambda *_, **__: None)

    page = asyncio.run(create())
    labels = {block.label: block for block in page.blocks.values() if getattr(block, "label", None)}
    assert [name for name, _ in labels["Keypoints"].choices] == ["coco", "ap10k"]
    assert "Video" in labels
    batcher.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield url


def test_a_client_of_gradio_gets_what_the_page_shows(address, photograph):
    """In a process of its own: gradio's client leaves sockets open."""
    program = programs.command("use_page", address, photograph)
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=programs.environment())
    shown = json.loads(done.stdout)
    assert shown["size"] == [256, 256] and "in an image of 256 x 256 pixels" in shown["summary"]
    assert shown["people"] == shown["poses"] >= 1
    assert shown["header"] == ["person", "keypoint", "x", "y", "score"]


def test_what_a_visitor_names_is_not_fetched(address, tmp_path):
    """gradio's own image and video would download an address, and take a file's content out of the request."""

    def call(path):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "coco", False, "udp", 0.3, "automatic", "poses"]
        headers = {"Content-Type": "application/json"}
        url = f"{address}/gradio_api/call/estimate"
        request = urllib.request.Request(url, json.dumps({"data": data}).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{url}/{event}", timeout=60) as answer:
            return answer.read().decode()

    (tmp_path / "image.png").write_bytes(DEMO_IMAGE.read_bytes())
    for path in (
        f"{address}/v1/health",
        "https://example.com/image.png",
        "data:image/png;base64,AAAA",
        str(tmp_path / "image.png"),
    ):
        said = call(path)
        assert "event: error" in said and "event: complete" not in said, said
        assert "Traceback" not in said


def test_old_results_are_deleted_and_new_ones_stay():
    old, new = files.result_folder(), files.result_folder()
    for folder in (old, new):
        (folder / "poses.json").write_text("{}")
    before = time.time() - 2 * files.MAX_AGE
    for path in (old / "poses.json", old):
        os.utime(path, (before, before))
    files.delete_old()
    assert not old.exists() and (new / "poses.json").exists()
    os.utime(new, (before, before))  # a file in it is still written to
    files.delete_old()
    assert new.exists()


def test_both_doors_are_open_and_no_others(address, tmp_path):
    def get(path):
        try:
            with urllib.request.urlopen(address + path, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    assert get("/v1/health")[0] == 200
    status, page = get("/")
    assert status == 200 and b"vitpose-jax" in page
    # No font, script or picture of another host; the names of gradio's own pages stand in its configuration.
    assert b"fonts.googleapis.com" not in page
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (f"/gradio_api/file={secret}", f"/file={secret}", "/gradio_api/file=pyproject.toml", "/docs"):
        status, content = get(path)
        assert status in (403, 404) and b"secret" not in content.replace(str(secret).encode(), b"")


def test_a_group_size_without_int4_is_one_line(capsys):
    status, _, said = run(capsys, "web", "--group-size", 8)
    assert status == 1 and said.startswith("vitpose-jax: error: --group-size: expected it with --quantize int4")


def test_a_port_that_is_taken_is_one_line(address, capsys):
    status, _, said = run(capsys, "web", "--port", address.rpartition(":")[2])
    assert status == 1 and said.splitlines()[-1].startswith("vitpose-jax: error: ") and "in use" in said
