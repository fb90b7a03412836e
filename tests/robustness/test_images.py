"""Images that are damaged, huge, reused or unusual."""

import io
import pathlib
import struct
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.support.images import random_image
from tests.support.models import TINY, random_model
from vitpose_jax import PoseEstimator, VitPoseConfig
from vitpose_jax.bulk import find_images, predict_files
from vitpose_jax.images import decoded_bytes, image_endings, load_image
from vitpose_jax.serving import flow
from vitpose_jax.serving.flow import read_ahead

DAMAGED_AVIF = pathlib.Path(__file__).parents[1] / "data" / "robustness" / "damaged_avif_named.jpg"


@pytest.fixture(scope="module")
def estimator():
    return PoseEstimator(random_model(VitPoseConfig(**TINY)), max_batch=4)


def test_a_damaged_avif_does_not_end_a_run(estimator, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(DAMAGED_AVIF.read_bytes())
    Image.fromarray(random_image(2)).save(folder / "2.png")
    summary = predict_files(estimator, [folder], tmp_path / "out", boxes=[[10, 10, 50, 80]], report=lambda _: None)
    assert [path.name for path in summary.written] == ["2.png"]
    (message,) = summary.failed.values()
    assert message.startswith(f"{folder / '1.jpg'}: truncated, damaged or unsupported image (")


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, MemoryError, KeyError, AssertionError, EOFError])
def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    path = tmp_path / "a.png"
    Image.fromarray(random_image(1)).save(path)
    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(ValueError, match=rf"a\.png: truncated, damaged or unsupported image \({error.__name__}\)"):
        load_image(path)


def test_mutated_images_are_read_or_refused(tmp_path):
    random = np.random.default_rng(0)
    for ending in (".png", ".jpg", ".webp", ".avif", ".jp2", ".tiff", ".gif", ".bmp"):
        buffer = io.BytesIO()
        Image.fromarray(random_image(3, 40, 60)).save(buffer, Image.registered_extensions()[ending])
        for number in range(30):
            content = bytearray(buffer.getvalue())
            for place in random.integers(0, len(content), 1 + number % 8):
                content[place] = random.integers(256)
            path = tmp_path / f"{number}{ending}"
            path.write_bytes(content[: random.integers(1, len(content)) if number % 3 == 0 else None])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    named = load_image(path).dtype == np.uint8
                except ValueError as error:
                    named = path.name in str(error)
            assert named


def test_the_header_tells_the_decoded_bytes(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = struct.pack(">HH", 13000, 13000)
    path = tmp_path / "huge.jpg"
    path.write_bytes(content)
    assert path.stat().st_size < 1000
    assert decoded_bytes(path) == 3 * 13000**2
    assert decoded_bytes(Image.new("L", (7, 5))) == 3 * 7 * 5
    assert decoded_bytes(np.zeros((5, 7, 3), np.uint8)) == 3 * 7 * 5
    for nothing in (tmp_path / "missing.jpg", tmp_path, 3, DAMAGED_AVIF.parent / "README.md"):
        assert decoded_bytes(nothing) == 0


@pytest.mark.parametrize(("size", "most"), [(1, 8), (100, 4), (400, 1), (1000, 1)])
def test_read_ahead_is_bounded_in_bytes(size, most):
    lock, held, highest = threading.Lock(), [0], [0]

    def read(number):
        with lock:
            held[0] += 1
            highest[0] = max(highest[0], held[0])
        return number

    results = []
    # Eight threads, whatever the machine.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow.os, "cpu_count", lambda: 8)
        for number in read_ahead(read, range(40), 8, size=lambda _: size, max_bytes=400):
            with lock:
                held[0] -= 1
            results.append(number)
    assert results == list(range(40))
    # One more: the oldest image is handed over before it is counted here.
    assert highest[0] <= most + 1


def test_an_error_of_one_image_holds_no_room():
    def read(number):
        if number % 2:
            raise ValueError(number)
        return number

    items = read_ahead(read, range(1), 4, size=lambda _: 1000, max_bytes=400)
    assert list(items) == [0]
    items = read_ahead(lambda number: number, range(100), 4, size=lambda _: 1000, max_bytes=400)
    assert next(items) == 0
    items.close()  # ends, though readers wait for room


def test_a_reused_buffer_is_copied(estimator):
    frames = [random_image(number) for number in range(6)]
    boxes = [np.asarray([[5 + number, 10, 50, 80]], np.float32) for number in range(6)]

    def camera():
        image, box = np.empty_like(frames[0]), np.empty_like(boxes[0])
        for frame, rows in zip(frames, boxes, strict=True):
            image[:], box[:] = frame, rows
            yield image, box

    expected = estimator(frames, boxes)
    for poses, wanted in zip(estimator.stream(camera()), expected, strict=True):
        np.testing.assert_array_equal(poses.boxes, wanted.boxes)
        np.testing.assert_array_equal(poses.keypoints, wanted.keypoints)


def test_frames_of_an_animation_are_copied(estimator, tmp_path):
    frames = [Image.fromarray(np.full((60, 40), value, np.uint8)) for value in (0, 100, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as animation:
        expected = estimator([frame.convert("RGB") for frame in ImageSequence.Iterator(animation)], ["image"] * 3)
    with Image.open(tmp_path / "a.gif") as animation:
        stream = estimator.stream((frame, "image") for frame in ImageSequence.Iterator(animation))
        for poses, wanted in zip(stream, expected, strict=True):
            np.testing.assert_array_equal(poses.scores, wanted.scores)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bits_are_scaled_by_the_range_in_use(tmp_path, bits):
    gradient = np.linspace(0, 2**bits - 1, 96 * 128).astype(np.uint16).reshape(128, 96)
    Image.fromarray(gradient).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(load_image(tmp_path / "wide.png")[:, :, 0], gradient >> (bits - 8))


def test_a_folder_gives_whatever_pillow_reads_and_counts_the_rest(tmp_path):
    for name in ("a.jpg", "b.jfif", "c.avif", "d.JP2", "e.png"):
        Image.fromarray(random_image(1)).save(tmp_path / name)
    for name in ("notes.txt", "clip.mpg", "table.h5", "no_ending", ".hidden.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "folder.png").mkdir()
    messages = []
    paths = find_images([str(tmp_path)], messages.append)
    assert [path.name for path in paths] == ["a.jpg", "b.jfif", "c.avif", "d.JP2", "e.png"]
    assert messages == [f"{tmp_path}: passed over 5 files: clip.mpg, dead.jpg (a broken link), no_ending, ..."]
    assert {".jpg", ".png", ".tif", ".webp", ".jfif", ".avif", ".jp2"} <= image_endings()
