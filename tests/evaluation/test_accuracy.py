import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tests.tolerances import FLOAT64, SEVEN_DECIMALS
from vitpose_jax.datasets.annotations import mpii_head_sizes
from vitpose_jax.evaluation.accuracy import auc, epe, nme, pck, pckh
from vitpose_jax.skeletons import MPII

TARGET = np.array([[10, 0], [10, 10], [-1, 0], [30, 30], [0, 10]])
PREDICTED = np.array([[10, 0], [20, 20], [0, 0], [30, 30], [0, 10]])
VISIBLE = np.array([[True, True, False, True, True]] * 2)


def pairs(*first: np.ndarray) -> list[np.ndarray]:
    """Each as the first of two samples, the second being zeros."""
    return [np.stack([values, np.zeros_like(values)]) for values in first]


# Published numbers


def test_pck_equals_published_numbers():
    predicted, target = pairs(PREDICTED, TARGET)
    fractions, mean, count = pck(predicted, target, VISIBLE, np.full((2, 2), 10))
    assert fractions.tolist() == [1, 0.5, -1, 1, 1]
    assert (mean, count) == (0.875, 4)
    fractions, mean, count = pck(predicted, target, VISIBLE, np.zeros((2, 2)))
    assert fractions.tolist() == [-1] * 5
    assert (mean, count) == (0, 0)


def test_auc_equals_the_published_number():
    target = np.array([[[10, 0], [10, 10], [0, -1], [30, 30], [0, 10]]])
    predicted = np.array([[[10, 4], [10, 18], [0, 0], [40, 40], [20, 10]]])
    assert auc(predicted, target, VISIBLE[:1], 20.0, steps=4) == 0.375


def test_epe_equals_the_published_number():
    target = np.array([[[10, 0], [10, 10], [-1, -1], [30, 30], [0, 10]]])
    predicted = np.array([[[10, 4], [10, 18], [0, 0], [40, 40], [20, 10]]])
    assert epe(predicted, target, VISIBLE[:1]) == pytest.approx(11.5355339, abs=SEVEN_DECIMALS)


# The same with loops


@hypothesis.given(st.integers(0, 10**6))
def test_accuracies_equal_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    n, k = rng.integers(0, 5), rng.integers(1, 6)
    target = rng.uniform(0, 100, (n, k, 2))
    predicted = target + rng.normal(0, 10, (n, k, 2))
    visible = rng.random((n, k)) < 0.6
    sizes = rng.uniform(5, 40, (n, 2))
    sizes[rng.random(n) < 0.2, 0] = 0
    errors = [
        [
            np.hypot(*((predicted[i, j] - target[i, j]) / sizes[i]))
            for i in range(n)
            if visible[i, j] and (sizes[i] > 0).all()
        ]
        for j in range(k)
    ]
    expected = [np.mean(np.array(column) < 0.5) if column else -1 for column in errors]
    fractions, mean, count = pck(predicted, target, visible, sizes)
    assert fractions.tolist() == pytest.approx(expected, abs=FLOAT64)
    assert count == sum(bool(column) for column in errors)
    assert mean == pytest.approx(np.mean([fraction for fraction in expected if fraction >= 0]) if count else 0)
    assert nme(predicted, target, visible, sizes) == pytest.approx(np.mean(np.concatenate(errors)) if count else 0)
    curve = [pck(predicted, target, visible, np.full((n, 2), 30.0), threshold=step / 20)[1] for step in range(20)]
    assert auc(predicted, target, visible, 30.0) == pytest.approx(sum(curve) / 20)
    assert epe(predicted, target, visible) == pytest.approx(nme(predicted, target, visible, np.ones((n, 2))))


def test_sizes_divide_x_and_y_separately():
    predicted, target, visible = np.array([[[3.0, 8.0]]]), np.zeros((1, 1, 2)), np.ones((1, 1), bool)
    assert nme(predicted, target, visible, np.array([[1.0, 2.0]])) == 5.0
    assert nme(predicted, target, visible, np.array([[2.0, 1.0]])) == pytest.approx(np.hypot(1.5, 8))
    assert pck(predicted, target, visible, np.array([[1.0, 2.0]]), threshold=5.0)[1] == 0.0
    assert pck(predicted, target, visible, np.array([[1.0, 2.0]]), threshold=5.01)[1] == 1.0


