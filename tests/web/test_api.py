"""The HTTP interface, by a client and a server in this process."""

import concurrent.futures
import functools
import io
import itertools
import json
import re

import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from PIL import Image

from tests.support.images import random_image
from tests.support.models import SMALL_PLUS, smallest_model
from tests.support.slow_estimator import Slow
from vitpose_jax import PoseEstimator
from vitpose_jax.skeletons import COCO
from vitpose_jax.web.api import create_router
from vitpose_jax.web.limits import LimitedBody
from vitpose_jax.web.models import Models

BOXES = [[10, 20, 60, 90], [40, 5, 50, 100]]


def png(image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def models():
    plus = smallest_model(**SMALL_PLUS, hidden_size=16)
    models = Models({"small": PoseEstimator(smallest_model()), "plus": PoseEstimator(plus)})
    yield models
    models.close()


@pytest.fixture(scope="module")
def client(models):
    app = FastAPI()
    app.include_router(create_router(models, max_bytes=200_000))
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip_test": "true", "decode": "argmax", "dataset": "coco"},
        {"model": "plus"},
        {"model": "plus", "dataset": "ap10k"},
    ],
)
def test_an_image_and_boxes_give_what_the_estimator_gives(client, models, options):
    image = random_image()
    answer = client.post("/v1/poses", params={"boxes": json.dumps(BOXES), **options}, content=png(image))
    assert answer.status_code == 200
    call = {**options, "flip_test": "flip_test" in options}
    estimator = models.choose(call.pop("model", None)).batcher.estimator
    assert answer.json() == json.loads(json.dumps(estimator(image, np.asarray(BOXES), **call).to_dict()))


def test_no_boxes_are_no_people(client):
    answer = client.post("/v1/poses", params={"boxes": "[]"}, content=png(random_image()))
    assert (answer.status_code, answer.json()) == (200, {"poses": []})


@pytest.mark.parametrize(
    ("params", "content", "status", "message"),
    [
        ({}, b"", 400, "expected the bytes of an image file as the body, got nothing"),
        ({}, b"x" * 200_001, 413, "at most 200000 bytes"),
        ({"boxes": "[]"}, b"not an image", 400, "no format that Pillow reads"),
        ({"boxes": "[[1, 2"}, None, 400, r"boxes: expected a JSON list \[\[x, y, width, height\], \.\.\.\], got"),
        ({"boxes": "[" * 20_000}, None, 400, "boxes: expected a JSON list"),
        ({"boxes": '{"a": 1}'}, None, 400, "boxes: expected a JSON list of at most 200 boxes, got"),
        (
            {"boxes": json.dumps([[1, 2, 3, 4]] * 201)},
            None,
            400,
            "boxes: expected a JSON list of at most 200 boxes, got",
        ),
        ({"boxes": "[[1, 2, 3]]"}, None, 400, "boxes"),
        ({"boxes": "[[1, 2, -3, 4]]"}, None, 400, "boxes"),
        ({"boxes": "[[NaN, 2, 3, 4]]"}, None, 400, "boxes"),
        ({"boxes": "[]", "dataset": "martians"}, None, 400, "martians"),
        ({"boxes": "[]", "dataset": "ap10k"}, None, 400, "ap10k"),
        ({"boxes": "[]", "model": "huge"}, None, 400, "^model: expected one of small, plus, got 'huge'$"),
        ({"boxes": "[]", "model": "plus", "dataset": "martians"}, None, 400, "martians"),
        ({"boxes": "[]", "flip_test": "perhaps"}, None, 400, "flip_test: expected true or false, got 'perhaps'"),
        ({"boxes": "[]", "decode": "magic"}, None, 400, "decode: expected one of udp, .*, got 'magic'"),
        ({"box": "[]"}, None, 400, "box: expected one of boxes, model, dataset, flip_test, decode"),
    ],
)
def test_mistakes_are_answered_in_words(client, params, content, status, message):
    answer = client.post("/v1/poses", params=params, content=png(random_image()) if content is None else content)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and re.search(message, answer.json()["error"])
    assert len(answer.json()["error"]) < 600


