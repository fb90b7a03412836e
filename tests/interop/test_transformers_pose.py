"""The classes of vitpose_jax.interop.transformers beside those of transformers: crops, heatmaps, keypoints."""

import types
import warnings
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import VitPoseImageProcessorPil

from tests.support import reference_torch
from tests.support.models import smallest_model
from tests.tolerances import BFLOAT16, BLOCK, CROP_OUTLIERS, FLOAT32, HEATMAPS, KEYPOINTS
from vitpose_jax import VitPoseConfig as OwnConfig
from vitpose_jax.convert import write
from vitpose_jax.interop import transformers as ours
from vitpose_jax.skeletons import COCO

pytestmark = pytest.mark.usefixtures("compiled_once")

SIZE = {"height": 64, "width": 48}
# Two images: one person; three, of whom one is cut off by the border.
BOXES = [[[20.0, 30.0, 200.0, 300.0]], [[100.0, 100, 80, 90], [-30, 200, 100, 250], [300.5, 20.25, 120, 60]]]
STD = min(OwnConfig().image_std)


def checkpoint(folder, **fields):
    model = reference_torch.tiny_model(**fields)
    model.save_pretrained(folder)
    VitPoseImageProcessorPil(size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("experts"), num_experts=6)


@pytest.fixture(scope="module")
def images(sample_folder):
    return [Image.open(path).convert("RGB") for path in sorted((sample_folder / "images").iterdir())[:2]]


def both(folder, **kwargs):
    mine = ours.VitPoseForPoseEstimation.from_pretrained(folder, **kwargs)
    kwargs.pop("device_map", None)
    theirs = transformers.VitPoseForPoseEstimation.from_pretrained(folder, attn_implementation="eager", **kwargs)
    return mine, theirs.eval()


def processors(folder):
    return ours.AutoImageProcessor.from_pretrained(folder), VitPoseImageProcessorPil.from_pretrained(folder)


def assert_same_crops(mine, theirs, scale=1.0):
    """All equal, but for some pixel values that are rounded the other way."""
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype == np.float32
    different = np.abs(mine - theirs) > BLOCK * max(scale, 1)
    assert different.mean() <= CROP_OUTLIERS
    np.testing.assert_array_less(np.abs(mine - theirs), scale * (1 / 255 / STD) + BLOCK)


def assert_same_poses(mine, theirs):
    assert [len(image) for image in mine] == [len(image) for image in theirs]
    for mine_pose, their_pose in zip(chain(*mine), chain(*theirs), strict=True):
        assert mine_pose.keys() == their_pose.keys()
        for name in ("keypoints", "scores", "labels"):
            assert type(mine_pose[name]) is type(their_pose[name])
            assert (mine_pose[name].dtype, mine_pose[name].shape) == (their_pose[name].dtype, their_pose[name].shape)
        np.testing.assert_allclose(mine_pose["keypoints"], their_pose["keypoints"], rtol=0, atol=KEYPOINTS)
        np.testing.assert_allclose(mine_pose["scores"], their_pose["scores"], rtol=0, atol=HEATMAPS)
        np.testing.assert_array_equal(mine_pose["labels"], their_pose["labels"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127},
        {"size": {"height": 96, "width": 96}},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
        {"normalize_factor": 160.0},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_crops(plain, images, options):
    mine, theirs = processors(plain)
    scale = 255.0 if options.get("do_rescale") is False else 2.1
    expected = theirs(images, boxes=BOXES, return_tensors="np", **options).pixel_values
    crops = mine(images, boxes=BOXES, return_tensors="np", **options).pixel_values
    assert_same_crops(crops, np.asarray(expected, np.float32), scale)
    # The same as arguments of the class.
    other = ours.VitPoseImageProcessor.from_pretrained(plain, **options)
    np.testing.assert_array_equal(other.preprocess(images, BOXES).pixel_values, crops)


def test_kinds_of_arrays(plain, images):
    mine, _ = processors(plain)
    expected = mine(images, boxes=BOXES).pixel_values
    assert isinstance(expected, np.ndarray)
    for kind, type_ in (("np", np.ndarray), ("jax", jax.Array), ("pt", torch.Tensor)):
        crops = mine(images, boxes=BOXES, return_tensors=kind).pixel_values
        assert isinstance(crops, type_)
        np.testing.assert_array_equal(np.asarray(crops), expected)
    with pytest.raises(ValueError, match="return_tensors: expected one of np, jax, pt, got 'tf'"):
        mine(images, boxes=BOXES, return_tensors="tf")


def test_layouts_of_images_and_crops(plain, images):
    mine, _ = processors(plain)
    expected = mine(images, boxes=BOXES).pixel_values
    arrays = [np.asarray(image) for image in images]
    first = [array.transpose(2, 0, 1) for array in arrays]
    for variant in (arrays, first, [torch.tensor(array) for array in first], list(map(jnp.asarray, arrays))):
        np.testing.assert_array_equal(mine(variant, boxes=BOXES).pixel_values, expected)
    fractions = [array / np.float32(255) for array in arrays]
    crops = mine(fractions, boxes=BOXES, do_rescale=False, input_data_format="channels_last").pixel_values
    np.testing.assert_allclose(crops, expected, rtol=0, atol=BLOCK)
    last = mine(images, boxes=BOXES, data_format="channels_last").pixel_values
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), expected)
    one = mine(images[0], boxes=[np.asarray(BOXES[0])], return_tensors="np").pixel_values
    assert_same_crops(one, expected[:1])


