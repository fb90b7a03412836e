"""The estimator: one compiled path, bounded programs and memory, lists of images, mixed datasets, bad input."""

import io
import itertools
import subprocess
import threading

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import supervision
import torch
from flax import nnx
from PIL import Image

from tests.support import programs
from tests.support.images import random_boxes, random_image
from tests.support.models import PLUS, TINY, random_model
from tests.support.poses import ARGMAX, assert_same_poses
from tests.tolerances import FLOAT32, HEATMAPS, KEYPOINTS, REFINED, REFINED_MOST, ROUNDED_PIXELS
from vitpose_jax import PoseEstimator, VitPoseConfig
from vitpose_jax.pipeline.packing import PIXEL_BUCKETS, PackedImages
from vitpose_jax.pipeline.postprocess import DECODINGS, decode_heatmaps, flip_back
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.pipeline.preprocess import crop_boxes
from vitpose_jax.serving.batching import batch_sizes
from vitpose_jax.serving.flow import MAX_JOBS, ItemError
from vitpose_jax.serving.pose_items import PoseJob
from vitpose_jax.skeletons import COCO, Skeleton


@pytest.fixture(scope="module")
def model():
    return random_model(VitPoseConfig(**TINY))


@pytest.fixture(scope="module")
def estimator(model):
    return PoseEstimator(model, max_batch=8)


@pytest.fixture(scope="module")
def plus():
    return PoseEstimator(random_model(VitPoseConfig(**TINY, **PLUS)), max_batch=8)


@pytest.fixture(scope="module")
def light():
    """Where the network's answers do not matter, nearly all of the work is the classic decoder's."""
    return random_model(VitPoseConfig(**{**TINY, "num_layers": 1}, decoder="simple"))


@pytest.mark.parametrize("decode", DECODINGS)
@pytest.mark.parametrize("flip_test", [False, True])
def test_the_estimator_equals_its_stages_one_by_one(model, estimator, decode, flip_test):
    image, boxes = random_image(0), random_boxes(0, 4)
    udp = DECODINGS[decode].udp
    crops = crop_boxes(image, boxes, (64, 48), udp=udp)
    heatmaps = model(crops)
    if flip_test:
        mirrored = flip_back(model(crops[:, :, ::-1]), COCO.flip_indices, shift=not udp)
        heatmaps = (heatmaps + mirrored) / 2
    keypoints, scores = decode_heatmaps(heatmaps, boxes, decode=decode)
    poses = estimator(image, boxes, decode=decode, flip_test=flip_test)
    assert poses.keypoints.shape == (4, 17, 2)
    assert poses.keypoints.dtype == np.float32
    np.testing.assert_array_equal(poses.boxes, boxes)
    assert poses.skeleton == COCO
    np.testing.assert_allclose(poses.scores, scores, rtol=0, atol=ROUNDED_PIXELS)
    assert (np.abs(poses.keypoints - keypoints).max(-1) < REFINED).mean() > REFINED_MOST


def test_lists_of_images_with_any_number_of_boxes(estimator):
    images = [random_image(1), random_image(2, 90, 70), random_image(3), random_image(4, 50, 200)]
    boxes = [random_boxes(1, 11), [], random_boxes(3, 1), "image"]
    together = estimator(images, boxes, **ARGMAX)
    assert [len(poses) for poses in together] == [11, 0, 1, 1]
    assert together[1].keypoints.shape == (0, 17, 2)
    np.testing.assert_array_equal(together[3].boxes, [[0, 0, 200, 50]])
    for image, row, poses in zip(images, boxes, together, strict=True):
        assert_same_poses(poses, estimator(image, row, **ARGMAX))
    assert estimator([], [], **ARGMAX) == []


def test_paths_pil_images_and_arrays_give_the_same_poses(estimator, tmp_path):
    image, boxes = random_image(5), random_boxes(5, 2)
    expected = estimator(image, boxes, **ARGMAX)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    for same in (path, str(path), Image.fromarray(image), jnp.asarray(image)):
        assert_same_poses(estimator(same, boxes, **ARGMAX), expected)


def test_exif_orientation_is_honoured(estimator):
    image, boxes = random_image(6), random_boxes(6, 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise when shown
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(image)).save(buffer, "PNG", exif=exif)
    assert_same_poses(estimator(Image.open(buffer), boxes, **ARGMAX), estimator(image, boxes, **ARGMAX))


