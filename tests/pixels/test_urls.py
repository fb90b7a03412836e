"""Images by URL, from a server of this machine."""

import http.server
import io
import pathlib
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from tests.support.images import random_image
from vitpose_jax.bulk import find_images
from vitpose_jax.images import decoded_bytes, load_image, own
from vitpose_jax.pixels import urls
from vitpose_jax.pixels.urls import RemoteImage, fetch
from vitpose_jax.serving.flow import entry_bytes, read_ahead

RGB = random_image(1, 12, 9)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path, and counts."""

    counts: dict[str, int]

    def do_GET(self):
        self.counts[self.path] = self.counts.get(self.path, 0) + 1
        name = self.path.partition("?")[0]
        if name == "/image.png":
            self.answer(200, png(), {"Content-Type": "image/png"})
        elif name == "/page":
            self.answer(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"})
        elif name == "/moved":
            self.answer(302, b"", {"Location": "/image.png"})
        elif name == "/file":
            self.answer(302, b"", {"Location": "file:///etc/passwd"})
        elif name == "/ftp":
            self.answer(302, b"", {"Location": "ftp://localhost/image.png"})
        elif name == "/loop":
            self.answer(302, b"", {"Location": "/loop?" + str(self.counts[self.path])})
        elif name == "/large":
            self.answer(200, bytes(3000), {})
        elif name == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(bytes(1000))
        elif name == "/cut":
            self.answer(200, png()[:20], {"Content-Length": "2000"})
        elif name == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.answer(404, b"nothing here", {})

    def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):  # the client may close first
        pass


@pytest.fixture(scope="module")
def server():
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(autouse=True)
def counts(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Handler.counts = {}
    return Handler.counts


def test_a_url_loads(server):
    for name in ("image.png", "moved", "image.png?size=large"):
        np.testing.assert_array_equal(load_image(f"{server}/{name}"), RGB)
    np.testing.assert_array_equal(load_image(f"{server.replace('http', 'HTTP')}/image.png"), RGB)


def test_a_stream_downloads_once_and_counts_its_bytes(server, counts):
    entry = own((f"{server}/image.png", None))
    assert decoded_bytes(entry[0]) == RGB.nbytes
    sizes = []

    def size(entry):
        sizes.append(entry_bytes(entry))
        return sizes[-1]

    entries = [own(f"{server}/image.png?{number}") for number in range(5)]
    for image in read_ahead(load_image, entries, 3, size=size):
        np.testing.assert_array_equal(image, RGB)
    assert sizes == [RGB.nbytes] * 5
    assert set(counts.values()) == {1} and len(counts) == 6


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere.png", ConnectionError, "the server answers 404 Not Found"),
        ("page", ValueError, "expected an image, got a web page; give the address of the image itself"),
        ("file", ValueError, "redirect.* to .*file:///etc/passwd"),
        ("ftp", ValueError, "redirect to http or https, got one to ftp://localhost"),
        ("loop", ValueError, "its redirects are not followed"),
        ("cut", ConnectionError, r"download failed \(the connection ended after 20 of 2000 bytes\)"),
    ],
)
def test_what_a_server_does_wrong_is_one_line(server, name, error, message):
    with pytest.raises(error, match=message) as caught:
        load_image(f"{server}/{name}")
    assert str(caught.value).startswith(f"{server}/{name}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["large", "endless"])
def test_the_size_is_bounded(server, name):
    with pytest.raises(ValueError, match=r"expected at most .* MiB, got a larger file; download it to a file first"):
        fetch(f"{server}/{name}", max_bytes=2000)


@pytest.mark.parametrize("seconds", [{"max_seconds": 0.5}, {"max_seconds": 3.0, "silent_seconds": 0.02}])
def test_the_time_is_bounded(server, seconds):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"/slow: (not downloaded within 0\.5 seconds|.*timed out|.*too long)"):
        fetch(f"{server}/slow", **seconds)
    assert time.monotonic() - start < 3


def test_without_a_network_the_error_says_so(monkeypatch):
    def offline(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    with pytest.raises(ConnectionError, match=r"example\.invalid/a\.png: cannot be reached .* this machine is online"):
        load_image("http://example.invalid/a.png")
    assert decoded_bytes("http://example.invalid/a.png") == 0
    with pytest.raises(ConnectionError, match="cannot be reached"):
        load_image("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize("url", ["http:///a.png", "http://[::1/a.png", "https://exa mple/a.png", "http://a\nb/c.png"])
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises((ConnectionError, ValueError), match="http"):
        load_image(url)


def test_only_a_string_is_a_url(server, counts, tmp_path):
    """A path from a file of boxes or annotations is a `pathlib.Path`: it is never downloaded."""
    url = f"{server}/image.png"
    for path in (pathlib.Path(url), tmp_path / url, str(pathlib.Path(url))):
        with pytest.raises(FileNotFoundError):
            load_image(path)
    with pytest.raises(ValueError, match="expected files, folders or patterns, got a URL; download it to a file first"):
        find_images([url])
    assert counts == {}


def test_an_error_is_kept(monkeypatch):
    calls = []

    def fail(url):
        calls.append(url)
        raise ConnectionError(f"{url}: no")

    monkeypatch.setattr(urls, "fetch", fail)
    image = RemoteImage("http://a/b.png")
    assert decoded_bytes(image) == 0
    with pytest.raises(ConnectionError, match=r"b\.png: no"):
        load_image(image)
    assert len(calls) == 1
