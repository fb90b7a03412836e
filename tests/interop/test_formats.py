"""Files of other tools: what is written is read back the same."""

import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas
import pytest
from PIL import Image

from tests.tolerances import FLOAT32, SIX_DECIMALS
from vitpose_jax import Poses
from vitpose_jax.datasets import read_dataset
from vitpose_jax.interop.deeplabcut import HDF_KEY, Tracks, read_deeplabcut, to_csv, to_tracks, write_deeplabcut
from vitpose_jax.interop.yolo import data_yaml, to_yolo, write_yolo
from vitpose_jax.skeletons import AP10K, COCO


def sample(n: int, skeleton=COCO, seed: int = 0) -> Poses:
    rng = np.random.default_rng(seed)
    k = skeleton.num_keypoints
    boxes = np.concatenate([rng.uniform(0, 40, (n, 2)), rng.uniform(10, 50, (n, 2))], axis=1)
    return Poses.create(rng.uniform(1, 90, (n, k, 2)), rng.uniform(0.1, 1, (n, k)), boxes, skeleton)


# DeepLabCut


@hypothesis.given(
    people=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    named=st.booleans(),
    numbers=st.lists(st.floats(width=32, allow_nan=True), min_size=51, max_size=51),
)
def test_deeplabcut_csv_there_and_back(tmp_path_factory, people, named, numbers):
    poses = [sample(count, seed=number) for number, count in enumerate(people)]
    if people[0]:
        points = np.asarray(numbers, np.float32)
        keypoints, scores = poses[0].keypoints.copy(), poses[0].scores.copy()
        keypoints[0], scores[0] = points[:34].reshape(17, 2), points[34:]
        poses[0] = Poses.create(keypoints, scores, poses[0].boxes, COCO)
    frames = [f"images/{number}, a.png" for number in range(len(poses))] if named else None
    tracks = to_tracks(poses, frames=frames)
    path = tmp_path_factory.mktemp("tracks") / "poses.csv"
    write_deeplabcut(path, poses, frames=frames)
    read = read_deeplabcut(path)
    assert read[:3] == tracks[:3]
    assert read.scorer == tracks.scorer
    np.testing.assert_array_equal(read.keypoints, tracks.keypoints)
    np.testing.assert_array_equal(read.likelihoods, tracks.likelihoods)


def test_deeplabcut_layouts_are_the_documented_ones():
    one = to_csv(to_tracks([sample(1), sample(0)])).splitlines()
    assert [line.split(",")[:4] for line in one[:3]] == [
        ["scorer", *["vitpose-jax"] * 3],
        ["bodyparts", *["nose"] * 3],
        ["coords", "x", "y", "likelihood"],
    ]
    assert [line.split(",")[0] for line in one[3:]] == ["0", "1"]
    assert set(one[4].split(",")[1:]) == {""}
    two = to_csv(to_tracks([sample(2, AP10K)], individuals=["cat", "dog"], scorer="me")).splitlines()
    assert [line.split(",")[0] for line in two[:4]] == ["scorer", "individuals", "bodyparts", "coords"]
    assert two[1].split(",")[1:] == ["cat"] * 51 + ["dog"] * 51
    assert two[2].split(",")[1:4] == ["L_Eye"] * 3


def test_deeplabcut_tables_are_those_of_pandas(tmp_path):
    """As DeepLabCut and movement read them: by pandas, with the header in the first three or four rows."""
    for count, header in ((1, [0, 1, 2]), (2, [0, 1, 2, 3])):
        poses = [sample(count, seed=seed) for seed in range(3)]
        write_deeplabcut(tmp_path / "poses.csv", poses)
        table = pandas.read_csv(tmp_path / "poses.csv", header=header, index_col=0)
        assert table.index.tolist() == [0, 1, 2]
        noses = table.xs("nose", axis=1, level="bodyparts").to_numpy().reshape(3, count, 3)
        for number, row in enumerate(poses):
            np.testing.assert_allclose(noses[number, :, :2], row["nose"], rtol=FLOAT32)


def test_deeplabcut_hdf_holds_the_same_table(tmp_path):
    poses = [sample(2, seed=seed) for seed in range(3)]
    write_deeplabcut(tmp_path / "poses.csv", poses)
    write_deeplabcut(tmp_path / "poses.h5", poses)
    table = pandas.read_hdf(tmp_path / "poses.h5", key=HDF_KEY)
    text = pandas.read_csv(tmp_path / "poses.csv", header=[0, 1, 2, 3], index_col=0)
    assert list(table.columns) == list(text.columns) and list(table.columns.names) == list(text.columns.names)
    np.testing.assert_allclose(table.to_numpy(), text.to_numpy(), rtol=FLOAT32)


