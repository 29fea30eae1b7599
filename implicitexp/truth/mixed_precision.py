"""A repair of JAX 0.12, without which `jax.enable_x64` is wrong in a process that has computed in float32.

JAX remembers for each numpy array that it has met as a constant what it became, by the array's identity and not by the
precision: a table of float64 nodes that float32 code has used comes back as float32 inside `enable_x64` (Quadax's
Gauss-Kronrod weights, or any numpy array that a loss closes over), or fails to compile. Here numpy arrays are converted
anew at each use. `tests/test_mixed_precision.py` fails once JAX no longer needs or no longer knows this.
"""

import contextlib
from typing import Any

import numpy as np


def _converted(x: np.ndarray) -> Any:
    """The array in the precision of the moment, as a constant of its own: a copy, since numpy arrays are mutable."""
    return TypedNdArray(np.array(x, dtype=dtypes.canonicalize_dtype(x.dtype)))


with contextlib.suppress(ImportError):  # private names: a JAX without them has another way to remember
    from jax._src import dtypes
    from jax._src.literals import TypedNdArray

    dtypes.register_canonicalize_value_handler(np.ndarray, _converted)
