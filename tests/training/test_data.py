"""People are cut out of images and packed into batches: no pixel or label is lost or moved, no person dropped."""

import collections
import dataclasses
import functools
import json
import logging
import pathlib
import pickle
import re
import sys
import threading
import time
import zipfile
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tolerances import NOISE_OUTLIERS, PIXEL_VALUES, PLACES, POSITIONS, STANDARD_DEVIATIONS
from vitpose_jax import VitPoseConfig
from vitpose_jax.datasets.archives import ImageStore
from vitpose_jax.datasets.dataset import Dataset, People, Sample
from vitpose_jax.evaluation import get_protocol, read_dataset
from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.preprocess import crop_regions
from vitpose_jax.pipeline.regions import Regions, boxes_to_regions, image_to_crop
from vitpose_jax.skeletons import AIC, AP10K, COCO, DATASETS, MPII, WHOLEBODY
from vitpose_jax.training import data as data_module
from vitpose_jax.training.augment import Augmentation, augment_crops, augment_regions, skeleton_arrays
from vitpose_jax.training.data import MIN_PIXELS, TrainingBatch, make_loader
from vitpose_jax.training.people import PersonSource, reachable_windows

CONFIG = VitPoseConfig.preset("small")
PLUS = VitPoseConfig.preset("plus-small")
PEOPLE = 23


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixel values encode their position."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, 16 * (x // 256) + y // 256], axis=-1).astype(np.uint8)


def write_set(folder: pathlib.Path, images: list[np.ndarray], people: list[list[tuple]]) -> pathlib.Path:
    """A dataset in COCO's format: for each image, its (box, keypoints of 17 x 3)."""
    entries, annotations = [], []
    for number, (image, group) in enumerate(zip(images, people, strict=True)):
        name = f"{number:03}.png"
        Image.fromarray(image).save(folder / name)
        entries.append({"id": number, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for box, keypoints in group:
            flat = np.asarray(keypoints, float).ravel().tolist()
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 100.0,
                    "bbox": list(map(float, box)),
                    "num_keypoints": 17,
                    "keypoints": flat,
                }
            )
    path = folder / "people.json"
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": []}))
    return path


def keypoints_in(box: tuple, labelled: int = 17, seed: int = 0) -> np.ndarray:
    points = np.zeros((17, 3))
    where = np.random.default_rng(seed).uniform(size=(labelled, 2))
    points[:labelled] = np.c_[np.asarray(box[:2]) + where * box[2:], np.full(labelled, 2)]
    return points


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """One person on each of 23 small images; person i has i % 17 + 1 labelled keypoints."""
    folder = tmp_path_factory.mktemp("people")
    box = (5, 4, 20, 30)
    people = [[(box, keypoints_in(box, i % 17 + 1, i))] for i in range(PEOPLE)]
    write_set(folder, [np.full((40, 32, 3), i, np.uint8) for i in range(PEOPLE)], people)
    with zipfile.ZipFile(folder / "even.zip", "w") as even, zipfile.ZipFile(folder / "odd.zip", "w") as odd:
        for number in range(PEOPLE):
            (odd if number % 2 else even).write(folder / f"{number:03}.png", f"images/{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def source(folder) -> PersonSource:
    return PersonSource.read("coco", folder / "people.json", folder)


def numbers(batch: TrainingBatch) -> list[int]:
    """The indices of the people of `folder` in a batch: each image is filled with its index."""
    return batch.images.pixels[batch.images.shapes[:, 0], 0].tolist()


def read(loader, count: int) -> list[int]:
    return [number for _ in range(count) for number in numbers(next(loader))]


def equal(left: TrainingBatch, right: TrainingBatch) -> bool:
    leaves = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and (a == b).all() for a, b in leaves)


# Windows.


def one_person(box: tuple, keypoints: np.ndarray) -> Dataset:
    """A dataset of one image, a.png, in memory."""
    people = People(
        annotation_ids=np.array([1]),
        category_ids=np.array([1]),
        boxes=np.array([box], float),
        keypoints=keypoints[None, :, :2],
        visible=keypoints[None, :, 2].astype(np.int32),
        areas=np.array([1.0]),
        head_sizes=np.array([np.nan]),
    )
    path, scores = pathlib.Path("a.png"), np.ones(1)
    sample = Sample(
        image_id=1, path=path, boxes=people.boxes, scores=scores, category_ids=people.category_ids, people=people
    )
    return Dataset(
        protocol=get_protocol("coco"),
        samples=(sample,),
        annotations=pathlib.Path("people.json"),
        coco=None,
        detections=None,
        num_images=1,
    )


