"""Files of MMPose 1.x: the same heatmaps as its network, every tensor used once, and the sizes inferred."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.support.reference_mmpose import TopdownPoseEstimator
from tests.support.reference_torch import randomize
from tests.tolerances import HEATMAPS
from vitpose_jax import VitPoseConfig, from_pretrained
from vitpose_jax.convert.engine import plan
from vitpose_jax.convert.formats import MMPOSE
from vitpose_jax.pretrained import describe

TINY = {"image_size": (64, 48), "hidden_size": 24, "num_layers": 2, "num_heads": 2}


@pytest.fixture(scope="module", params=["classic", "simple"])
def reference(request):
    return randomize(TopdownPoseEstimator(simple=request.param == "simple"), 0).eval()


def config(reference):
    return VitPoseConfig(**TINY, decoder="simple" if reference.head.simple else "classic")


def test_heatmaps_equal_those_of_its_network(reference, tmp_path):
    torch.save({"meta": {"epoch": 210}, "state_dict": reference.state_dict()}, tmp_path / "a.pth")
    model = from_pretrained(tmp_path / "a.pth", config=config(reference))
    images = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(model(jnp.asarray(images)), expected, rtol=0, atol=HEATMAPS)


def test_every_tensor_is_used_once(reference):
    names = [source for parts in plan(MMPOSE, config(reference)).values() for source, _, _ in parts]
    assert len(names) == len(set(names))
    counters = {name for name in reference.state_dict() if name.endswith("num_batches_tracked")}
    assert set(names) == set(reference.state_dict()) - counters


def test_sizes_and_keypoints_are_inferred(tmp_path):
    reference = TopdownPoseEstimator(simple=False, features=384, layers=3, heads=12, keypoints=14)
    path = tmp_path / "td-hm_ViTPose-small_8xb64-210e_crowdpose-64x48.pth"
    torch.save({"state_dict": reference.state_dict()}, path)
    description = describe(path, image_size=(64, 48))
    assert description.format == "mmpose" and description.config.skeletons[0].name == "crowdpose"
    expected = VitPoseConfig(image_size=(64, 48), hidden_size=384, num_layers=3, num_heads=12)
    assert description.config.replace(skeletons=expected.skeletons) == expected
    torch.save({"ema_state_dict": {"steps": torch.tensor(1)} | prefixed(reference)}, path)
    assert description.config == describe(path, image_size=(64, 48)).config


def prefixed(module):
    return {f"module.{name}": tensor for name, tensor in module.state_dict().items()}


def test_a_network_with_a_class_token_is_another_one(reference, tmp_path):
    state = {**reference.state_dict(), "backbone.cls_token": torch.zeros(1, 1, 24)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"unexpected backbone.cls_token"):
        from_pretrained(tmp_path / "a.pth", config=config(reference))
