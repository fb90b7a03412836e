import pathlib
import subprocess
import sys

from tests.support.videos import rectangles, write_video
from vitpose_jax.video import VideoReader

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


def test_all_stages_see_the_same_frames(tmp_path):
    path = write_video(tmp_path / "in.mp4", rectangles(6))
    # In a process of its own: a script there has the name of a package.
    code = (
        f"import sys; from video import first_frames; print(first_frames({str(path)!r}, int(sys.argv[1]), sys.argv[2]))"
    )
    for count, expected in ((6, path), (4, tmp_path / "clip.mp4")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(count), str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=BENCHMARKS,
        )
        assert done.stdout.strip() == str(expected)
        with VideoReader(expected) as reader:
            assert len(list(reader)) == count
