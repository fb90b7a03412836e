"""Images in a flat pixel buffer come out as they went in."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitpose_jax.pipeline.packing import PIXEL_BUCKETS, pack_images, pixel_bucket, unpack_image

sides = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(shapes=st.lists(sides, min_size=1, max_size=5), padding=st.integers(0, 50))
def test_packed_images_unpack_to_themselves(shapes, padding):
    rng = np.random.default_rng(len(shapes))
    images = [rng.integers(1, 256, (*shape, 3), np.uint8) for shape in shapes]
    count = sum(height * width for height, width in shapes)
    packed = pack_images(images, count + padding)
    assert packed.pixels.shape == (count + padding, 3) and not packed.pixels[count:].any()
    for image, shape in zip(images, packed.shapes, strict=True):
        unpacked = np.asarray(unpack_image(jnp.asarray(packed.pixels), shape, (44, 42)))
        np.testing.assert_array_equal(unpacked[: image.shape[0], : image.shape[1]], image)
        assert unpacked.sum(dtype=int) == image.sum(dtype=int)


def test_select_repeats_shapes_and_shares_pixels():
    packed = pack_images([np.ones((2, 3, 3), np.uint8), np.ones((4, 1, 3), np.uint8)])
    crops = packed.select(np.asarray([1, 0, 1]))
    assert crops.pixels is packed.pixels
    np.testing.assert_array_equal(crops.shapes, [[6, 4, 1], [0, 2, 3], [6, 4, 1]])


def test_no_images_make_a_buffer_of_one_pixel():
    packed = pack_images([])
    assert packed.pixels.shape == (1, 3) and packed.shapes.shape == (0, 3)


def test_a_buffer_has_one_of_a_few_lengths():
    assert pixel_bucket(1) == pixel_bucket(512 * 512) == 512 * 512
    assert pixel_bucket(512 * 512 + 1) == 1024 * 1024
    with pytest.raises(ValueError, match=f"expected at most {PIXEL_BUCKETS[-1]} pixels"):
        pixel_bucket(PIXEL_BUCKETS[-1] + 1)
