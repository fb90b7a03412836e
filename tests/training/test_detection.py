"""Training the person finder: images and boxes, augmentation, settings, and short trainings that learn and resume."""

import json
import pathlib
import pickle
import signal
import subprocess
import zipfile

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from tests.support import programs
from tests.support.boxes import RED, TINY_FINDER, detection_settings, draw_boxes, reference_iou, write_boxes
from tests.support.cli import run
from tests.support.training import assert_same_arrays, lines
from tests.tolerances import AUGMENTED_BOXES, LEARNT_IOU, SHARDED_LOSSES
from vitpose_jax import Detector
from vitpose_jax.convert.detectors import load_detector, write_finder
from vitpose_jax.finder.config import FinderConfig
from vitpose_jax.finder.modeling import PersonFinder
from vitpose_jax.storage import parameters
from vitpose_jax.training import loop, setup
from vitpose_jax.training.config import differing_settings, from_dict, read_config
from vitpose_jax.training.detection.augment import ImageAugmentation, LabelledImage, augment_image, mirror
from vitpose_jax.training.detection.data import BoxSource, make_box_loader
from vitpose_jax.training.optim import layer_scales, parameter_shapes
from vitpose_jax.training.sharding import parameter_specs

pytestmark = pytest.mark.usefixtures("compiled_once")

NO_BOXES = np.zeros((0, 4), np.float32)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory) -> dict[str, str]:
    return write_boxes(tmp_path_factory.mktemp("boxes"), [1, 2, 0, 1, 2, 1, 2, 1])


@pytest.fixture(scope="module")
def uninterrupted(boxes, tmp_path_factory) -> pathlib.Path:
    """The output folder of a run of seven steps."""
    output = tmp_path_factory.mktemp("trained") / "output"
    result = loop.fit(detection_settings(boxes, output))
    assert (result.step, result.finished, result.model) == (7, True, output / "last")
    return output


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in parameters.flatten(load_detector(folder)).items()}


# Data and augmentation


def red_extent(image: np.ndarray) -> np.ndarray | None:
    """The box around the red pixels, x1, y1, x2, y2; None without any."""
    red = image[..., 0].astype(int) - image[..., 1] > (RED[0] - RED[1]) / 2
    if not red.any():
        return None
    columns, rows = np.flatnonzero(red.any(axis=0)), np.flatnonzero(red.any(axis=1))
    return np.asarray([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(60, 200), st.integers(60, 200)),
    stretched=st.booleans(),
    crowd=st.booleans(),
)
def test_boxes_stay_on_their_pixels(seed, size, stretched, crowd):
    image = np.full((*size, 3), 100, np.uint8)
    x1, y1, x2, y2 = size[1] // 5, size[0] // 3, size[1] // 2, size[0] - 8
    image[y1:y2, x1:x2] = RED
    box = np.asarray([[x1, y1, x2, y2]], np.float32)
    people, ignored = (NO_BOXES, box) if crowd else (box, NO_BOXES)
    augmentation = ImageAugmentation(brightness=0.05, shift=2.0, saturation_probability=0.0)
    labelled = LabelledImage(image, people, ignored, stretched)
    square = augment_image(labelled, 128, augmentation, np.random.default_rng(seed))
    assert square.image.shape == (128, 128, 3)
    if crowd:
        assert not len(square.people)
    extent = red_extent(square.image)
    rows = np.concatenate([square.people, square.ignored])
    if len(rows):
        assert len(rows) == 1
        sides = rows[0, 2:] - rows[0, :2]
        if (sides >= 2).all():
            np.testing.assert_allclose(rows[0], extent, rtol=0, atol=AUGMENTED_BOXES)
    else:
        assert extent is None or (extent[2:] - extent[:2]).min() <= AUGMENTED_BOXES
    # Outside the image there are zeros.
    assert (square.image.max(axis=-1)[square.image.min(axis=-1) == 0] == 0).all()