@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    box=st.tuples(st.floats(-50, 650), st.floats(-50, 650), st.floats(1, 300), st.floats(1, 300)),
)
def test_a_window_is_a_piece_of_its_image(height, width, box):
    center, scale = map(np.asarray, boxes_to_regions(np.array([box]))[:2])
    points = keypoints_in(np.array(box)).astype(np.float32)[None]
    image = coordinates(height, width)
    (person,) = PersonSource(one_person(box, points[0]), load={"a.png": image}.__getitem__)
    assert person.image.size
    x, y = person.offset
    rows, columns = person.image.shape[:2]
    np.testing.assert_array_equal(person.image, image[y : y + rows, x : x + columns])
    np.testing.assert_allclose(person.keypoints + person.offset, points[0, :, :2], rtol=0, atol=PLACES)
    np.testing.assert_allclose(person.center + person.offset, center[0], rtol=0, atol=PLACES)
    # The window holds everything that an upright region of the box's size covers.
    low = np.clip(np.ceil(center[0] - scale[0] / 2), 0, [width, height])
    high = np.clip(np.floor(center[0] + scale[0] / 2), 0, [width - 1, height - 1])
    assert (low >= high).any() or ((low >= person.offset).all() and (high < person.offset + [columns, rows]).all())


def test_the_window_of_a_box_equals_hand_computed_numbers():
    """A padded box of 96 x 128, at 1.5 times its size, rotated so that its diagonal points to the side, and shifted."""
    center, scale = np.array([[500.0, 400.0]]), np.array([[96.0, 128.0]])
    unlabelled = Regions(center, scale), np.zeros((1, 17, 2)), np.zeros((1, 17), bool)
    options = {"upper_body": np.ones(17, bool)}
    (window,) = reachable_windows(*unlabelled, **options)
    half = 1.5 * 80 + 0.2 * scale[0] / 1.25
    np.testing.assert_array_equal(window[:2], np.floor(center[0] - half) - 1)
    np.testing.assert_array_equal(window[2:], np.ceil(center[0] + half) + 2)
    # Without augmentation the window is the region itself. A rotation by up to 20 degrees widens it.
    (window,) = reachable_windows(*unlabelled, **options, augmentation=Augmentation.none())
    np.testing.assert_array_equal(window, [451, 335, 550, 466])
    turned = Augmentation(jitter=0.0, scale=0.0, rotation=10.0)
    (window,) = reachable_windows(*unlabelled, **options, augmentation=turned)
    side = 48 * np.cos(np.deg2rad(20)) + 64 * np.sin(np.deg2rad(20))
    assert window[0] == np.floor(500 - side) - 1


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(half_body=1.0, half_body_keypoints=2, half_body_padding=3.0),
        Augmentation(jitter=1.0, jitter_probability=1.0, scale=0.9, rotation=15.0, rotation_probability=1.0),
        Augmentation.none(),
    ],
)
def test_windows_hold_every_region_that_augmentation_draws(augmentation):
    n = 4000
    rng = np.random.default_rng(0)
    boxes = np.c_[rng.uniform(0, 500, (n, 2)), rng.uniform(20, 200, (n, 2))]
    keypoints = (boxes[:, None, :2] + rng.uniform(-0.2, 1.2, (n, 17, 2)) * boxes[:, None, 2:]).astype(np.float32)
    visible = rng.uniform(size=(n, 17)) < 0.7
    _, upper_body = skeleton_arrays([COCO])
    regions = boxes_to_regions(boxes)
    augmented, _ = jax.jit(augment_regions, static_argnames="augmentation")(
        jax.random.key(0), regions, jnp.asarray(keypoints), jnp.asarray(visible),
        upper_body=jnp.broadcast_to(upper_body, (n, 17)), augmentation=augmentation,
    )  # fmt: skip
    windows = reachable_windows(regions, keypoints, visible, upper_body=upper_body[0], augmentation=augmentation)
    center, scale, rotation = map(np.asarray, augmented)
    angle = np.deg2rad(rotation)
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    width, height = scale.T / 2
    reach = np.stack([width * cos + height * sin, height * cos + width * sin], axis=-1)
    low, high = center - reach, center + reach
    assert (windows[:, :2] <= low - 1 + POSITIONS).all() and (windows[:, 2:] >= high + 2 - POSITIONS).all()
    # And they are not larger than necessary: some region comes near each edge.
    slack = np.concatenate([low - windows[:, :2], windows[:, 2:] - high], axis=1) / np.tile(regions.scale, 2)
    assert (slack.min(axis=0) < 0.15).all()


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> tuple[np.ndarray, PersonSource]:
    """People at whole and half pixels, so that all sums of coordinates are exact; some leave the image."""
    folder = tmp_path_factory.mktemp("noise")
    image = np.random.default_rng(1).integers(0, 256, (700, 900, 3)).astype(np.uint8)
    boxes = [(410, 300, 49, 65), (0, 0, 49, 65), (850, 640, 49, 59), (300, 2, 25, 97), (700, 300, 13, 17)]
    people = [(box, keypoints_in(box, 12, seed)) for seed, box in enumerate(boxes)]
    path = write_set(folder, [image], [people])
    return image, PersonSource.read("coco", path, folder, cache="memory")