def test_whole_images_without_affine_transform(plain):
    mine, theirs = processors(plain)
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    expected = theirs([image, image], boxes=None, do_affine_transform=False, return_tensors="np").pixel_values
    crops = mine([image, image], do_affine_transform=False).pixel_values
    np.testing.assert_allclose(crops, expected, rtol=0, atol=BLOCK)


def test_heatmaps_hidden_states_and_attentions(plain, images):
    mine, theirs = both(plain)
    inputs = processors(plain)[1](images, boxes=BOXES, return_tensors="pt")
    options = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected = theirs(**inputs, **options)
    outputs = mine(**inputs, **options)
    assert isinstance(outputs, ours.VitPoseEstimatorOutput)
    np.testing.assert_allclose(outputs.heatmaps, expected.heatmaps, rtol=0, atol=HEATMAPS)
    assert len(outputs.hidden_states) == len(expected.hidden_states) == 3
    for mine_state, their_state in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(mine_state, their_state, rtol=0, atol=HEATMAPS)
    assert len(outputs.attentions) == len(expected.attentions) == 2
    for mine_weights, their_weights in zip(outputs.attentions, expected.attentions, strict=True):
        np.testing.assert_allclose(mine_weights, their_weights, rtol=0, atol=BLOCK)
    assert outputs.keys() == expected.keys()
    assert outputs.heatmaps is outputs["heatmaps"] is outputs[0] and outputs.loss is None
    values = mine(**inputs, return_dict=False)
    assert isinstance(values, tuple)
    np.testing.assert_array_equal(values[0], outputs[0])
    with pytest.raises(AttributeError, match="expected one of loss, heatmaps, hidden_states, attentions, got logits"):
        _ = outputs.logits


def test_outputs_are_of_the_kind_of_the_inputs(plain, images):
    mine, _ = both(plain)
    processor, _ = processors(plain)
    expected = None
    for kind, type_ in (("np", np.ndarray), ("jax", jax.Array), ("pt", torch.Tensor)):
        outputs = mine(**processor(images, boxes=BOXES, return_tensors=kind).to(mine.device))
        assert isinstance(outputs.heatmaps, type_)
        expected = outputs.heatmaps if expected is None else expected
        np.testing.assert_array_equal(np.asarray(outputs.heatmaps), expected)
        poses = processor.post_process_pose_estimation(outputs, boxes=BOXES)
        assert isinstance(poses[1][2]["keypoints"], type_)


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("kernel_size", [11, 3, 7])
def test_keypoints_scores_and_labels(plain, images, threshold, kernel_size):
    mine, theirs = processors(plain)
    model, _ = both(plain)
    outputs = model(**theirs(images, boxes=BOXES, return_tensors="pt"))
    options = {"boxes": BOXES, "threshold": threshold, "kernel_size": kernel_size}
    poses = mine.post_process_pose_estimation(outputs, **options)
    assert_same_poses(poses, theirs.post_process_pose_estimation(outputs, **options))
    counts = {len(pose["scores"]) for image in poses for pose in image}
    assert counts == {17} if threshold is None else min(counts) < 17


@pytest.mark.parametrize("index", [[0], [3], [0, 5, 1, 2]])
def test_experts(experts, images, index):
    mine, theirs = both(experts)
    inputs = processors(experts)[1](images, boxes=BOXES, return_tensors="pt")
    index = torch.tensor(index)
    with torch.no_grad():
        expected = theirs(**inputs, dataset_index=index).heatmaps
    if index.any():
        with pytest.warns(UserWarning, match="which was not trained with them"):
            heatmaps = mine(**inputs, dataset_index=index).heatmaps
    else:
        heatmaps = mine(**inputs, dataset_index=index).heatmaps
    np.testing.assert_allclose(heatmaps, expected, rtol=0, atol=HEATMAPS)
    # The warning comes once.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine(**inputs, dataset_index=index)


def test_an_expert_with_another_head_in_our_own_api(experts):
    mine, theirs = both(experts)
    crops = reference_torch.random_crops(theirs, 3)
    expected, crops = reference_torch.heatmaps(theirs, crops, 3), jnp.asarray(crops)
    np.testing.assert_allclose(mine.network(crops, expert=3, head="coco"), expected, rtol=0, atol=HEATMAPS)
    np.testing.assert_allclose(mine.network(crops, expert=["ap10k"] * 3), expected, rtol=0, atol=HEATMAPS)
    np.testing.assert_array_equal(mine.network(crops, head="coco"), mine.network(crops))
    with pytest.raises(ValueError, match="expected it without expert and head"):
        mine.network(crops, 0, expert=3)
    with pytest.raises(ValueError, match="has an expert for 'ap10k' but no head"):
        mine.network(crops, head="ap10k")