def test_a_mirrored_image_has_its_boxes_on_their_pixels():
    image = np.full((40, 70, 3), 100, np.uint8)
    image[5:30, 8:20] = RED
    box = np.asarray([[8, 5, 20, 30]], np.float32)
    mirrored = mirror(LabelledImage(image, box, 2 * box, True))
    np.testing.assert_array_equal(mirrored.people[0], red_extent(mirrored.image))
    np.testing.assert_array_equal(mirrored.ignored, [[70 - 40, 10, 70 - 16, 60]])
    assert mirrored.stretched
    again = mirror(mirrored)
    np.testing.assert_array_equal(again.image, image)
    np.testing.assert_array_equal(again.people, box)


def test_people_of_whom_little_is_left_are_ignored():
    image, _ = draw_boxes(0, 0, (128, 128))
    people = np.asarray([[0, 0, 100, 128], [0, 0, 2, 128], [100, 0, 128, 128]], np.float32)
    augmentation = ImageAugmentation(scale=(2.0, 2.0), aspect=0.0, flip=0.0)
    seen = set()
    for seed in range(20):
        square = augment_image(LabelledImage(image, people, NO_BOXES), 128, augmentation, np.random.default_rng(seed))
        assert ((square.people >= 0) & (square.people <= 128)).all()
        # Half of the image's width and height is in the square.
        assert all(np.prod(box[2:] - box[:2]) >= 0.25 * 28 * 128 * 4 for box in square.people)
        seen.add((len(square.people), len(square.ignored)))
    assert len(seen) > 1
    whole = augment_image(
        LabelledImage(image, people, NO_BOXES), 128, ImageAugmentation(scale=(1.0, 1.0)), np.random.default_rng(0)
    )
    assert (len(whole.people), len(whole.ignored)) == (2, 1)


def test_annotations_are_read(boxes, tmp_path):
    content = json.loads(pathlib.Path(boxes["annotations"]).read_text())
    content["images"][2]["stretched"] = True
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["category_id"] = 7
    content["annotations"][2]["bbox"] = [3, 4, 0, 5]
    source = BoxSource(content, boxes["images"])
    assert len(source) == 8 and source.max_boxes == 2
    assert [len(source[index].people) for index in range(8)] == [0, 0, 0, 1, 2, 1, 2, 1]
    assert [len(source[index].ignored) for index in range(3)] == [1, 0, 0]
    assert [source[index].stretched for index in range(3)] == [False, False, True]
    np.testing.assert_array_equal(source[4].image, draw_boxes(4, 2)[0])
    corners = draw_boxes(4, 2)[1] @ np.block([[np.eye(2), np.eye(2)], [np.zeros((2, 2)), np.eye(2)]])
    np.testing.assert_array_equal(source[4].people, corners)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in pathlib.Path(boxes["images"]).iterdir():
            archive.write(path, path.name)
    zipped = pickle.loads(pickle.dumps(BoxSource(content, str(tmp_path / "*.zip"))))
    np.testing.assert_array_equal(zipped[4].image, source[4].image)
    with pytest.raises(ValueError, match="expected people of category_id 9, got none"):
        BoxSource({**content, "annotations": content["annotations"][1:]}, boxes["images"], category_id=9)
    content["annotations"][3]["image_id"] = 99
    with pytest.raises(ValueError, match="annotation 4: expected an image of the file, got image_id 99"):
        BoxSource(content, boxes["images"])