def flat_buffer(image: np.ndarray) -> np.ndarray:
    """An image in a flat pixel buffer of one length for all tests, so that less is compiled."""
    return np.pad(image.reshape(-1, 3), ((0, 2**20 - image.shape[0] * image.shape[1]), (0, 0)))


@pytest.mark.parametrize("border", ["scipy", "opencv"])
def test_crops_of_windows_are_crops_of_the_image(noise, border):
    image, source = noise
    crop = jax.jit(crop_regions, static_argnames=("size", "udp", "border"))

    def crops(image, center, scale, **options):
        images = PackedImages(jnp.asarray(flat_buffer(image)), jnp.asarray([[0, *image.shape[:2]]], jnp.int32))
        regions = Regions(jnp.asarray(center[None]), jnp.asarray(scale))
        return np.asarray(crop(images, regions, border=border, **options))

    assert len(source) == 5
    for person in source:
        assert person.image.size < image.size / 2
        # Steps of 1/4 or 1/16 of a pixel are exact in float32, so crops are equal.
        side = 2 ** np.floor(np.log2(person.scale[1]))
        scale = np.array([[0.75 * side, side]], np.float32)
        for size, udp in (((257, 193), True), ((256, 192), False)):
            options = {"size": size, "udp": udp}
            ours = crops(person.image, person.center, scale, **options)
            whole = crops(image, person.center + person.offset, scale, **options)
            np.testing.assert_array_equal(ours, whole)
        if border == "opencv":  # which does not end at once where the image does
            ours = crops(person.image, person.center, person.scale[None])
            whole = crops(image, person.center + person.offset, person.scale[None])
            difference = np.abs(ours - whole)
            assert difference.max() <= 1 and (difference > 0).mean() < NOISE_OUTLIERS


def test_augmented_crops_of_windows_are_those_of_the_image(noise):
    image, source = noise
    flip_indices, upper_body = map(jnp.asarray, skeleton_arrays([COCO]))

    @jax.jit
    def crops(pixels, shape, center, scale, keypoints, visible):
        images, regions = PackedImages(pixels, shape), Regions(center[None], scale[None])

        def of_key(key):
            return augment_crops(
                key, images, regions, keypoints[None], visible[None],
                flip_indices=flip_indices, upper_body=upper_body, mean=(0.0,) * 3, std=(1 / 255,) * 3,
            )  # fmt: skip

        return jax.lax.map(of_key, jax.random.split(jax.random.key(0), 6))

    for person in source[0], source[1], source[2]:
        labels = person.scale, person.keypoints, person.visible
        shape = np.array([[0, *person.image.shape[:2]]], np.int32)
        ours = crops(flat_buffer(person.image), shape, person.center, *labels)
        labels = person.scale, person.keypoints + person.offset, person.visible
        shape = np.array([[0, *image.shape[:2]]], np.int32)
        whole = crops(flat_buffer(image), shape, person.center + person.offset, *labels)
        difference = np.abs(ours[0] - whole[0])
        assert difference.max() <= 1 + PIXEL_VALUES and (difference > 0.5).mean() < NOISE_OUTLIERS
        np.testing.assert_allclose(ours[1], whole[1], rtol=0, atol=POSITIONS)


# Sources.


def test_people_have_their_labels_and_boxes(source):
    assert len(source) == PEOPLE and "23 people" in repr(source)
    for number in (0, 22):
        person = source[number]
        assert pathlib.Path(person.path).name == f"{number:03}.png"
        assert (person.image == number).all()
        assert (person.visible > 0).sum() == number % 17 + 1
        np.testing.assert_array_equal(person.weights, np.ones(17))
        # COCO's boxes are clipped to the image and lose one pixel.
        np.testing.assert_allclose(person.center + person.offset, [5 + 19 / 2, 4 + 29 / 2])
        np.testing.assert_allclose(person.scale, np.array([29 * 192 / 256, 29]) * 1.25)
    with pytest.raises(IndexError, match="expected 0 to 22, got 23"):
        source[23]


