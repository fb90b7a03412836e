import dataclasses
import json
import re

import pytest

from vitpose_jax.sides import flip_pairs_from_names
from vitpose_jax.skeletons import (
    APT36K,
    COCO,
    DATASETS,
    SKELETONS,
    WHOLEBODY,
    Skeleton,
    canonical_name,
    get_skeleton,
)

ALL = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS.keys())


def other_side(name: str) -> str:
    """The name of the mirror image, where names tell the side."""
    for left, right in (("left_", "right_"), ("L_", "R_")):
        if name.startswith(left):
            return right + name.removeprefix(left)
        if name.startswith(right):
            return left + name.removeprefix(right)
    return name


def components(skeleton: Skeleton) -> list[set[int]]:
    """Groups of keypoints that edges join, those without any edge left out."""
    groups = []
    for edge in skeleton.edges:
        touched = [group for group in groups if group & set(edge)]
        groups = [group for group in groups if not group & set(edge)] + [set(edge).union(*touched)]
    return groups


def test_skeletons_have_the_published_numbers_of_keypoints():
    counts = {name: skeleton.num_keypoints for name, skeleton in SKELETONS.items()}
    assert counts == {
        "coco": 17,
        "aic": 14,
        "mpii": 16,
        "ap10k": 17,
        "apt36k": 17,
        "wholebody": 133,
        "crowdpose": 14,
        "coco25": 25,
    }
    assert [skeleton.name for skeleton in DATASETS] == ["coco", "aic", "mpii", "ap10k", "apt36k", "wholebody"]


@ALL
def test_fields_are_consistent(skeleton):
    count = skeleton.num_keypoints
    assert len(set(skeleton.keypoints)) == count
    assert all(0 <= index < count for edge in skeleton.edges for index in edge)
    assert len({frozenset(edge) for edge in skeleton.edges}) == len(skeleton.edges), "an edge stands twice"
    assert all(len(set(edge)) == 2 for edge in skeleton.edges)
    assert len(skeleton.sigmas) in (0, count)
    assert all(0 < sigma < 0.2 for sigma in skeleton.sigmas)


@ALL
def test_flip_swaps_sides_and_is_its_own_inverse(skeleton):
    flipped = [skeleton.keypoints[index] for index in skeleton.flip_indices]
    assert [skeleton.flip_indices[index] for index in skeleton.flip_indices] == list(range(skeleton.num_keypoints))
    for name, mirrored in zip(skeleton.keypoints, flipped, strict=True):
        if not name.startswith("face-"):
            assert mirrored == other_side(name)


@ALL
def test_edges_and_sigmas_are_symmetric(skeleton):
    flip = skeleton.flip_indices
    edges = {frozenset(edge) for edge in skeleton.edges}
    assert {frozenset(flip[index] for index in edge) for edge in edges} == edges


@ALL
def test_edges_connect_the_whole_body(skeleton):
    groups = sorted(components(skeleton), key=len, reverse=True)
    if skeleton is WHOLEBODY:
        body, *hands = groups
        assert body == set(range(23))
        assert sorted(map(min, hands)) == [91, 112]
        assert [len(hand) for hand in hands] == [21, 21]
    else:
        assert groups == [set(range(skeleton.num_keypoints))]


def test_wholebody_face_is_mirrored_about_its_middle():
    # In the 68-point scheme the chin, the bridge of the nose and the middle of the lips lie on the axis.
    axis = {8, 27, 28, 29, 30, 33, 51, 57, 62, 66}
    fixed = {index - 23 for index in range(23, 91) if WHOLEBODY.flip_indices[index] == index}
    assert fixed == axis
    assert WHOLEBODY.flip_indices[23 + 36] == 23 + 45  # the outer corners of the eyes


@ALL
def test_to_dict_and_from_dict_are_inverse(skeleton):
    values = json.loads(json.dumps(skeleton.to_dict()))
    again = Skeleton.from_dict(values)
    assert again == skeleton
    assert hash(again) == hash(skeleton)


def test_from_dict_raises_for_wrong_fields():
    with pytest.raises(ValueError, match=r"expected the fields.*colour"):
        Skeleton.from_dict(COCO.to_dict() | {"colour": "red"})
    with pytest.raises(ValueError, match="expected the fields"):
        Skeleton.from_dict({"name": "x"})
    assert Skeleton.from_dict({"name": "x", "keypoints": ["a"]}) == Skeleton(name="x", keypoints=("a",))


@ALL
def test_upper_body_agrees_with_names_and_mirror_images(skeleton):
    """Mirror images are on one half, and names agree where they tell."""
    upper = {skeleton.keypoints[index] for index in skeleton.upper_body}
    assert 0 < len(upper) < skeleton.num_keypoints
    animal = skeleton.name in ("ap10k", "apt36k")
    for name in skeleton.keypoints:
        if re.search("eye|ear|nose|shoulder|elbow|neck|head", name, re.IGNORECASE):
            assert name in upper
        if re.search("hip|knee|ankle|heel|toe", name, re.IGNORECASE):
            assert name not in upper
        # In the original, an animal's left front paw is upper and its right one lower body.
        if not animal:
            assert (name in upper) == (other_side(name) in upper)
    # Checkpoints written before there were half bodies.
    values = skeleton.to_dict()
    assert values.pop("upper_body") == list(skeleton.upper_body)
    assert Skeleton.from_dict(values) == dataclasses.replace(skeleton, upper_body=())


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("COCO", "coco"),
        ("AP-10K", "ap10k"),
        ("apt_36k", "apt36k"),
        ("COCO-WholeBody", "wholebody"),
        ("coco 25", "coco25"),
    ],
)
def test_get_skeleton_ignores_case_and_hyphens(alias, name):
    assert get_skeleton(alias) is SKELETONS[name]


def test_an_unknown_skeleton_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no skeleton named 'halpe'; expected one of coco, aic"):
        get_skeleton("halpe")
    assert canonical_name("AP-10_k ") == "ap10k"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Has Spaces"}, "expected a name of lower-case"),
        ({"keypoints": (), "flip_pairs": (), "edges": (), "sigmas": ()}, "at least one keypoint"),
        ({"edges": ((0, 17),)}, r"edges holds \(0, 17\); expected two indices from 0 to 16"),
        ({"flip_pairs": ((-1, 2),)}, r"flip_pairs holds \(-1, 2\)"),
        ({"flip_pairs": ((1, 2), (2, 3))}, "more than one flip pair"),
        ({"flip_pairs": ((1, 1),)}, "more than one flip pair"),
        ({"sigmas": (0.1,)}, "expected 17 sigmas, got 1"),
        ({"upper_body": (0, 17)}, r"upper_body: expected distinct indices from 0 to 16, got \(0, 17\)"),
        ({"upper_body": (3, 3)}, "upper_body: expected distinct indices"),
    ],
)
def test_inconsistent_fields_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(COCO, **changes)


def test_flip_pairs_follow_from_left_and_right_in_names():
    assert flip_pairs_from_names(COCO.keypoints) == COCO.flip_pairs
    assert flip_pairs_from_names(APT36K.keypoints) == APT36K.flip_pairs
    names = ("R_Hip", "Nose", "L_Hip", "left ear", "leftover", "l-knee", "r-knee", "right_toe")
    assert flip_pairs_from_names(names) == ((2, 0), (5, 6))