def test_batches_tensors_bytes_and_bgr_give_the_same_poses(estimator, tmp_path):
    images, boxes = np.stack([random_image(5), random_image(6)]), [random_boxes(5, 2), random_boxes(6, 3)]
    expected = estimator(list(images), boxes, **ARGMAX)
    path = tmp_path / "image.png"
    Image.fromarray(images[0]).save(path)
    assert_same_poses(estimator(path.read_bytes(), boxes[0], **ARGMAX), expected[0])
    assert_same_poses(estimator(path.as_uri(), boxes[0], **ARGMAX), expected[0])
    tensor = torch.tensor(images.transpose(0, 3, 1, 2)) / 255
    for batch in (images, jnp.asarray(images), tensor):
        for poses, wanted in zip(estimator(batch, boxes, **ARGMAX), expected, strict=True):
            assert_same_poses(poses, wanted)
    assert estimator(images[:0]) == []
    (one,) = estimator(images[:1], boxes[:1], **ARGMAX)
    assert_same_poses(one, expected[0])
    bgr = estimator(images[..., ::-1], boxes, channel_order="bgr", **ARGMAX)
    streamed = estimator.stream(zip(images[..., ::-1], boxes, strict=True), channel_order="bgr", **ARGMAX)
    for poses, same, wanted in zip(bgr, streamed, expected, strict=True):
        assert_same_poses(poses, wanted)
        assert_same_poses(same, wanted)


def test_boxes_of_every_format_give_the_same_poses(estimator):
    image, boxes = random_image(5), np.asarray([[10, 20, 60, 90], [0, 0, 80, 60]], np.float32)
    height, width, _ = image.shape
    corner, size = boxes[:, :2], boxes[:, 2:]
    centred = np.concatenate([corner + size / 2, size], axis=1)
    forms = {
        "xyxy": np.concatenate([corner, corner + size], axis=1),
        "cxcywh": centred,
        "yolo": centred / np.asarray([width, height] * 2),
    }
    expected = estimator(image, boxes, **ARGMAX)
    for nested in ([boxes], boxes[None]):
        assert_same_poses(estimator(image, nested, **ARGMAX), expected)
    for name, rows in forms.items():
        (streamed,) = estimator.stream([(image, rows)], box_format=name, **ARGMAX)
        for poses in (estimator(image, rows, box_format=name, **ARGMAX), streamed):
            np.testing.assert_allclose(poses.boxes, boxes, rtol=FLOAT32)
            np.testing.assert_allclose(poses.keypoints, expected.keypoints, rtol=0, atol=KEYPOINTS)
    with pytest.raises(ValueError, match=r"boxes\[0\]: box 0 has no area; expected x2 > x1"):
        estimator(image, [[60, 20, 10, 90]], box_format="xyxy")


def test_detections_bring_their_scores(estimator):
    image, boxes, scores = random_image(5), random_boxes(5, 2), np.asarray([0.9, 0.5], np.float32)
    xyxy = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    detections = supervision.Detections(xyxy=xyxy, confidence=scores)
    (listed,) = estimator([image], [detections])
    for poses in (estimator(image, detections), listed, *estimator([image], detections)):
        np.testing.assert_allclose(poses.boxes, boxes, rtol=FLOAT32)
        np.testing.assert_array_equal(poses.box_scores, scores)
    with pytest.raises(ValueError, match="one entry for each of 2 images, got 1"):
        estimator([image, image], detections)


def test_people_and_animals_in_one_image(plus):
    image, boxes = random_image(7), random_boxes(7, 5)
    names = ["coco", "ap10k", "wholebody", "coco", "ap10k"]
    mixed = plus(image, boxes, dataset=names, **ARGMAX)
    assert mixed.keypoints.shape == (5, 133, 2)
    assert [person.skeleton.name for person in mixed] == names
    for row, name in enumerate(names):
        alone = plus(image, boxes[row : row + 1], dataset=name, **ARGMAX)
        assert_same_poses(mixed[row], alone)
    assert np.isnan(mixed.keypoints[0, 17:]).all()
    by_number = plus(image, boxes, dataset=np.array([0, 3, 5, 0, 3]).tolist(), **ARGMAX)
    assert_same_poses(by_number, mixed)
    each = plus([image, image], [boxes[:1], boxes[1:3]], dataset=["aic", ["ap10k", "coco"]], **ARGMAX)
    assert each[0].skeleton.name == "aic"
    assert [person.skeleton.name for person in each[1]] == ["ap10k", "coco"]