def test_an_expert_that_does_not_exist(experts, images):
    """transformers adds no expert at all, silently."""
    mine, theirs = both(experts)
    inputs = processors(experts)[1](images, boxes=BOXES, return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(theirs(**inputs, dataset_index=torch.tensor([6])).heatmaps).all()
    with pytest.raises(ValueError, match="no dataset 6 in this model"):
        mine(**inputs, dataset_index=torch.tensor([6]))
    with pytest.raises(ValueError, match="expected one, or one for each of 4 crops, got 2"):
        mine(**inputs, dataset_index=[0, 1])


def test_experts_without_an_index(experts, images):
    """The head's own expert; transformers raises."""
    mine, theirs = both(experts)
    inputs = processors(experts)[1](images, boxes=BOXES, return_tensors="pt")
    with pytest.raises(ValueError, match="dataset_index must be provided"):
        theirs(**inputs)
    np.testing.assert_array_equal(mine(**inputs).heatmaps, mine(**inputs, dataset_index=[0]).heatmaps)


def test_flip_pairs_and_flipped_outputs(plain, images):
    mine, theirs = both(plain)
    processor, reference = processors(plain)
    inputs = reference(images, boxes=BOXES, return_tensors="pt")
    pairs, mirrored = torch.tensor(COCO.flip_pairs), inputs.pixel_values.flip(-1)
    with torch.no_grad():
        expected, upright = theirs(mirrored, flip_pairs=pairs), theirs(**inputs)
    flipped = mine(mirrored, flip_pairs=pairs)
    np.testing.assert_allclose(flipped.heatmaps, expected.heatmaps, rtol=0, atol=HEATMAPS)
    # The processor of transformers' Sapiens2 has this argument, that of its ViTPose has not.
    poses = processor.post_process_pose_estimation(upright, boxes=BOXES, outputs_flipped=expected)
    mean = types.SimpleNamespace(heatmaps=(upright.heatmaps + expected.heatmaps) / 2)
    assert_same_poses(poses, reference.post_process_pose_estimation(mean, boxes=BOXES))
    with pytest.raises(ValueError, match="flip_pairs: expected indices below 17"):
        mine(mirrored, flip_pairs=[[1, 17]])


def test_labels_give_the_loss(plain, images):
    """transformers raises NotImplementedError."""
    mine, theirs = both(plain)
    inputs = processors(plain)[1](images, boxes=BOXES, return_tensors="pt")
    heatmaps = mine(**inputs).heatmaps
    labels = torch.rand(heatmaps.shape, generator=torch.Generator().manual_seed(0))
    weights = torch.arange(4 * 17).reshape(4, 17) % 2
    with pytest.raises(NotImplementedError):
        theirs(**inputs, labels=labels)
    outputs = mine(**inputs, labels=labels)
    np.testing.assert_allclose(outputs.loss, ((heatmaps - labels) ** 2).mean(), rtol=FLOAT32)
    outputs = mine(**inputs, labels=labels, label_weights=weights)
    expected = (((heatmaps - labels) * weights[:, :, None, None]) ** 2).mean()
    np.testing.assert_allclose(outputs["loss"], expected, rtol=FLOAT32)
    assert list(outputs) == ["loss", "heatmaps"]
    with pytest.raises(ValueError, match="labels: expected heatmaps"):
        mine(**inputs, labels=labels[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", jnp.bfloat16])
def test_bfloat16(plain, images, dtype):
    mine = ours.VitPoseForPoseEstimation.from_pretrained(plain, dtype=dtype)
    exact = ours.VitPoseForPoseEstimation.from_pretrained(plain, torch_dtype=torch.float32)
    assert mine.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    processor, _ = processors(plain)
    inputs = processor(images, boxes=BOXES, return_tensors="pt").to(mine.device, dtype=torch.bfloat16)
    assert inputs.pixel_values.dtype == torch.bfloat16
    outputs = mine(**inputs)
    assert outputs.heatmaps.dtype == torch.bfloat16
    expected = exact(processor(images, boxes=BOXES).pixel_values).heatmaps
    np.testing.assert_allclose(outputs.heatmaps.float(), expected, rtol=0, atol=BFLOAT16 * np.abs(expected).max())
    poses = processor.post_process_pose_estimation(outputs, boxes=BOXES)
    assert poses[0][0]["keypoints"].dtype == torch.float32
    assert ours.VitPoseForPoseEstimation.from_pretrained(plain, dtype="auto").dtype == jnp.float32


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_dtype_of_a_file_of_integers_is_float32(tmp_path, kind):
    write(smallest_model(), tmp_path, **{kind: True}, group_size=4 if kind == "int4" else None)
    assert ours.VitPoseForPoseEstimation.from_pretrained(tmp_path, dtype="auto").dtype == jnp.float32
