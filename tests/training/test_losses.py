"""Losses against the formulas of the original in PyTorch, and against its published values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.tolerances import FLOAT32
from vitpose_jax.training import losses

N, H, W, K = 5, 8, 6, 10


def batch(seed: int = 0, weights: str = "zeros and ones"):
    rng = np.random.default_rng(seed)
    predicted, target = (rng.normal(size=(N, H, W, K)).astype(np.float32) for _ in range(2))
    weight = rng.random((N, K)) if weights == "any" else rng.random((N, K)) < 0.6
    return predicted, target, weight.astype(np.float32)


def by_keypoint(heatmaps: np.ndarray) -> torch.Tensor:
    """In the layout of PyTorch: crops, keypoints, pixels."""
    return torch.tensor(np.asarray(heatmaps).transpose(0, 3, 1, 2).reshape(N, -1, H * W))


def torch_mse(predicted, target, weights, use_target_weight=True):
    loss, criterion = 0.0, torch.nn.MSELoss()
    for joint in range(predicted.shape[1]):
        weight = weights[:, joint, None] if use_target_weight else 1.0
        loss = loss + criterion(predicted[:, joint] * weight, target[:, joint] * weight)
    return loss / predicted.shape[1]


def torch_hard(predicted, target, weights, use_target_weight=True, top_k=8):
    weights = weights[:, :, None] if use_target_weight else 1.0
    errors = torch.nn.MSELoss(reduction="none")(predicted * weights, target * weights).mean(dim=2)
    return sum(torch.topk(crop, top_k).values.sum() / top_k for crop in errors) / len(errors)


@pytest.mark.parametrize(
    ("ours", "reference"), [(losses.joints_mse, torch_mse), (losses.online_hard_keypoints, torch_hard)]
)
@pytest.mark.parametrize("use_target_weight", [True, False])
@pytest.mark.parametrize("weights", ["zeros and ones", "any"])
def test_values_and_gradients_equal_torch(ours, reference, use_target_weight, weights):
    predicted, target, weight = batch(weights=weights)
    ours = functools.partial(ours, use_target_weight=use_target_weight)
    value, gradient = jax.jit(jax.value_and_grad(ours))(predicted, target, weight)
    leaf = by_keypoint(predicted).requires_grad_()
    expected = reference(leaf, by_keypoint(target), torch.tensor(weight), use_target_weight)
    expected.backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=FLOAT32)
    largest = np.abs(gradient).max()
    assert largest > 0
    np.testing.assert_allclose(by_keypoint(gradient), leaf.grad, rtol=0, atol=FLOAT32 * largest)


@pytest.mark.parametrize(("ones", "expected"), [(2, 1.0), (1, 0.5)])
def test_joints_mse_equals_published_values(ones, expected):
    """Ones against zeros in both, or in one, of two channels."""
    predicted = jnp.zeros((1, 64, 64, 2)).at[..., :ones].set(1.0)
    target, weights = jnp.zeros((1, 64, 64, 2)), jnp.ones((1, 2))
    assert losses.joints_mse(predicted, target, weights) == expected
    assert losses.online_hard_keypoints(predicted, target, weights, top_k=1) == 1.0
    assert losses.online_hard_keypoints(predicted, target, weights, top_k=2) == expected


@pytest.mark.parametrize("top_k", [0, 11])
def test_top_k_is_checked(top_k):
    with pytest.raises(ValueError, match=rf"top_k: expected 1 to 10, the number of keypoints, got {top_k}"):
        losses.online_hard_keypoints(*map(jnp.asarray, batch()), top_k=top_k)


HEADS = (K, 4, 7)


def test_heads_share_a_batch_as_in_the_original():
    predicted, target, weights = batch(3)
    dataset_index = np.array([0, 2, 0, 1, 2])
    # Channels that a head does not have are not read.
    for crop, index in enumerate(dataset_index):
        predicted[crop, :, :, HEADS[index] :] = 1e6
    arrays = (predicted, target, weights, dataset_index)
    each = jax.jit(losses.joints_mse_by_dataset, static_argnums=4)(*arrays, HEADS)
    value, gradient = jax.jit(jax.value_and_grad(lambda *a: losses.joints_mse_by_dataset(*a, HEADS).sum()))(*arrays)
    leaf = by_keypoint(predicted).requires_grad_()
    expected = []
    for head, count in enumerate(HEADS):
        in_dataset = torch.tensor(dataset_index == head)
        head_target, head_weights = (
            by_keypoint(target) * in_dataset[:, None, None],
            torch.tensor(weights) * in_dataset[:, None],
        )
        expected.append(torch_mse(leaf[:, :count], head_target[:, :count], head_weights[:, :count]))
    sum(expected).backward()
    np.testing.assert_allclose(each, [float(loss.detach()) for loss in expected], rtol=FLOAT32)
    np.testing.assert_allclose(value, float(sum(expected).detach()), rtol=FLOAT32)
    np.testing.assert_allclose(by_keypoint(gradient), leaf.grad, rtol=0, atol=FLOAT32 * np.abs(gradient).max())
    # With one dataset it equals joints_mse.
    one = losses.joints_mse_by_dataset(*map(jnp.asarray, batch()), jnp.zeros(N, int), (K,))
    np.testing.assert_allclose(one, [losses.joints_mse(*map(jnp.asarray, batch()))], rtol=FLOAT32)


def test_joints_mse_by_dataset_checks_its_heads():
    arrays = tuple(map(jnp.asarray, batch()))
    with pytest.raises(ValueError, match=r"expected 0 to 10, the number of channels, got \(17,\)"):
        losses.joints_mse_by_dataset(*arrays, jnp.zeros(N, int), (17,))
    index = jnp.asarray([0, 0, 2, 0, 2])
    assert np.isfinite(losses.joints_mse_by_dataset(*arrays, index, (K, 0, 4))).all()
    for heads in ((K, 0, 0), (K, 4)):
        assert np.isnan(losses.joints_mse_by_dataset(*arrays, index, heads)).all()


def test_losses_are_float32_for_any_dtype():
    predicted, target, weights = map(jnp.asarray, batch())
    half = predicted.astype(jnp.bfloat16)
    for loss in (losses.joints_mse, losses.online_hard_keypoints):
        value = loss(half, target, weights)
        assert value.dtype == jnp.float32
        assert value == loss(half.astype(jnp.float32), target, weights)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_reach_the_loss(bad):
    predicted, target, weights = batch()
    crop, joint = np.argwhere(weights == 0)[0]
    for place, weight in (((0, 2, 3, 1), 1.0), ((crop, 2, 3, joint), 0.0)):
        spoilt, weights[place[0], place[3]] = predicted.copy(), weight
        spoilt[place] = bad
        arrays = tuple(map(jnp.asarray, (spoilt, target, weights)))
        assert not np.isfinite(losses.joints_mse(*arrays))
        assert not np.isfinite(losses.online_hard_keypoints(*arrays, top_k=1))
        assert not np.isfinite(losses.joints_mse_by_dataset(*arrays, jnp.zeros(N, int), (K,))).any()


def reference_pck(predicted, target, mask, threshold):
    """`pose_pck_accuracy` of the original, one keypoint at a time."""

    def peak(heatmap):
        row, column = np.unravel_index(np.argmax(heatmap), heatmap.shape)
        return np.array([column, row] if heatmap.max() > 0 else [-1, -1])

    fractions = []
    for joint in range(predicted.shape[-1]):
        near = [
            np.linalg.norm((peak(predicted[i, :, :, joint]) - peak(target[i, :, :, joint])) / [H, W]) < threshold
            for i in range(len(predicted))
            if mask[i, joint]
        ]
        if near:
            fractions.append(np.mean(near))
    return np.mean(fractions) if fractions else 0.0


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6])
def test_pck_equals_the_formula(threshold):
    rng = np.random.default_rng(4)
    predicted, target, weights = batch(4)
    weights[:, 0] = 0
    # Some correct peaks, some heatmaps without a peak.
    predicted = np.where(rng.random((N, 1, 1, K)) < 0.4, target, predicted)
    predicted = np.where(rng.random((N, 1, 1, K)) < 0.2, -np.abs(predicted), predicted)
    value = losses.heatmap_pck(*map(jnp.asarray, (predicted, target, weights)), threshold=threshold)
    expected = reference_pck(predicted, target, weights > 0, threshold)
    assert 0 < expected < 1
    np.testing.assert_allclose(value, expected, rtol=FLOAT32)


def test_pck_without_labels_is_0_and_of_perfect_heatmaps_1():
    _, target, weights = map(jnp.asarray, batch())
    assert losses.heatmap_pck(target, target, jnp.zeros_like(weights)) == 0
    np.testing.assert_allclose(losses.heatmap_pck(target, target, weights), 1.0, rtol=FLOAT32)
