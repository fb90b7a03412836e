"""What the page shows, its server over a real socket, and what the server does not give away."""

import asyncio
import functools
import json
import logging
import os
import subprocess
import time
import urllib.error
import urllib.request

import gradio as gr
import jax
import numpy as np
import pytest
from PIL import Image

from tests.support import programs
from tests.support.cli import run
from tests.support.models import SMALL_PLUS, smallest_model
from tests.support.server import running
from tests.tolerances import HEATMAPS
from vitpose_jax import PoseEstimator
from vitpose_jax.bundled import DEMO_IMAGE
from vitpose_jax.draw import draw_heatmaps
from vitpose_jax.pipeline.preprocess import crop_boxes
from vitpose_jax.web import files
from vitpose_jax.web.models import Models, name_sources
from vitpose_jax.web.page import create_page, estimate


@pytest.fixture(scope="module")
def models():
    models = Models({"small": PoseEstimator.from_pretrained()})
    yield models
    models.close()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("web") / "photograph.png"
    Image.open(DEMO_IMAGE).resize((256, 256)).save(path)
    return str(path)


def shown(models, path, overlay="poses", **changes):
    options = {
        "model": None,
        "dataset": None,
        "flip_test": False,
        "decode": "udp",
        "threshold": 0.3,
        "colour_by": "automatic",
    }
    return estimate(models, path, *{**options, **changes}.values(), overlay)


@pytest.mark.parametrize("overlay", ["poses", "heatmaps", "attention"])
def test_an_image_gives_drawing_people_table_and_file(models, photograph, overlay):
    results = shown(models, photograph, overlay)
    with open(results.file) as file:
        poses = json.load(file)["poses"]
    assert len(poses) >= 1 and len(results.people) == len(poses) and len(results.table) == 17 * len(poses)
    assert results.table[0][:2] == [1, "nose"] and results.table[0][2] == round(poses[0]["keypoints"][0]["x"], 1)
    assert "in an image of 256 x 256 pixels" in results.summary
    difference = np.asarray(results.drawing).astype(int) - np.asarray(Image.open(photograph).convert("RGB"))
    assert (difference != 0).any(axis=-1).mean() > 0.01


def test_an_image_without_people_says_so(models, tmp_path):
    Image.new("RGB", (200, 100), (90, 120, 90)).save(tmp_path / "green.png")
    for overlay in ("poses", "heatmaps"):
        results = shown(models, str(tmp_path / "green.png"), overlay)
        assert results.summary.startswith("No people") and results.people == [] and results.table == []


def test_mistakes_are_words_without_paths_of_the_server(models, tmp_path):
    with pytest.raises(gr.Error, match="Choose an image first"):
        shown(models, None)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(gr.Error) as raised:
        shown(models, str(tmp_path / "text.png"))
    assert str(tmp_path) not in str(raised.value) and "Pillow" in str(raised.value)


def made_page(models):
    async def create():
        # In an event loop: without one, gradio makes several and leaves them open.
        return create_page(models, track_video=lambda *_, **__: None)

    page = asyncio.run(create())
    return {block.label: block for block in page.blocks.values() if getattr(block, "label", None)}


def test_a_page_offers_the_models_and_their_datasets():
    plus = PoseEstimator(smallest_model(**SMALL_PLUS))
    models = Models({"small": PoseEstimator(smallest_model()), "plus": plus})
    labels = made_page(models)
    assert [name for name, _ in labels["Model"].choices] == ["small", "plus"] and labels["Model"].value == "small"
    assert [name for name, _ in labels["Keypoints"].choices] == ["coco", "ap10k"]
    assert "Video" in labels and labels["Model"].parent.parent.visible
    models.close()
    models = Models({"small": PoseEstimator(smallest_model())})
    assert not made_page(models)["Model"].parent.parent.visible, "there is nothing to choose"
    models.close()


def test_an_unknown_model_is_words(models, photograph):
    with pytest.raises(gr.Error, match="model: expected one of small, got 'huge'"):
        shown(models, photograph, model="huge")


def test_models_have_names_without_paths(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "old.pth").write_bytes(b"")
    (tmp_path / "a=b").mkdir()
    best, other = str(tmp_path / "best"), str(tmp_path / "other")
    sources = [best, str(tmp_path / "old.pth"), "user/model", f"mine={other}", str(tmp_path / "a=b")]
    assert name_sources(sources) == dict(
        zip(["best", "old", "user/model", "mine", "a=b"], [best, *sources[1:3], other, sources[4]], strict=True)
    )
    with pytest.raises(ValueError, match="--model: two are named 'best'; name one yourself: --model NAME="):
        name_sources([best, f"best={other}"])


@pytest.mark.slow
def test_another_image_compiles_nothing(models, tmp_path, caplog):
    """Neither another size nor another number of people, for each drawing."""
    sizes = {"a.png": (256, 256), "b.png": (211, 301), "c.png": (512, 384)}
    for name, size in sizes.items():
        Image.open(DEMO_IMAGE).resize(size).save(tmp_path / name)
    served = models.choose()

    def draw_all(name, count):
        image = np.asarray(Image.open(tmp_path / name))
        boxes = np.tile(np.float32([10, 10, 100, 150]), (count, 1))
        for kind in ("heatmaps", "attention"):
            shown(models, str(tmp_path / name), kind)
            draw_heatmaps(image, served.overlays(image, boxes, kind), boxes)

    draw_all("a.png", 1)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        draw_all("b.png", 3)
        draw_all("c.png", 6)
        compiled = [record.message for record in caplog.records if record.message.startswith("Compiling")]
        jax.jit(lambda x: x + 1)(np.zeros(7))
    assert compiled == []
    assert any(record.message.startswith("Compiling") for record in caplog.records), "compilations are not seen"


def test_overlays_are_those_of_the_network(models, photograph):
    served, image = models.choose(), np.asarray(Image.open(photograph))
    boxes = np.float32([[20, 10, 150, 200], [60, 30, 90, 120], [5, 5, 60, 70], [9, 8, 200, 220], [1, 2, 99, 88]])
    model = served.batcher.estimator.model
    # Compiled too: pixel values are rounded, and in another program a few round otherwise.
    crops = jax.jit(functools.partial(crop_boxes, size=model.config.image_size))(image, boxes)
    np.testing.assert_allclose(
        served.overlays(image, boxes, "heatmaps"), model(crops).max(axis=-1), rtol=0, atol=HEATMAPS
    )
    last = model.backbone(crops, 0, output_attentions=True).attentions[-1]
    maps = served.overlays(image, boxes, "attention")
    np.testing.assert_allclose(maps.reshape(5, -1), last.mean(axis=(1, 2)), rtol=0, atol=HEATMAPS)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield url


@pytest.mark.slow
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
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [file, "vitpose-small-open", "coco", False, "udp", 0.3, "automatic", "poses"]
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
