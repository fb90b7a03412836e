"""Files that reading could wait for, colours of 16 bits, and large images on the device."""

import os
import struct
import zlib

import numpy as np
import pytest

from tests.support.models import smallest_model
from vitpose_jax import PoseEstimator
from vitpose_jax.images import decoded_bytes, load_image, read_size


def png_16(values: np.ndarray) -> bytes:
    """A PNG file of 16-bit colours, which Pillow does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [load_image, read_size])
def test_what_is_no_file_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match=r"pipe\.jpg: expected an image file, got a pipe or a device"):
        read(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="expected an image file, got a folder"):
        read(tmp_path)
    (tmp_path / "dead.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match=r"dead\.jpg: no such file \(a broken link\)"):
        read(tmp_path / "dead.jpg")
    with pytest.raises(ValueError, match="expected a path, got one with a null character"):
        read("a\0.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path / "dead.jpg", "a\0.jpg"):
        assert decoded_bytes(path) == 0


def test_colours_of_eight_bits_in_sixteen_are_warned_of(tmp_path, caplog):
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
    (tmp_path / "dark.png").write_bytes(png_16(colours))
    assert not load_image(tmp_path / "dark.png").any()
    assert "dark.png: its colours have 16 bits, and all are below 256 of 65535: this image is black" in caplog.text
    caplog.clear()
    (tmp_path / "full.png").write_bytes(png_16(colours * 257))
    np.testing.assert_array_equal(load_image(tmp_path / "full.png"), colours)
    assert not caplog.text


def test_a_large_image_is_on_the_device_alone(monkeypatch):
    """While it is computed no other image waits, and its pixels are kept only there."""
    estimator = PoseEstimator(smallest_model())
    image, boxes = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8), [[2, 2, 30, 40]]
    expected = estimator(image, boxes)
    for module in ("batching", "flow"):
        monkeypatch.setattr(f"vitpose_jax.serving.{module}.SHARED_PIXELS", 100)
    begun = []
    start = estimator._start

    def watched(items, options):
        begun.append(items)
        for job in start(items, options):
            assert all(item.finished for group in begun[:-1] for item in group)
            assert all(item.pixels == 0 for group in begun for item in group)
            yield job

    monkeypatch.setattr(estimator, "_start", watched)
    results = list(estimator.stream((image, boxes) for _ in range(6)))
    assert len(results) == len(begun) == 6
    for poses in results:
        np.testing.assert_array_equal(poses.keypoints, expected.keypoints)
