"""The two forms of sampling against each other; test_preprocess.py holds them against SciPy and OpenCV."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from vitpose_jax.pipeline import warp as module
from vitpose_jax.pipeline.packing import PackedImages, pack_images
from vitpose_jax.pipeline.preprocess import crop_regions
from vitpose_jax.pipeline.regions import boxes_to_regions

SIZE = (33, 25)


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1), border=st.sampled_from(module.BORDERS))
@settings(max_examples=10, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_both_forms_are_equal_in_every_bit(seed, border):
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(0, np.log([300, 1500]), (3, 2))).astype(int)
    images = [rng.integers(1, 256, (height, width, 3), np.uint8) for height, width in sides]
    images = pack_images(images)
    owner = rng.integers(0, 3, 5)
    # From far inside to far outside, rising as the columns of a crop do.
    scale = np.exp(rng.uniform(-1, 8, (5, 2)))
    begin = rng.uniform(-0.6, 0.6, (5, 2)) * scale + rng.uniform(0, 1, (5, 2)) * sides[owner][:, ::-1]
    # The middle of the first lies in its image.
    begin[0] = rng.uniform(0.4, 0.6, 2) * (sides[owner[0], ::-1] - 1) - scale[0] / 2
    x, y = (
        np.asarray(begin[:, axis, None] + np.linspace(0, 1, count) * scale[:, axis, None], np.float32)
        for axis, count in ((0, SIZE[1]), (1, SIZE[0]))
    )
    arguments = (jax.tree.map(jnp.asarray, images.select(owner)), jnp.asarray(x), jnp.asarray(y))
    points = np.stack(np.broadcast_arrays(x[:, None, :], y[:, :, None]), -1)
    expected = np.asarray(module.warp(arguments[0], jnp.asarray(points), border=border))
    assert expected[0].any()
    np.testing.assert_array_equal(module._selected(*arguments, border), expected)
    np.testing.assert_array_equal(module.warp_upright(*arguments, border=border), expected)


@pytest.mark.parametrize(("platform", "products"), [("cpu", 0), ("cuda", 0), ("tpu", 1)])
def test_each_platform_gets_its_form(platform, products):
    def crop(images, boxes):
        return crop_regions(images, boxes_to_regions(boxes), SIZE)

    shapes = (
        PackedImages(jax.ShapeDtypeStruct((4096, 3), jnp.uint8), jax.ShapeDtypeStruct((2, 3), jnp.int32)),
        jax.ShapeDtypeStruct((2, 4), jnp.float32),
    )
    lowered = jax.jit(crop).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert lowered.count("stablehlo.dot_general") == products


def test_no_regions_give_no_crops():
    images = pack_images([np.ones((4, 5, 3), np.uint8)]).select(slice(0))
    none = jnp.zeros((0, 3))
    for form in (module._selected, module.warp_upright):
        arguments = (jax.tree.map(jnp.asarray, images), none, none)
        result = form(*arguments, "scipy") if form is module._selected else form(*arguments)
        assert result.shape == (0, 3, 3, 3)