def test_what_deeplabcut_cannot_hold_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="one skeleton in a file of DeepLabCut, got coco, ap10k"):
        to_tracks([sample(1), sample(1, AP10K)])
    with pytest.raises(ValueError, match="individuals: expected 2 names for image 1, got 1"):
        to_tracks([sample(1), sample(2)], individuals=["a"])
    with pytest.raises(ValueError, match="frames: expected one for each of 1 images, got 2"):
        to_tracks([sample(1)], frames=[1, 2])
    with pytest.raises(ValueError, match="individuals: expected distinct names, got a, a"):
        write_deeplabcut(tmp_path / "a.csv", [sample(2)], individuals=["a", "a"])
    with pytest.raises(ValueError, match=r"expected a name that ends in \.csv or \.h5"):
        write_deeplabcut(tmp_path / "a.txt", [sample(2)])
    monkeypatch.setitem(__import__("sys").modules, "tables", None)
    with pytest.raises(ImportError, match=r'HDF5 needs .*: pip install "vitpose-jax\[pandas\]"'):
        write_deeplabcut(tmp_path / "a.h5", [sample(2)])
    assert isinstance(to_tracks([]), Tracks) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected DeepLabCut's rows scorer, bodyparts, coords"),
        ("a,b\n1,2\n", "expected DeepLabCut's rows scorer"),
        ("scorer,s\nbodyparts,nose\ncoords,x\n", "expected the columns x, y, likelihood"),
        ("scorer,s,s,s\nbodyparts,n,n,n\ncoords,x,y,likelihood\n0,1,2\n", ":4: expected 4 cells, got 3"),
        ("scorer,s,s,s\nbodyparts,n,n,n\ncoords,x,y,likelihood\n0,1,2,z\n", ":4: expected numbers"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_deeplabcut(tmp_path / "a.csv")


# YOLO


def yolo_folder(folder: pathlib.Path, poses: list[Poses], skeleton=COCO, size=(80, 100)) -> pathlib.Path:
    images = folder / "images" / "val"
    images.mkdir(parents=True)
    for number, row in enumerate(poses):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(images / f"{number}.png")
        write_yolo(folder / "labels" / "val" / f"{number}.txt", row, size)
    (folder / "data.yaml").write_text(data_yaml(skeleton, train="images/val"))
    return images


@hypothesis.given(
    people=st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any),
    seed=st.integers(0, 1000),
)
def test_yolo_there_and_back(tmp_path_factory, people, seed):
    folder = tmp_path_factory.mktemp("yolo")
    poses = [sample(count, seed=seed + number) for number, count in enumerate(people)]
    images = yolo_folder(folder, poses)
    dataset = read_dataset("coco", folder / "data.yaml", images)
    samples = {read.path.stem: read for read in dataset.samples}
    assert dataset.num_images == len(people)
    for number, row in enumerate(poses):
        if not len(row):
            assert str(number) not in samples
            continue
        read = samples[str(number)].people
        inside = ((row.keypoints >= 0) & (row.keypoints <= (100, 80))).all(axis=-1)
        assert len(read) == inside.any(axis=1).sum()
        read_points, points = read.keypoints[read.visible > 0], row.keypoints[inside]
        np.testing.assert_allclose(read_points, points, rtol=FLOAT32, atol=SIX_DECIMALS)
        np.testing.assert_array_equal(read.visible > 0, inside)
        assert samples[str(number)].size == (100, 80)


def test_yolo_text():
    keypoints = np.full((1, 17, 2), 20.0)
    keypoints[0, 1], keypoints[0, 2] = (200, 20), np.nan
    scores = np.full((1, 17), 0.9)
    scores[0, 3] = 0.1
    poses = Poses.create(keypoints, scores, [[10, 20, 50, 40]], COCO)
    words = to_yolo(poses, (80, 100), threshold=0.5, class_id=3).split()
    assert words[:5] == ["3", "0.350000", "0.500000", "0.500000", "0.500000"]
    assert words[5:17] == ["0.200000", "0.250000", "2", *["0"] * 9]
    assert len(words) == 5 + 3 * 17
    assert to_yolo(poses[:0], (80, 100)) == ""
    with pytest.raises(ValueError, match="image_size: expected height and width above 0"):
        to_yolo(poses, (0, 100))


def test_yolo_labels_that_are_none_are_refused(tmp_path):
    images = yolo_folder(tmp_path, [sample(1)])
    yaml, labels = tmp_path / "data.yaml", tmp_path / "labels" / "val" / "0.txt"
    with pytest.raises(ValueError, match=r"data\.yaml: expected 14 keypoints, as the skeleton has, got kpt_shape 17"):
        read_dataset("crowdpose", yaml, images)
    for line, message in (
        ("0 0.5 0.5 0.1", r"0\.txt:1: expected class, .* 56 in all, got 4"),
        ("person " + "0.5 " * 55, "expected class"),
        ("0 " + "50 " * 55, "expected fractions of the image"),
    ):
        labels.write_text(line)
        with pytest.raises(ValueError, match=message):
            read_dataset("coco", yaml, images)
    labels.unlink()
    with pytest.raises(ValueError, match=r"expected the labels of .*images/val in .*labels/val, got none"):
        read_dataset("coco", yaml, images)
    for text, message in (
        ("a: [", "expected YAML"),
        ("names: [a]", r"kpt_shape: \[K, 3\]"),
        ("kpt_shape: [17, 4]", "or"),
    ):
        yaml.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_dataset("coco", yaml, images)


def test_yolo_without_visibility(tmp_path):
    images = yolo_folder(tmp_path, [sample(1)])
    (tmp_path / "data.yaml").write_text("kpt_shape: [17, 2]\n")
    words = ["0", "0.5", "0.5", "0.5", "0.5", "0.25", "0.5", *["0"] * 32]
    (tmp_path / "labels" / "val" / "0.txt").write_text(" ".join(words))
    (read,) = read_dataset("coco", tmp_path / "data.yaml", images).samples
    assert read.people.visible[0].tolist() == [2, *[0] * 16]
    assert read.people.keypoints[0, 0].tolist() == [25, 40]
