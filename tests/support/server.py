"""`vitpose-jax web` in a process of its own."""

import contextlib
import pathlib
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from tests.support import programs


def start(log: pathlib.Path, *options: object, **variables: str) -> tuple[subprocess.Popen, str]:
    """`vitpose-jax web` in a process of its own, and its address once it is up."""
    arguments = programs.command("command_line", "web", "--port", "0", "--max-upload", "3", *map(str, options))
    with open(log, "w") as output:
        server = subprocess.Popen(arguments, stdout=output, stderr=output, env=programs.environment(**variables))
    while "Ctrl-C ends it" not in log.read_text():
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    url = re.search(r"http://localhost:\d+", log.read_text())[0].replace("localhost", "127.0.0.1")
    _wait_until_up(url)
    return server, url


@contextlib.contextmanager
def running(log: pathlib.Path, *options: object) -> Iterator[str]:
    """The address of `vitpose-jax web`, which is told to stop at the end."""
    server, url = start(log, *options)
    yield url
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) in (0, 143, -signal.SIGTERM), log.read_text()
    assert "Traceback" not in log.read_text()


def _wait_until_up(url):
    for _ in range(300):
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(f"{url}/v1/health", timeout=30).close()
            return
        time.sleep(0.1)