def test_batches_depend_on_seed_and_index_alone(boxes):
    source = BoxSource(boxes["annotations"], boxes["images"])

    def loader(**options):
        settings = {"batch_size": 4, "seed": 3, "size": 64, "augmentation": ImageAugmentation(), "num_threads": 1}
        return make_box_loader([source, source], **{**settings, **options})

    with loader() as whole, loader(num_threads=2) as resumed, loader(seed=4) as other:
        assert whole.micro_steps_per_epoch == 4
        batches = [next(whole) for _ in range(6)]
        assert batches[0].boxes.shape == (4, 8, 4)
        next(resumed)
        resumed.set_state({**resumed.get_state(), "micro_step": 5})
        assert_same_arrays(next(resumed)._asdict(), batches[5]._asdict())
        assert not np.array_equal(next(other).images, batches[0].images)
        with pytest.raises(ValueError, match="state: expected a micro_step"):
            other.set_state(whole.get_state())
    with loader(batch_size=2, process_count=2) as first, loader(batch_size=2, process_count=2, process_index=1) as last:
        parts = [next(first), next(last)]
    for name, array in batches[0]._asdict().items():
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), array)


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batchsize": 3}, "unknown key batchsize; did you mean batch_size?"),
        ({"sigma": 3}, "unknown key sigma; expected one of"),
        ({"task": "segmentation"}, "task: expected one of pose, detection, second_stage, got 'segmentation'"),
        ({"data": [{"annotations": "a.json"}]}, "missing key data.0.images"),
        ({"data": []}, "data: expected one dataset or more"),
        ({"optim": {"layer_decay": 0.5}}, "optim.layer_decay: expected 1.0 for a finder, got 0.5"),
        ({"optim": {"total_steps": 5}}, "unknown key optim.total_steps"),
        ({"model": {"labels": ["a", "b"]}}, "model.labels: expected one label, got a, b"),
        ({"model": {"image_size": 100}}, "image_size: expected a multiple of 128 up to 8192, got 100"),
        ({"average_with_init": 0.5}, "average_with_init: expected init"),
        ({"average_with_init": 1.0, "init": "x"}, "expected a number from 0 to less than 1, got 1.0"),
        ({"augmentation": {"scale": [1, 0.5]}}, "scale: expected two numbers, 0 < smallest <= largest"),
        ({"export_dtype": "int8"}, "export_dtype: expected one of float32, float16, got 'int8'"),
        ({"epochs": 1}, "expected one of epochs and steps"),
    ],
)
def test_errors_name_the_key_and_what_was_expected(boxes, tmp_path, changes, message):
    with pytest.raises(ValueError) as error:
        detection_settings(boxes, tmp_path, **changes)
    assert message in str(error.value)


def test_settings_come_back(boxes, tmp_path):
    config = detection_settings(boxes, tmp_path, optim={"betas": [0.9, 0.99]})
    assert from_dict(config.to_dict()) == config
    assert (config.optim.schedule, config.optim.ema_decay, config.optim.betas) == ("cosine", 0.999, (0.9, 0.99))
    pose = read_config(pathlib.Path(__file__).parents[2] / "configs" / "finetune.toml")
    assert differing_settings(pose, config) == ["task"]
    assert differing_settings(config, detection_settings(boxes, tmp_path, seed=1, steps=9)) == ["optim", "seed"]


def test_rules_cover_all_parameters():
    config = FinderConfig()
    shapes = parameter_shapes(config)
    assert layer_scales(config, 1.0).keys() == shapes.keys() == parameter_specs(shapes, 2).keys()
    assert parameter_specs(shapes, 2)["stem.kernel"][-1] == "fsdp"
    assert parameter_specs(shapes, 2)["stem.bias"] == PartitionSpec()


# Training runs


def test_a_finder_learns_to_find_rectangles(boxes, tmp_path):
    config = detection_settings(
        boxes,
        tmp_path / "output",
        steps=140,
        batch_size=8,
        optim={"learning_rate": 3e-3, "warmup_steps": 10},
        augmentation={"scale": [0.9, 1.1], "aspect": 0},
        export_dtype="float16",
        log={"every_steps": 10},
        checkpoint={"every_steps": 1000},
    )
    result = loop.fit(config)
    losses = list(lines(tmp_path / "output").values())
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    first = json.loads((tmp_path / "output" / "metrics.jsonl").read_text().splitlines()[0])
    parts = [first[f"loss/{name}"] for name in ("score", "box", "distances")]
    assert first["loss"] == pytest.approx(sum(parts)) and "images_per_second" in first
    detector = Detector.from_pretrained(result.model)
    for seed in range(100, 104):
        image, expected = draw_boxes(seed, 2)
        detections = detector(image)
        overlaps = [
            max(reference_iou(*(np.append(box[:2], box[:2] + box[2:]) for box in (found, own)))[0] for own in expected)
            for found in detections.boxes.astype(np.float64)
        ]
        assert len(detections) == 2 and min(overlaps) > LEARNT_IOU, (seed, detections, expected)