def test_long_lists_are_split_into_batches(estimator):
    image, boxes = random_image(8), random_boxes(8, 29)
    everyone = estimator(image, boxes, **ARGMAX)
    for row in (0, 8, 28):
        assert_same_poses(everyone[row], estimator(image, boxes[row : row + 1], **ARGMAX))


@pytest.mark.slow
def test_many_sizes_compile_few_programs(light):
    """100 images of different sizes with 0 to 40 boxes each."""
    estimator = PoseEstimator(light)
    rng = np.random.default_rng(0)
    for seed in range(100):
        height, width = rng.integers(40, 700, 2)
        count = int(rng.integers(0, 41))
        image = np.full((height, width, 3), seed, np.uint8)
        assert len(estimator(image, random_boxes(seed, count))) == count
    # Batches of 1, 2, 4, 8, 16, 32 (40 is 32 + 8); rows of 512 x 512 and of 1024 x 1024 pixels.
    assert estimator.num_compiled <= 6 * 2


def test_warmup_leaves_nothing_to_compile(light):
    estimator = PoseEstimator(light, max_batch=4)
    estimator.warmup(image_size=(200, 300))
    compiled = estimator.num_compiled
    assert compiled == 3
    for count in range(9):
        estimator(random_image(9, 200, 300), random_boxes(9, count))
    assert estimator.num_compiled == compiled


@pytest.mark.parametrize("max_batch", [1, 4, 64])
def test_batches_hold_everyone_with_little_padding(max_batch):
    for count in range(200):
        sizes = batch_sizes(count, max_batch)
        assert sum(sizes) >= count
        assert all(size & (size - 1) == 0 and size <= max_batch for size in sizes)
        assert sizes == sorted(sizes, reverse=True)
        assert sum(sizes) - count <= 0.25 * (sizes[-1] if sizes else 0)


def test_bfloat16_computes_and_answers_in_float32(model):
    low = PoseEstimator(random_model(model.config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    poses = low(random_image(10), random_boxes(10, 2))
    assert poses.keypoints.dtype == poses.scores.dtype == np.float32
    assert np.isfinite(poses.keypoints).all()


@pytest.mark.parametrize("dataset_index", [0, 5])
@pytest.mark.parametrize("flip_test", [False, True])
def test_the_whole_path_lowers_for_every_platform(dataset_index, flip_test):
    """Nothing in it is for one platform alone; no device is needed to know."""
    graphdef, state = nnx.split(random_model(VitPoseConfig(**TINY, **PLUS)))
    leaves, structure = jax.tree.flatten(state)

    def run(leaves, images, boxes):
        model = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))
        return predict(model, images, boxes, dataset_index=dataset_index, flip_test=flip_test)

    arguments = (
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        PackedImages(jax.ShapeDtypeStruct((PIXEL_BUCKETS[0], 3), jnp.uint8), jax.ShapeDtypeStruct((4, 3), jnp.int32)),
        jax.ShapeDtypeStruct((4, 4), jnp.float32),
    )
    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [out.shape for out in exported.out_avals] == [
        (4, (17, 133)[dataset_index == 5], 2),
        (4, (17, 133)[dataset_index == 5]),
        (4, (17, 133)[dataset_index == 5], 2, 2),
    ]


def test_a_batch_of_any_size_is_exported():
    """Its size is a symbol: no code may need it as a number."""
    config = VitPoseConfig(**{**TINY, "num_layers": 1}, **PLUS, decoder="simple")
    graphdef, state = nnx.split(random_model(config))
    leaves, structure = jax.tree.flatten(state)

    def run(leaves, image, boxes, indices):
        model = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))
        return model(crop_boxes(image, boxes, config.image_size), indices)

    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(run))(
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        jax.ShapeDtypeStruct((120, 160, 3), jnp.uint8),
        jax.ShapeDtypeStruct((n, 4), jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.int32),
    )
    for count in (1, 3):
        arguments = leaves, random_image(0), random_boxes(0, count), np.arange(count, dtype=np.int32)
        expected = jax.jit(run)(*arguments)
        assert expected.shape[0] == count
        np.testing.assert_allclose(exported.call(*arguments), expected, atol=HEATMAPS)


