"""The server is told to stop while a video is being tracked and a page is open."""

import json
import pathlib
import signal
import threading
import time
import urllib.request

import pytest

from tests.support.server import start
from tests.support.videos import rectangles, write_video

# Frames: about a minute of work.
LONG = 1500
# Seconds: a frame, the end of the video file, and the end of the process, on a busy machine. A server that does not end
# the video waits 20 seconds for it, and then for its thread.
SOON = 10


def upload(url: str, path: pathlib.Path) -> str:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
    body = head + path.read_bytes() + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/gradio_api/upload", body, headers), timeout=30
    ) as answer:
        return json.load(answer)[0]


def track(url: str, path: pathlib.Path) -> str:
    """Begin to track a video; the address of its result."""
    video = {"path": upload(url, path), "meta": {"_type": "gradio.FileData"}}
    data = {"data": [video, "vitpose-small-open", "coco", False, 0.3, False, 5]}
    request = urllib.request.Request(
        f"{url}/gradio_api/call/track", json.dumps(data).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return f"{url}/gradio_api/call/track/{json.load(answer)['event_id']}"


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_running_video_does_not_delay_the_end(tmp_path, ending, status):
    frames = [image[:, :96] for image in rectangles(10, (64, 96))]
    path = write_video(tmp_path / "long.mp4", [frames[number % 10] for number in range(LONG)])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server, url = start(tmp_path / "log.txt", TMPDIR=str(temporary))
    try:
        said = []

        def listen(address: str) -> None:
            with urllib.request.urlopen(address, timeout=120) as answer:
                said.append(answer.read().decode())

        page = threading.Thread(target=listen, args=(f"{url}/gradio_api/heartbeat/someone",))
        result = threading.Thread(target=listen, args=(track(url, path),))
        page.start()
        result.start()
        until = time.monotonic() + 60
        while not list(temporary.glob("vitpose-jax-*/*/poses.jsonl")):
            assert time.monotonic() < until
            time.sleep(0.1)
        start_of_end = time.monotonic()
        server.send_signal(ending)
        assert server.wait(60) == status, (tmp_path / "log.txt").read_text()
        seconds = time.monotonic() - start_of_end
        result.join(10)
        page.join(10)
    finally:
        server.kill()
        server.wait()
    log = (tmp_path / "log.txt").read_text()
    assert seconds < SOON, log
    assert any("the server is shutting down" in text for text in said), said
    assert not list(temporary.glob("vitpose-jax-*"))
    assert "Traceback" not in log and "Cancel" not in log, log