def test_people_are_not_taken_for_animals(client, models):
    """Also once the finder of people is loaded."""
    assert models.choose("plus").batcher.estimator.detector is not None
    for _ in range(2):
        answer = client.post("/v1/poses", params={"model": "plus", "dataset": "ap10k"}, content=png(random_image()))
        assert answer.status_code == 400 and "the bundled finder finds people" in answer.json()["error"]


def test_paths_and_urls_are_not_read(client, tmp_path):
    """The body is the file itself: a server must not open what a visitor names."""
    (tmp_path / "image.png").write_bytes(png(random_image()))
    for name in (f"{tmp_path}/image.png", f"file://{tmp_path}/image.png", "http://localhost:1/image.png"):
        answer = client.post("/v1/poses", params={"boxes": "[]"}, content=name.encode())
        assert answer.status_code == 400 and "no format that Pillow reads" in answer.json()["error"]


def test_a_busy_server_says_so_and_answers_the_others():
    """Nine clients at once, of whom one is computed and three may wait; the rest need no thread and no memory."""
    slow = Slow()
    models = Models({"slow": slow}, max_images=1, max_waiting=3)
    app = FastAPI()
    app.include_router(create_router(models))
    with TestClient(app) as client, concurrent.futures.ThreadPoolExecutor(9) as pool:
        post = functools.partial(client.post, "/v1/poses", content=png(random_image()))
        first = pool.submit(post)
        assert slow.started.wait(20)
        others = [pool.submit(post) for _ in range(8)]
        refused = list(itertools.islice(concurrent.futures.as_completed(others, 20), 5))
        assert len(refused) == 5 and "try again later" in refused[0].result().json()["error"]
        slow.may_go_on.set()
        assert first.result(20).status_code == 200
        assert sorted(other.result(20).status_code for other in others) == [200] * 3 + [503] * 5
    models.close()


def test_a_fault_of_the_server_is_said_in_json(client, models, monkeypatch):
    def fails(*_, **__):
        raise MemoryError("no memory")

    monkeypatch.setattr(models.choose().batcher.estimator, "stream", fails)
    answer = client.post("/v1/poses", content=png(random_image()))
    assert (answer.status_code, answer.json()) == (500, {"error": "no memory"})


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(client):
    file = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(file, "PNG")
    answer = client.post("/v1/poses", params={"boxes": "[]"}, content=file.getvalue())
    assert answer.status_code == 400
    assert answer.json()["error"] == "expected an image of at most 50 million pixels, got 60000000"


def test_long_requests_are_ended_while_they_arrive():
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    app.add_middleware(LimitedBody, max_bytes=2_000_000)
    with TestClient(app) as client:
        assert client.post("/echo", content=b"x" * 2_000_000).json() == 2_000_000
        assert client.post("/echo", content=b"x" * 2_000_001).status_code == 413
        json_headers = {"content-type": "application/json"}
        assert client.post("/echo", content=b"x" * 1_000_000, headers=json_headers).json() == 1_000_000
        answer = client.post("/echo", content=b"x" * 1_000_001, headers=json_headers)
        assert (answer.status_code, list(answer.json())) == (413, ["error"])


def test_models_and_health(client):
    assert client.get("/v1/health").json() == {"status": "ok", "waiting": 0, "max_waiting": 64}
    listed = client.get("/v1/models").json()
    assert listed["default"] == "small" and list(listed["models"]) == ["small", "plus"]
    assert listed["models"]["plus"]["datasets"] == ["coco", "ap10k"]
    model = client.get("/v1/model").json()
    assert model == {"name": "small", **listed["models"]["small"]}
    assert model["image_size"] == [32, 16] and model["skeletons"]["coco"]["keypoints"] == list(COCO.keypoints)
    assert client.get("/v1/model", params={"model": "plus"}).json()["datasets"] == ["coco", "ap10k"]
    answer = client.get("/v1/model", params={"model": "huge"})
    assert (answer.status_code, answer.json()) == (400, {"error": "model: expected one of small, plus, got 'huge'"})
    assert client.get("/v1/poses").status_code == 405