def test_bad_input_is_named(estimator, plus):
    image, boxes = random_image(11), random_boxes(11, 2)
    with pytest.raises(ValueError, match=r"boxes\[0\]: box 1 has no area"):
        estimator(image, [[0, 0, 5, 5], [0, 0, 0, 5]])
    with pytest.raises(ValueError, match=r"boxes\[1\]: box 0 is not finite"):
        estimator([image, image], [boxes, [[0, 0, np.nan, 5]]])
    with pytest.raises(ValueError, match="expected one entry for each of 2 images, got 1"):
        estimator([image, image], [boxes])
    with pytest.raises(ValueError, match="expected one for each of 2 boxes, got 3"):
        plus(image, boxes, dataset=["coco", "coco", "ap10k"])
    with pytest.raises(ValueError, match="no dataset 'ap10k' in this model"):
        estimator(image, boxes, dataset="ap10k")
    with pytest.raises(ValueError, match="max_batch: expected a power of two, got 12"):
        PoseEstimator(random_model(VitPoseConfig(**TINY)), max_batch=12)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        estimator("nowhere.jpg", boxes)


def test_a_flip_test_needs_flip_pairs():
    skeleton = Skeleton(name="custom", keypoints=("a", "b"))
    estimator = PoseEstimator(random_model(VitPoseConfig(**TINY, skeletons=(skeleton,))))
    with pytest.raises(ValueError, match="'custom' has no flip pairs"):
        estimator(random_image(12), random_boxes(12, 1), flip_test=True)


def test_a_stream_equals_single_calls(plus):
    images = [random_image(seed, 60 + 7 * seed, 90) for seed in range(9)]
    boxes = [random_boxes(seed, seed % 4) for seed in range(9)]
    boxes[5] = None
    entries = list(zip(images, boxes, strict=True))
    entries[3] = (*entries[3], ["ap10k", "coco", "aic"])
    for prefetch in (1, 3, 64):
        results = list(plus.stream(iter(entries), prefetch=prefetch, **ARGMAX))
        for (image, row, *dataset), poses in zip(entries, results, strict=True):
            assert_same_poses(poses, plus(image, row, dataset=dataset[0] if dataset else None, **ARGMAX))


def test_a_stream_reads_no_further_ahead_than_told(estimator):
    read = 0

    def entries():
        nonlocal read
        for seed in range(40):
            read += 1
            yield random_image(seed % 5), random_boxes(seed, 1)

    most = 0
    for done, _ in enumerate(estimator.stream(entries(), prefetch=4)):
        most = max(most, read - done)
    # Read ahead, in a group, and under way.
    assert most <= 4 + 4 * (1 + MAX_JOBS)


def test_a_stream_that_is_closed_leaves_no_thread(estimator):
    threads = set(threading.enumerate())
    stream = estimator.stream(((random_image(0), random_boxes(0, 1)) for _ in itertools.count()), prefetch=4)
    next(stream)
    readers = set(threading.enumerate()) - threads
    assert readers
    stream.close()
    for reader in readers:
        reader.join(timeout=60)
        assert not reader.is_alive()


def test_an_error_in_a_stream_names_its_item_and_spares_the_others(estimator, tmp_path):
    good = (random_image(0), random_boxes(0, 2))
    entries = [good, (tmp_path / "nowhere.jpg", None), good, (random_image(1), [[0, 0, -1, 5]]), good]
    results = list(estimator.stream(entries, errors="return"))
    assert [isinstance(result, ItemError) for result in results] == [False, True, False, True, False]
    assert "item 1: " in str(results[1])
    assert "nowhere.jpg" in str(results[1])
    assert "item 3: boxes: box 0 has no area" in str(results[3])
    assert isinstance(results[1].__cause__, FileNotFoundError)
    seen = []
    with pytest.raises(ItemError, match="item 1"):
        seen.extend(estimator.stream(entries))
    assert len(seen) == 1
    with pytest.raises(ValueError, match="prefetch: expected at least 1, got 0"):
        next(estimator.stream(entries, prefetch=0))


