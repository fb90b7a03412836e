"""Streams of the network on this machine, sent in real time by PyAV or by a socket."""

import contextlib
import fractions
import pathlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that nothing listens to."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Sender:
    """Sends frames at 25 a second, over and over, until it is stopped.

    Args:
        target: where PyAV writes them, as MPEG-TS: a URL, or the file of a socket.
        frames: RGB.

    Attributes:
        sent: the number of frames so far.
    """

    def __init__(self, target: Any, frames: list[np.ndarray]):
        self.sent, self._target, self._frames = 0, target, frames
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the stream."""
        self._stopping.set()
        self._thread.join(20)

    def _run(self) -> None:
        # Whoever receives may go away at any time.
        with (
            contextlib.suppress(av.error.FFmpegError, OSError),
            av.open(self._target, "w", format="mpegts") as container,
        ):
            stream = container.add_stream("libx264", rate=25, options={"g": "5", "bf": "0", "tune": "zerolatency"})
            stream.height, stream.width, stream.pix_fmt = *self._frames[0].shape[:2], "yuv420p"
            start = time.monotonic()
            while not self._stopping.wait(max(0.0, start + self.sent / 25 - time.monotonic())):
                frame = av.VideoFrame.from_ndarray(self._frames[self.sent % len(self._frames)], format="rgb24")
                frame.pts, frame.time_base = self.sent, fractions.Fraction(1, 25)
                for packet in stream.encode(frame):
                    container.mux(packet)
                self.sent += 1
        # PyAV leaves the file open.
        if isinstance(self._target, _FirstClient):
            self._target.close()


@contextlib.contextmanager
def sending(frames: list[np.ndarray]) -> Iterator[tuple[Sender, int]]:
    """A sender to the first client of a port, and the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        sender = Sender(_FirstClient(server), frames)
        with sender:
            yield sender, server.getsockname()[1]


class _FirstClient:
    """A file that is written to the first client of a server."""

    def __init__(self, server: socket.socket):
        self._server, self._client = server, None

    def write(self, content: bytes) -> int:
        if self._client is None:
            self._client, _ = self._server.accept()
        self._client.sendall(content)
        return len(content)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


@contextlib.contextmanager
def breaking(path: pathlib.Path) -> Iterator[int]:
    """The port of a server that sends a file to its first client, and then breaks the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            with contextlib.suppress(TimeoutError):
                client, _ = server.accept()
                client.sendall(path.read_bytes())
                time.sleep(1)
                # Without a farewell: what is closed like this is reset.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()

        thread = threading.Thread(target=serve, name="server", daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)