def test_archives_hold_the_same_as_folders(folder, source):
    for archives in (folder / "*.zip", [folder / "even.zip", folder / "odd.zip"]):
        packed = PersonSource.read("coco", folder / "people.json", archives)
        again = pickle.loads(pickle.dumps(packed))
        with futures.ThreadPoolExecutor(4) as pool:
            people = list(pool.map(again.__getitem__, range(PEOPLE)))
        for number, person in enumerate(people):
            for left, middle, right in zip(source[number], packed[number], person, strict=True):
                np.testing.assert_array_equal(left, middle)
                np.testing.assert_array_equal(left, right)


def test_an_image_missing_from_or_twice_in_archives_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match=r"001\.png: expected one place in 1 archives, got none"):
        PersonSource.read("coco", folder / "people.json", folder / "even.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a/1.png", "b/1.png", "b/2.png", "xa/1.png"):
            archive.write(folder / "001.png", name)
    store = ImageStore(tmp_path / "a.zip")
    assert store.load(tmp_path / "a" / "1.png").shape == (40, 32, 3)
    assert store.find(tmp_path / "2.png") == (tmp_path / "a.zip", "b/2.png")
    with pytest.raises(ValueError, match=r"got .*a/1\.png, .*b/1\.png, .*xa/1\.png"):
        store.load(tmp_path / "1.png")
    for missing in (tmp_path / "a" / "2.png", tmp_path.parent / "a" / "1.png"):
        with pytest.raises(ValueError, match="got none"):
            store.load(missing)


def test_invalid_archives_are_named(folder, tmp_path):
    (tmp_path / "bad.zip").write_text("no")
    with pytest.raises(ValueError, match=r"bad\.zip: expected a \.zip archive"):
        ImageStore(tmp_path / "bad.zip")
    with pytest.raises(FileNotFoundError):
        ImageStore(tmp_path / "none.zip")
    with pytest.raises(ValueError, match=r"\*\.tar: no archives there"):
        ImageStore(str(tmp_path / "*.tar"))
    with pytest.raises(ValueError, match="archives in one folder"):
        PersonSource.read("coco", folder / "people.json", [folder / "even.zip", tmp_path / "bad.zip"])


def test_label_weights_go_by_file_name(folder):
    def sums(weights):
        people = PersonSource.read("coco", folder / "people.json", folder, weights=weights)
        assert not any(person.visible[person.weights == 0].any() for person in people)
        return {int(pathlib.Path(person.path).stem): person.weights.tolist() for person in people}

    weights = sums({r"00[12]": 0.25, "0[01]0": 0, "002": 7})
    assert set(weights) == set(range(PEOPLE)) - {0, 10}
    assert weights[1] == weights[2] == [0.25] * 17 and weights[12] == [1] * 17
    ramp = np.arange(17) / 16
    weights = sums(lambda name: 0.5 if name == "003.png" else ramp)
    assert weights[3] == [0.5] * 17 and weights[4] == ramp.tolist() and 0 not in weights
    for wrong, message in (
        ({"lsp_": 0.3}, "expected file names that start with 'lsp_', got none"),
        ({"00": -1}, r"000\.png: expected finite numbers, 0 or more"),
        (lambda name: [1, 2], "expected a number or 17 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            sums(wrong)


def test_people_with_few_keypoints_are_left_out(folder, data, unchecked):
    few = PersonSource.read("coco", folder / "people.json", folder, min_keypoints=16)
    assert [pathlib.Path(person.path).stem for person in few] == ["015", "016"]
    with pytest.raises(ValueError, match="expected people with 18 or more keypoints, got none among 23"):
        PersonSource.read("coco", folder / "people.json", folder, min_keypoints=18)
    samples = data / "mmpose_samples" / "coco"
    detected = read_dataset(
        "coco", samples / "test_coco.json", samples, detections=samples / "test_coco_det_AP_H_56.json"
    )
    with pytest.raises(ValueError, match="expected annotated boxes"):
        PersonSource(detected)
    with pytest.raises(ValueError, match="cache"):
        PersonSource.read("coco", folder / "people.json", folder, cache="disk")
    with pytest.raises(ValueError, match="expected load or archives, got both"):
        PersonSource.read("coco", folder / "people.json", folder / "*.zip", load=ImageStore().load)


def test_a_cache_in_memory_reads_each_image_once(folder):
    paths = []

    def load(path):
        paths.append(pathlib.Path(path).name)
        return ImageStore().load(path)

    source = PersonSource(read_dataset("coco", folder / "people.json", folder), load=load, cache="memory")
    first, second = source[3], source[3]
    assert paths == ["003.png"]
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)
    assert second.image.base is None


@pytest.fixture
def broken(folder, tmp_path) -> pathlib.Path:
    for path in folder.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "004.png").write_bytes(b"no image")
    (tmp_path / "005.png").write_bytes((folder / "005.png").read_bytes()[:50])
    (tmp_path / "022.png").unlink()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number in range(PEOPLE):
            path = tmp_path / f"{number:03}.png"
            archive.writestr(f"images/{path.name}", path.read_bytes() if path.exists() else b"")
    return tmp_path


