"""SLEAP's analysis files."""

import numpy as np
import pytest
import tables
from hypothesis import given
from hypothesis import strategies as st

from vitpose_jax import Poses
from vitpose_jax.interop.deeplabcut import Tracks, to_tracks
from vitpose_jax.interop.sleap import to_arrays, write_sleap
from vitpose_jax.skeletons import AP10K, COCO


def poses(count: int, seed: int = 0) -> Poses:
    rng = np.random.default_rng(seed)
    return Poses.create(
        rng.uniform(0, 99, (count, 17, 2)), rng.uniform(0.1, 1, (count, 17)), np.full((count, 4), 9.0), COCO
    )


def test_a_file_holds_the_tracks_in_sleaps_layout(tmp_path):
    frames = [poses(2, 0), poses(0), poses(1, 1)]
    write_sleap(tmp_path / "analysis.h5", frames, frames=[0, 1, 4], skeleton=COCO)
    with tables.open_file(str(tmp_path / "analysis.h5")) as file:
        read = {node.name: node.read() for node in file.root}
    assert read["tracks"].shape == (2, 2, 17, 5)
    np.testing.assert_array_equal(read["tracks"][0, :, :, 4].T, frames[2].keypoints[0])
    np.testing.assert_array_equal(read["tracks"][1, :, :, 0].T, frames[0].keypoints[1])
    assert read["track_occupancy"].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0], [1, 0]]
    assert np.isnan(read["tracks"][:, :, :, 1:4]).all() and np.isnan(read["instance_scores"][1, 4])
    np.testing.assert_array_equal(read["point_scores"][0, :, 4], frames[2].scores[0])
    np.testing.assert_array_equal(read["instance_scores"][0, 4], frames[2].scores[0].astype(np.float64).mean())
    assert [name.decode() for name in read["node_names"]] == list(COCO.keypoints)
    assert [name.decode() for name in read["track_names"]] == ["person1", "person2"]
    assert read["edge_inds"].tolist() == [list(edge) for edge in COCO.edges]
    assert read["edge_names"][0].tolist() == [COCO.keypoints[index].encode() for index in COCO.edges[0]]
    assert list(tmp_path.iterdir()) == [tmp_path / "analysis.h5"]


@given(
    frames=st.lists(st.integers(0, 20), unique=True, max_size=5),
    individuals=st.integers(0, 3),
    keypoints=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_every_frame_stands_in_the_row_of_its_number(frames, individuals, keypoints, seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(len(frames), individuals, keypoints, 2)).astype(np.float32)
    scores = rng.uniform(size=points.shape[:3]).astype(np.float32)
    names = tuple(f"a{index}" for index in range(individuals))
    arrays = to_arrays(Tracks(tuple(frames), names, tuple(map(str, range(keypoints))), points, scores))
    rows = max(frames, default=-1) + 1
    assert arrays["tracks"].shape == (individuals, 2, keypoints, rows)
    for row, frame in enumerate(frames):
        np.testing.assert_array_equal(arrays["tracks"][..., frame].transpose(0, 2, 1), points[row])
        np.testing.assert_array_equal(arrays["point_scores"][..., frame], scores[row])
    assert arrays["track_occupancy"].sum() == len(frames) * individuals


def test_no_frames_make_an_empty_file(tmp_path):
    write_sleap(tmp_path / "empty.h5", [])
    assert (tmp_path / "empty.h5").is_file()


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.h5"):
        write_sleap(tmp_path / "analysis.csv", [poses(1)])
    for frames in (["a.png"], [-1]):
        with pytest.raises(ValueError, match="frames: expected distinct numbers from 0 up"):
            write_sleap(tmp_path / "analysis.h5", [poses(1)], frames=frames)
    with pytest.raises(ValueError, match="expected numbers without large gaps, got 5000 for 1 frames"):
        to_arrays(to_tracks([poses(1)], frames=[5000]))
    with pytest.raises(ValueError, match="skeleton: expected one with the keypoints of the tracks, got 'ap10k'"):
        to_arrays(to_tracks([poses(1)]), AP10K)
    assert not list(tmp_path.iterdir())
