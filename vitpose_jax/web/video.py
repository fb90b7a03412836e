"""Videos on the page: people are tracked, and the drawn video and the JSON lines come back."""

import shutil
from collections.abc import Callable

from vitpose_jax.video.reader import import_av
from vitpose_jax.video.run import track_file
from vitpose_jax.web.batcher import BusyError
from vitpose_jax.web.files import result_folder
from vitpose_jax.web.limits import MAX_PIXELS
from vitpose_jax.web.models import Models

# Frames of a video: one visitor must not keep the server busy for hours.
MAX_FRAMES = 1800
# Of FFmpeg's formats, those that hold a whole video. Others are lists of files, which a visitor must not make a server
# read.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,ogg"


def create_video_tracker(models: Models, *, max_frames: int = MAX_FRAMES) -> Callable[..., tuple[str, str]]:
    """What `create_page` takes as `track_video`.

    Args:
        models: what computes. Once it is told to stop, a video ends after its frame, and its files are deleted.
        max_frames: of a video; a longer one is refused before anything is computed.

    Raises:
        ImportError: without PyAV.
    """
    import_av()

    def check_stopping() -> None:
        if models.stopping.is_set():
            raise BusyError("the server is shutting down")

    def track_video(
        path: str,
        *,
        model: str | None,
        dataset: str | None,
        flip_test: bool,
        threshold: float,
        smooth: bool,
        every: int,
    ) -> tuple[str, str]:
        """The paths of the drawn video and of its JSON lines."""
        estimator = models.choose(model).batcher.estimator
        check_stopping()
        check_video(path)
        folder = result_folder()
        video, lines = folder / "poses.mp4", folder / "poses.jsonl"
        try:
            # As a function: an estimator would be hashed for the settings, which the page does not need.
            track_file(
                lambda: estimator,
                path,
                output=video,
                json=lines,
                drawing={"threshold": threshold},
                dataset=dataset,
                flip_test=flip_test,
                smooth=smooth,
                every=every,
                max_frames=max_frames,
                max_pixels=MAX_PIXELS,
                progress=True,
                before_frame=check_stopping,
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return str(video), str(lines)

    return track_video


def check_video(path: str) -> None:
    """Check a file of a stranger before it is read as a video.

    Args:
        path: of the file.

    Raises:
        ValueError: if it is no video, or is a list of other files.
    """
    av = import_av()
    try:
        av.open(path, options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}).close()
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: expected a video file, as MP4, WebM or AVI ({error.strerror})") from None