@pytest.mark.slow
def test_ten_thousand_boxes_in_one_call(light, monkeypatch):
    """Never more than a few batches are on the device."""
    estimator = PoseEstimator(light, max_batch=64)
    started = collected = most = 0
    run, collect = estimator._program, PoseJob.collect

    def counted_run(*arguments, **options):
        nonlocal started, most
        started += 1
        most = max(most, started - collected)
        return run(*arguments, **options)

    def counted_collect(job):
        nonlocal collected
        collect(job)
        collected += 1

    monkeypatch.setattr(estimator, "_program", counted_run)
    monkeypatch.setattr(PoseJob, "collect", counted_collect)
    boxes = random_boxes(0, 10_000)
    poses = estimator(random_image(0), boxes, **ARGMAX)
    assert len(poses) == 10_000
    assert started == collected == 10_000 // 64 + 1
    assert most <= MAX_JOBS + 1
    np.testing.assert_array_equal(poses.boxes, boxes)
    assert_same_poses(poses[9_999], estimator(random_image(0), boxes[9_999:], **ARGMAX))


@pytest.mark.slow
def test_a_batch_shared_out_among_eight_devices():
    """Forced host devices, in a process of its own: their number is fixed when JAX starts."""
    # Compiling without optimisation is quicker: every program is run once.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    command = programs.command("estimate_on_eight_devices")
    done = subprocess.run(command, env=programs.environment(XLA_FLAGS=flags), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_devices_are_a_power_of_two(model):
    with pytest.raises(ValueError, match="devices: expected a power of two up to max_batch 2, got 3 of them"):
        PoseEstimator(model, max_batch=2, devices=jax.devices() * 3)


def test_no_boxes_of_a_named_dataset_give_no_poses(plus):
    poses = plus(random_image(0), [], dataset="wholebody")
    assert poses.keypoints.shape == (0, 133, 2)
    with pytest.raises(ValueError, match="no dataset 'nonsense'"):
        plus(random_image(0), [], dataset="nonsense")


def test_numpy_arrays_and_integers_choose_datasets(plus):
    images, boxes = [random_image(0)] * 2, [random_boxes(0, 2)] * 2
    names = [
        [person.skeleton.name for poses in plus(images, boxes, dataset=dataset) for person in poses]
        for dataset in (np.array(["coco", "ap10k"]), ["coco", "ap10k"], [np.int64(0), np.int64(3)])
    ]
    assert names == [["coco", "coco", "ap10k", "ap10k"]] * 3
    assert plus(images[0], boxes[0], dataset=np.int64(3)).skeleton.name == "ap10k"
    assert plus(images[0], boxes[0], dataset="COCO-WholeBody").skeleton.name == "wholebody"


def test_one_open_file_may_come_many_times(estimator, tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(random_image(0, 600, 800)).save(path)
    with Image.open(path) as image:
        everyone = estimator([image] * 8, [random_boxes(0, 1)] * 8)
    assert len(everyone) == 8


def test_bad_items_of_a_stream_do_not_end_it(estimator):
    huge = np.broadcast_to(np.zeros(3, np.uint8), (40_000, 30_000, 3))
    good = (random_image(0), random_boxes(0, 1))
    entries = [good, (random_image(0),), (huge, [[0, 0, 5, 5]]), good]
    results = list(estimator.stream(entries, errors="return"))
    assert [isinstance(result, ItemError) for result in results] == [False, True, True, False]
    assert "item 2: image: expected at most" in str(results[2])


def test_a_fractional_dataset_index_raises(plus, unchecked):
    with pytest.raises(ValueError, match=r"no dataset 1.7"):
        plus(random_image(0), random_boxes(0, 2), dataset=[1.7, 0])


def test_an_unknown_errors_option_raises(estimator, unchecked):
    with pytest.raises(ValueError, match="errors: expected 'raise' or 'return', got 'rais'"):
        next(estimator.stream([], errors="rais"))


@pytest.mark.parametrize("border", ["scipy", "opencv"])
def test_crops_have_the_border_of_the_estimator(light, border):
    """For a box that lies partly outside of the image, where the two differ."""
    image, boxes = random_image(0), np.array([[-3.0, -3, 8, 8]], np.float32)
    poses = PoseEstimator(light, border=border)(image, boxes, **ARGMAX)
    scores = {
        name: decode_heatmaps(light(crop_boxes(image, boxes, (64, 48), border=name)), boxes, **ARGMAX)[1]
        for name in ("scipy", "opencv")
    }
    np.testing.assert_allclose(poses.scores, scores.pop(border), rtol=0, atol=ROUNDED_PIXELS)
    (others,) = scores.values()
    assert np.abs(poses.scores - others).max() > 10 * ROUNDED_PIXELS