def test_broken_images_are_errors(folder, broken):
    for images, places in ((broken, ""), (broken / "all.zip", "all.zip: images/")):
        source = PersonSource.read("coco", folder / "people.json", images)
        for number in (4, 5, 22):
            with pytest.raises((ValueError, FileNotFoundError), match=re.escape(f"{places}{number:03}.png")):
                source[number]
    with (
        make_loader(source, batch_size=8, seed=0, config=CONFIG, num_threads=2) as loader,
        pytest.raises(ValueError, match=r"all\.zip: images/\d+\.png"),
    ):
        read(loader, 3)


def test_broken_images_are_skipped_and_counted(folder, broken, caplog):
    source = PersonSource.read("coco", folder / "people.json", broken, skip_broken=True)
    with caplog.at_level(logging.WARNING):
        people = [pathlib.Path(person.path).stem for _ in range(2) for person in map(source.__getitem__, range(PEOPLE))]
    expected = [f"{6 if number in (4, 5) else number % 22:03}" for number in range(PEOPLE)]
    assert people == expected * 2
    assert {pathlib.Path(path).stem for path in source.broken} == {"004", "005", "022"}
    assert len(caplog.records) == 3 and "broken image 3" in caplog.text and "022.png" in caplog.text
    for path in broken.glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="expected an image that can be read, got none"):
        source[0]


# Loaders.


def test_a_batch_holds_its_people_unchanged(source):
    with make_loader(source, batch_size=5, seed=0, config=CONFIG) as loader:
        batch = next(loader)
    fields = batch._asdict()
    (pixels, shapes), (center, scale, rotation) = fields.pop("images"), fields.pop("regions")
    assert rotation is None
    fields |= {"pixels": pixels, "shapes": shapes, "center": center, "scale": scale}
    assert {name: (array.dtype.name, array.shape) for name, array in fields.items()} == {
        "pixels": ("uint8", (MIN_PIXELS, 3)),
        "shapes": ("int32", (5, 3)),
        "center": ("float32", (5, 2)),
        "scale": ("float32", (5, 2)),
        "keypoints": ("float32", (5, 17, 2)),
        "visible": ("int32", (5, 17)),
        "weights": ("float32", (5, 17)),
        "dataset_index": ("int32", (5,)),
        "udp": ("bool", (5,)),
        "flip_indices": ("int32", (5, 17)),
        "upper_body": ("bool", (5, 17)),
    }
    for row, number in enumerate(numbers(batch)):
        person = source[number]
        start, height, width = shapes[row]
        np.testing.assert_array_equal(pixels[start : start + height * width].reshape(height, width, 3), person.image)
        for name in ("center", "scale", "keypoints", "visible", "weights"):
            np.testing.assert_array_equal(fields[name][row], getattr(person, name))
    assert not pixels[start + height * width :].any()


def test_flat_pixel_buffers_have_few_lengths(noise):
    _, source = noise
    lengths = set()
    for batch_size in (1, 20, 40, 41, 60):
        with make_loader(source, batch_size=batch_size, seed=0, config=CONFIG, num_threads=0) as loader:
            batch = next(loader)
        used, length = int(batch.images.shapes[:, 1:].prod(axis=1).sum()), len(batch.images.pixels)
        assert used <= length and (length == MIN_PIXELS or length < 2 * used)
        lengths.add(length)
    assert len(lengths) >= 2 and all(length & (length - 1) == 0 for length in lengths)