def test_control_c_saves_and_resumes_bit_equal(boxes, uninterrupted, tmp_path, monkeypatch, ctrl_c):
    output = tmp_path / "output"
    make = setup.make_detection_step

    def interrupted(*arguments, **options):
        train_step = make(*arguments, **options)

        def micro_step(state, batch, key):
            if state.micro_step == 4:
                signal.raise_signal(signal.SIGINT)
            return train_step(state, batch, key)

        return micro_step

    with monkeypatch.context() as patched:
        patched.setattr(setup, "make_detection_step", interrupted)
        result = loop.fit(detection_settings(boxes, output))
    assert (result.step, result.finished, result.model) == (5, False, None)
    with pytest.raises(ValueError, match="to resume it, got others for batch_size"):
        loop.fit(detection_settings(boxes, output, batch_size=2), resume=True)
    result = loop.fit(detection_settings(boxes, output), resume=True)
    assert (result.step, result.finished) == (7, True)
    for key in ("loss", "loss/box", "gradient_norm"):
        assert_same_arrays(lines(output, key), lines(uninterrupted, key))
    assert_same_arrays(tensors(result.model), tensors(uninterrupted / "last"))


@pytest.mark.slow
def test_eight_devices_train_as_one(boxes, tmp_path):
    """Data and parameters both split."""
    settings = detection_settings(boxes, tmp_path / "one", batch_size=8)
    loop.fit(settings)
    path = tmp_path / "training.json"
    path.write_text(json.dumps(settings.to_dict()))
    command = programs.command("command_line", "train", path, "mesh.fsdp=4", "--output", tmp_path / "eight")
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    subprocess.run(command, env=programs.environment(XLA_FLAGS=flags), check=True, capture_output=True)
    one, eight = lines(tmp_path / "one"), lines(tmp_path / "eight")
    assert one.keys() == eight.keys()
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=SHARDED_LOSSES)


@pytest.mark.slow
def test_the_result_is_averaged_with_the_network_it_started_from(boxes, tmp_path, capsys):
    config = FinderConfig.from_dict({**FinderConfig().to_dict(), **TINY_FINDER})
    initial = PersonFinder(config, rngs=nnx.Rngs(5))
    write_finder(initial, tmp_path / "initial")
    for output, weight in (("plain", 0.0), ("averaged", 0.25)):
        path = tmp_path / f"{output}.json"
        changes = {"init": str(tmp_path / "initial"), "average_with_init": weight, "steps": 2}
        settings = detection_settings(boxes, tmp_path / "unused", **changes)
        path.write_text(json.dumps(settings.to_dict()))
        status, printed, said = run(capsys, "train", path, "--output", tmp_path / output)
        assert (status, said) == (0, "")
        assert printed.splitlines()[-1] == f"step 2: {tmp_path / output / 'last'}"
    plain, averaged, start = (tensors(tmp_path / name) for name in ("plain/last", "averaged/last", "initial"))
    assert_same_arrays(
        averaged, {name: np.float32(0.75) * plain[name] + np.float32(0.25) * start[name] for name in start}
    )
    assert max(np.abs(plain[name] - start[name]).max() for name in start) > 1e-4
    wrong = detection_settings(boxes, tmp_path / "wrong", init=str(tmp_path / "initial"), model={"image_size": 128})
    with pytest.raises(ValueError, match=r"initial: \d+ problems\n  heads.0.hidden.bias: expected shape"):
        loop.fit(wrong)
