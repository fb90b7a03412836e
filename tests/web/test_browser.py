"""The page in a real browser: a photograph is dropped, and everybody in it is shown.

Needs playwright and Chromium, so it is not part of the default run: python -m pytest -m browser.
VITPOSE_CHROMIUM names another executable than /usr/bin/chromium.
"""

import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.support.models import SMALL_PLUS, smallest_model
from tests.support.server import running
from tests.support.videos import rectangles, write_video
from vitpose_jax import checkpoint
from vitpose_jax.bundled import GROUP_IMAGE

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("VITPOSE_CHROMIUM", "/usr/bin/chromium")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield url


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """A server with two models, one of them of two data sets."""
    folder = tmp_path_factory.mktemp("choices")
    checkpoint.save(smallest_model(**SMALL_PLUS), folder / "plus")
    options = ("--model", "vitpose-small-open", "--model", folder / "plus")
    with running(folder / "log.txt", *options) as url:
        yield url


@pytest.fixture
def page(request):
    from playwright.sync_api import sync_playwright

    address = request.getfixturevalue(getattr(request, "param", "address"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1300})
        elsewhere = []
        page.on("request", lambda request: elsewhere.append(request.url) if _elsewhere(request.url, address) else None)
        page.goto(address)
        page.get_by_role("button", name="Find people").wait_for()
        yield page
        browser.close()
    assert elsewhere == [], "the page asked other hosts"


def _elsewhere(url, address):
    return not url.startswith((address, "data:", "blob:"))


def test_a_photograph_is_dropped_and_everybody_is_shown(page, tmp_path):
    page.locator("input[type=file]").first.set_input_files(str(GROUP_IMAGE))
    page.get_by_role("button", name="Find people").click()
    page.get_by_text("12 people in an image of 640 x 480 pixels").wait_for(timeout=60_000)
    drawing = page.locator("#drawing img").first
    drawing.wait_for()
    drawing.screenshot(path=tmp_path / "drawing.png")
    # Lines in the strong colours of people, which the photograph lacks in its green wall.
    pixels = np.asarray(Image.open(tmp_path / "drawing.png").convert("HSV"), int)
    assert ((pixels[..., 1] > 150) & (pixels[..., 2] > 240)).mean() > 0.005
    assert page.locator("#people img").count() >= 12
    with page.expect_download() as download:
        page.locator("#numbers a").first.click()
    download.value.save_as(tmp_path / "poses.json")
    assert len(json.loads((tmp_path / "poses.json").read_text())["poses"]) == 12
    page.screenshot(path=os.environ.get("VITPOSE_SCREENSHOT", tmp_path / "page.png"))


def test_a_mistake_is_said_in_words(page):
    page.get_by_role("button", name="Find people").click()
    page.get_by_text("Choose an image first.").first.wait_for(timeout=30_000)


def test_people_of_a_video_are_tracked(page, tmp_path):
    clip = os.environ.get("VITPOSE_CLIP") or write_video(tmp_path / "clip.mp4", rectangles(4, (96, 128)))
    page.get_by_role("tab", name="Video").click()
    page.locator("#clip input[type=file]").set_input_files(str(clip))
    page.locator("#clip video").wait_for(timeout=60_000)
    page.get_by_role("button", name="Follow people").click()
    page.locator("#tracked video").wait_for(timeout=600_000)
    assert page.locator("#tracked video").evaluate("video => video.readyState >= 1 || video.src.length > 0")
    page.evaluate("document.querySelectorAll('video').forEach(video => { video.currentTime = video.duration / 2 })")
    page.wait_for_timeout(1000)
    page.screenshot(path=os.environ.get("VITPOSE_VIDEO_SCREENSHOT", tmp_path / "page.png"))


@pytest.mark.parametrize("page", ["choices"], indirect=True)
def test_a_model_and_its_dataset_are_chosen(page, tmp_path):
    def options(name):
        page.locator(f"#{name} input").click()
        page.locator(f"#{name} [role=option]").first.wait_for()
        return [text.strip("\u2713 \n") for text in page.locator(f"#{name} [role=option]").all_inner_texts()]

    page.locator("input[type=file]").first.set_input_files(str(GROUP_IMAGE))
    page.get_by_role("button", name="Find people").click()
    page.get_by_text("12 people in an image of 640 x 480 pixels").wait_for(timeout=60_000)
    assert options("dataset") == ["coco"]
    page.keyboard.press("Tab")
    assert options("model") == ["vitpose-small-open", "plus"]
    page.locator("#model [role=option]").nth(1).click()
    # The model's data sets are offered, and the image is drawn anew with it: no path of the server is shown.
    page.wait_for_timeout(5000)
    assert options("dataset") == ["coco", "ap10k"]
    page.screenshot(path=os.environ.get("VITPOSE_CHOICES_SCREENSHOT", tmp_path / "page.png"))
    page.locator("#dataset [role=option]").nth(1).click()
    # After the programs of the other model are compiled.
    page.get_by_text("the bundled finder finds people").first.wait_for(timeout=240_000)