def test_every_person_comes_once_in_an_epoch(source):
    with make_loader(source, batch_size=4, seed=3, config=CONFIG) as loader:
        assert loader.micro_steps_per_epoch == 5
        row = read(loader, 23)
    epochs = [row[start : start + PEOPLE] for start in range(0, len(row), PEOPLE)]
    assert len(epochs) == 4
    assert all(sorted(epoch) == list(range(PEOPLE)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_seed_decides_the_order(source):
    rows = []
    for seed, threads in ((0, 0), (0, 3), (1, 0)):
        with make_loader(source, batch_size=4, seed=seed, config=CONFIG, num_threads=threads) as loader:
            rows.append(read(loader, 8))
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("ratios", [None, (3, 1)])
def test_processes_together_read_what_one_reads(source, ratios):
    """The same people at the same places of a batch: random numbers of augmentation belong to a place."""
    sources = source if ratios is None else [source, source]
    options = {"seed": 0, "config": CONFIG, "ratios": ratios, "num_threads": 1}
    with make_loader(sources, batch_size=6, **options) as alone:
        expected, state = read(alone, 23), alone.get_state()
    count, rows = 3, []
    for index in range(count):
        with make_loader(sources, batch_size=2, process_index=index, process_count=count, **options) as loader:
            assert loader.micro_steps_per_epoch == alone.micro_steps_per_epoch
            rows.append(np.reshape(read(loader, 23), (23, 2)))
            # So a run can be resumed with another number of processes.
            assert loader.get_state() == state
    np.testing.assert_array_equal(np.concatenate(rows, axis=1).ravel(), expected)
    if ratios is not None:
        # Three quarters of 138 people are 4.5 epochs of one source, a quarter 1.5 epochs of the other.
        counts = collections.Counter(expected)
        assert min(counts.values()) >= 4 + 1 and max(counts.values()) <= 5 + 2
    with pytest.raises(ValueError, match="process_index: expected 0 to 2, got 3"):
        make_loader(source, batch_size=2, seed=0, config=CONFIG, process_index=3, process_count=3)


def test_a_loader_ends_after_its_epochs(source):
    with make_loader(source, batch_size=4, seed=0, config=CONFIG, epochs=2) as loader:
        assert len([numbers(batch) for batch in loader]) == 10
        assert next(loader, None) is None
        state = loader.get_state()
    with make_loader(source, batch_size=4, seed=0, config=CONFIG, epochs=2) as again:
        again.set_state(state)
        assert next(again, None) is None
    # Fewer people than a batch holds.
    with make_loader(source, batch_size=50, seed=0, config=CONFIG, epochs=1) as loader:
        assert loader.micro_steps_per_epoch == 1
        assert set(read(loader, 1)) == set(range(PEOPLE))


@pytest.mark.parametrize("ratios", [None, [0.7, 0.3]])
def test_resume_is_exact(source, ratios):
    sources = [source] if ratios is None else [source, source]
    options = {"batch_size": 3, "seed": 0, "config": CONFIG, "ratios": ratios}
    with make_loader(sources, num_threads=2, **options) as loader:
        for _ in range(11):
            next(loader)
        state = json.loads(json.dumps(loader.get_state()))
        expected = [next(loader) for _ in range(9)]
        loader.set_state(state)
        assert all(equal(next(loader), batch) for batch in expected)
    for threads in (0, 3):
        with make_loader(sources, num_threads=threads, **options) as again:
            again.set_state(state)
            assert again.micro_step == 11
            assert all(equal(next(again), batch) for batch in expected)
            assert again.get_state() == {**state, "micro_step": 20}
    for changed in ({"seed": 1}, {"batch_size": 4}, {"process_count": 2}):
        with (
            make_loader(sources, **{**options, **changed}) as other,
            pytest.raises(ValueError, match="state: expected"),
        ):
            other.set_state(state)


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(folder):
    source = PersonSource.read("coco", folder / "people.json", folder / "*.zip", cache="memory")
    options = {"batch_size": 3, "seed": 0, "config": CONFIG, "num_threads": 1}
    with make_loader(source, **options) as loader:
        expected = [next(loader) for _ in range(12)]
    with make_loader(source, num_workers=2, **options) as loader:
        assert all(equal(next(loader), batch) for batch in expected[:5])
        state = loader.get_state()
    for workers in (2, 0):
        with make_loader(source, num_workers=workers, **options) as again:
            again.set_state(state)
            batches = [next(again) for _ in range(7)]
            assert all(equal(ours, batch) for ours, batch in zip(batches, expected[5:], strict=True))
            assert all(type(array) is np.ndarray for array in jax.tree.leaves(batches[0]))


@pytest.mark.slow
def test_errors_of_worker_processes_name_the_file(folder, broken):
    source = PersonSource.read("coco", folder / "people.json", broken / "all.zip")
    with (
        make_loader(source, batch_size=8, seed=0, config=CONFIG, num_workers=1) as loader,
        pytest.raises(ValueError, match=r"all\.zip: images/\d+\.png"),
    ):
        read(loader, 3)


def test_ratios_are_fractions_of_the_batches(folder, source):
    marked = PersonSource.read("coco", folder / "people.json", folder, weights={"": 0.5}, min_keypoints=10)
    with make_loader([source, marked], batch_size=10, seed=0, config=CONFIG, ratios=[4, 1], num_threads=1) as loader:
        assert loader.micro_steps_per_epoch == (len(source) + len(marked)) // 10
        batches = [next(loader) for _ in range(10)]
    fractions = [(batch.weights[:, 0] == 0.5).mean() for batch in batches]
    assert np.mean(fractions) == pytest.approx(0.2)
    assert max(fractions) <= 0.3
    for process in (0, 1):  # also in one of two processes, although the datasets alternate
        with make_loader(
            [source, marked], batch_size=10, seed=0, config=CONFIG, ratios=[1, 1],
            process_index=process, process_count=2, num_threads=0,
        ) as loader:  # fmt: skip
            fractions = [(next(loader).weights[:, 0] == 0.5).mean() for _ in range(6)]
        assert np.mean(fractions) == pytest.approx(0.5)
    for wrong in ([1], [1, 0], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(ValueError, match="ratios: expected 2 positive numbers"):
            make_loader([source, marked], batch_size=1, seed=0, config=CONFIG, ratios=wrong)


def test_closed_loaders_leave_no_threads(source):
    def running():
        return [thread for thread in threading.enumerate() if thread.name.startswith("grain")]

    loader = make_loader(source, batch_size=4, seed=0, config=CONFIG, num_threads=3)
    next(loader)
    loader.close()
    loader.close()
    deadline = time.monotonic() + 10
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running()
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_make_loader_checks_its_arguments(source, data, monkeypatch):
    for wrong in (
        {"batch_size": 0}, {"seed": -1}, {"num_threads": -1}, {"num_workers": -1}, {"process_count": 0}, {"epochs": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected at least"):
            make_loader(source, **{"batch_size": 1, "seed": 0, "config": CONFIG, **wrong})
    with pytest.raises(ValueError, match="sources"):
        make_loader([], batch_size=1, seed=0, config=CONFIG)
    with pytest.raises(ValueError, match=r"image_size \(384, 288\), got size \(256, 192\)"):
        make_loader(source, batch_size=1, seed=0, config=CONFIG.replace(image_size=(384, 288)))
    animals = read_sample(data, "ap10k")
    with pytest.raises(ValueError, match="'ap10k' in this model"):
        make_loader(animals, batch_size=1, seed=0, config=CONFIG)
    with pytest.raises(ValueError, match="no head"):
        make_loader(animals, batch_size=1, seed=0, config=PLUS.replace(skeletons=(COCO,)))
    other = CONFIG.replace(skeletons=(dataclasses.replace(COCO, keypoints=(*COCO.keypoints[:-1], "tail")),))
    with pytest.raises(ValueError, match="expected the 17 keypoints of the model's head 'coco'"):
        make_loader(source, batch_size=1, seed=0, config=other)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r'pip install "vitpose-jax\[train\]"'):
        make_loader(source, batch_size=1, seed=0, config=CONFIG)


# Real data.

SAMPLES = {
    "coco": "coco/test_coco.json",
    "aic": "aic/test_aic.json",
    "mpii": "mpii/test_mpii.json",
    "ap10k": "ap10k/test_ap10k.json",
    "wholebody": "coco/test_coco_wholebody.json",
}


def read_sample(data: pathlib.Path, name: str) -> PersonSource:
    file = data / "mmpose_samples" / SAMPLES[name]
    return PersonSource.read(name, file, file.parent, cache="memory")


def test_five_datasets_train_one_model(data):
    sources = [read_sample(data, name) for name in SAMPLES]
    with make_loader(sources, batch_size=20, seed=0, config=PLUS, ratios=[1] * 5, num_threads=0) as loader:
        batch = next(loader)
    assert batch.keypoints.shape == (20, 133, 2)
    names = [DATASETS[index].name for index in batch.dataset_index]
    assert collections.Counter(names) == dict.fromkeys(SAMPLES, 4)
    flips, uppers = skeleton_arrays([COCO, AIC, MPII, AP10K, WHOLEBODY], 133)
    uppers[2] = False  # MPII is trained without half bodies
    order = ["coco", "aic", "mpii", "ap10k", "wholebody"]
    everyone = [list(source) for source in sources]
    for row, name in enumerate(names):
        assert batch.udp[row] == (name in ("coco", "mpii")) == (get_protocol(name).decode == "udp")
        np.testing.assert_array_equal(batch.flip_indices[row], flips[order.index(name)])
        np.testing.assert_array_equal(batch.upper_body[row], uppers[order.index(name)])
        count = DATASETS[batch.dataset_index[row]].num_keypoints
        assert batch.visible[row].any() and not batch.visible[row, count:].any()
        assert (batch.weights[row] == (np.arange(133) < count)).all()
        # The pixels at the keypoints equal those of an image of the dataset at the annotated position.
        start, height, width = batch.images.shapes[row]
        window = batch.images.pixels[start : start + height * width].reshape(height, width, 3)
        matches = 0
        for person in everyone[order.index(name)]:
            if person.image.shape == window.shape and (person.image == window).all():
                matches += np.array_equal(person.keypoints, batch.keypoints[row, :count])
                image = np.asarray(Image.open(person.path).convert("RGB"))
                points = person.keypoints[person.visible > 0]
                inside = ((points >= 0) & (points <= [width - 1, height - 1])).all(axis=1)
                here = np.floor(points[inside] + 0.5).astype(int)
                there = here + person.offset
                assert inside.any()
                np.testing.assert_array_equal(window[here[:, 1], here[:, 0]], image[there[:, 1], there[:, 0]])
        assert matches == 1

    # A padded box contains nearly all of its keypoints.
    visible = batch.visible > 0
    to_crop = jax.jit(functools.partial(image_to_crop, size=(256, 192)))
    points = np.asarray(to_crop(batch.keypoints, batch.regions))
    assert ((points >= -5) & (points <= np.array([196, 260]))).all(axis=-1)[visible].mean() > 0.95
    # And augmentation accepts the batch.
    crops, keypoints, labelled = jax.eval_shape(
        functools.partial(augment_crops, augmentation=Augmentation()), jax.random.key(0), *batch[:4],
        udp=batch.udp, flip_indices=batch.flip_indices, upper_body=batch.upper_body,
    )  # fmt: skip
    assert (crops.shape, keypoints.shape, labelled.shape) == ((20, 256, 192, 3), (20, 133, 2), (20, 133))


def fractions(content: dict) -> dict[str, float]:
    """The fraction of people from each source of the training crops: "coco", "s40", "lsp"."""
    names = {image["id"]: image["file_name"].partition("_")[0] for image in content["images"]}
    counts = collections.Counter(names[entry["image_id"]] for entry in content["annotations"])
    return {source: count / counts.total() for source, count in counts.items()}


def test_training_crops_in_archives_match_their_annotations(data):
    folder = data / "train"
    if not folder.is_dir():
        pytest.skip("no training crops")
    # A few images of each archive, to keep the test short.
    content = json.loads((folder / "person_keypoints.json").read_text())
    by_image = {entry["image_id"]: entry for entry in content["annotations"]}
    store = ImageStore(folder / "*.zip")
    assert len(store.archives) == 6
    seen = collections.Counter()
    for image in content["images"][:: len(content["images"]) // 40]:
        entry = by_image[image["id"]]
        pixels = store.load(folder / image["file_name"])
        assert pixels.shape == (image["height"], image["width"], 3)
        archive, member = store.find(folder / image["file_name"])
        with zipfile.ZipFile(archive) as file, file.open(member) as stream:
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(stream)))
        labelled = np.reshape(entry["keypoints"], (17, 3))
        labelled = labelled[labelled[:, 2] > 0, :2]
        x, y, w, h = entry["bbox"]
        near = (labelled >= [x - 0.25 * w, y - 0.25 * h]) & (labelled <= [x + 1.25 * w, y + 1.25 * h])
        assert near.all()
        seen[image["file_name"].partition("_")[0]] += 1
    # The sources have the fractions of the annotations, within two of 40 people.
    for source, fraction in fractions(content).items():
        assert abs(seen[source] - fraction * seen.total()) <= 2, source


@pytest.mark.slow
def test_all_training_crops_are_read(data, unchecked):
    folder = data / "train"
    if not folder.is_dir():
        pytest.skip("no training crops")
    source = PersonSource.read(
        "coco", folder / "person_keypoints.json", folder / "*.zip", weights={"lsp_": 0.25, "(s40|coco)_": 1}
    )
    assert len(source) > 14000
    with make_loader(source, batch_size=64, seed=0, config=CONFIG) as loader:
        batches = [next(loader) for _ in range(5)]
    weights = np.concatenate([batch.weights[:, 0] for batch in batches])
    fraction = fractions(json.loads((folder / "person_keypoints.json").read_text()))["lsp"]
    error = STANDARD_DEVIATIONS * np.sqrt(fraction * (1 - fraction) / len(weights))
    assert set(weights) == {0.25, 1.0} and (weights == 0.25).mean() == pytest.approx(fraction, abs=error)
    assert {len(batch.images.pixels) for batch in batches} == {2**22}


def test_grain_is_imported_late():
    assert not hasattr(data_module, "grain")