# PCKh


def original_pckh(predicted, target, visible, corners, threshold):
    """The sums of the official evaluation, in its order of axes and with its masked arrays."""
    seen = visible.T.astype(float)
    errors = np.linalg.norm(predicted.transpose(1, 2, 0) - target.transpose(1, 2, 0), axis=1)
    sizes = np.linalg.norm(corners.transpose(1, 2, 0)[1] - corners.transpose(1, 2, 0)[0], axis=0) * 0.6
    scaled = errors / (sizes * np.ones((16, 1))) * seen
    count = seen.sum(axis=1)
    fractions = np.ma.array(100 * ((scaled <= threshold) * seen).sum(axis=1) / count, mask=False)
    fractions.mask[6:8] = True
    weights = np.ma.array(count, mask=False)
    weights.mask[6:8] = True
    rows = {"head": 9, "shoulder": (13, 12), "elbow": (14, 11), "wrist": (15, 10), "hip": (3, 2), "knee": (4, 1)}
    groups = {name: float(np.mean(fractions[list(np.atleast_1d(index))])) for name, index in rows.items()}
    groups["ankle"] = float(0.5 * (fractions[5] + fractions[0]))
    return groups, float(np.sum(fractions * (weights / weights.sum())))


@hypothesis.given(st.integers(0, 10**6))
def test_pckh_equals_the_official_evaluation(seed):
    rng = np.random.default_rng(seed)
    n = 12
    target = rng.uniform(1, 600, (n, 16, 2))
    predicted = target + rng.normal(0, 12, (n, 16, 2)) * rng.uniform(0, 2, (16, 1))
    visible = rng.random((n, 16)) < 0.7
    visible[0] = True
    corners = np.sort(rng.uniform(0, 150, (n, 2, 2)), axis=1)
    result = pckh(predicted, target, visible, mpii_head_sizes(corners), thresholds=(0.5, 0.11, 0.1))
    groups, mean = original_pckh(predicted, target, visible, corners, 0.5)
    assert list(result) == [*groups, "PCKh@0.5", "PCKh@0.11", "PCKh@0.1"]
    assert {name: result[name] for name in groups} == pytest.approx(groups, abs=FLOAT64)
    assert result["PCKh@0.5"] == pytest.approx(mean, abs=FLOAT64)
    for threshold in (0.11, 0.1):
        expected = original_pckh(predicted, target, visible, corners, threshold)[1]
        assert result[f"PCKh@{threshold}"] == pytest.approx(expected, abs=FLOAT64)


def test_pckh_counts_labelled_keypoints_alone():
    target = np.random.default_rng(0).uniform(1, 600, (4, 16, 2))
    visible = np.ones((4, 16), bool)
    sizes = np.full(4, 30.0)
    assert set(pckh(target, target, visible, sizes).values()) == {100.0}
    # Pelvis and thorax do not count; the neck counts in the mean alone.
    moved = target.copy()
    moved[:, [MPII.keypoints.index("pelvis"), MPII.keypoints.index("thorax")]] += 1000
    assert set(pckh(moved, target, visible, sizes).values()) == {100.0}
    moved[:, MPII.keypoints.index("upper_neck")] += 1000
    result = pckh(moved, target, visible, sizes)
    assert result["PCKh@0.5"] == result["PCKh@0.1"] == pytest.approx(1300 / 14)
    assert {value for name, value in result.items() if "@" not in name} == {100.0}
    # The threshold itself is still correct.
    nudged = target + [15.0, 0.0]
    assert pckh(np.round(nudged), np.round(target), visible, sizes)["PCKh@0.5"] == 100.0
    # A keypoint without labels gives NaN.
    visible[:, MPII.keypoints.index("head_top")] = False
    result = pckh(target, target, visible, sizes)
    assert np.isnan(result["head"])
    assert result["PCKh@0.5"] == 100.0
    assert np.isnan(pckh(target, target, ~visible & False, sizes)["PCKh@0.5"])


def test_mpii_head_sizes_are_a_fraction_of_the_diagonal():
    assert mpii_head_sizes(np.array([[[10, 20], [40, 60]]])).tolist() == pytest.approx([30.0])
