"""Linear systems for the tests of linear solvers."""

import jax.numpy as jnp
import numpy as np

ROUND_OFF = 1e-12  # float64: some tens of operations on numbers of size one


def system(n, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, n)) + 2 * np.eye(n)), jnp.asarray(rng.normal(size=n))
