"""The continuous adjoints on a batch that is spread over two devices give the numbers of one device, half of them on each."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from continuous_cases import CLASSES, PID, name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

ROUNDING = 1e-12  # sums over the batch in another order


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_a_batch_on_two_devices(adjoint):
    """Starts and losses lane by lane, one set of parameters: its gradient is summed over the devices."""
    assert len(jax.devices()) == 2
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    w = jnp.array([[-0.2, 0.8], [-0.9, 0.1]])
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))

    def one(w, y0):
        term: Any = dfx.ODETerm(lambda t, y, w: jnp.tanh(w @ y))
        ts = jnp.array([0.4, 1.0, 2.0])
        ys = dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, 2.0, None, y0, w, saveat=dfx.SaveAt(ts=ts), stepsize_controller=PID, adjoint=adjoint
        ).ys
        return jnp.sum(jnp.sin(ys))

    gradient = jax.jit(jax.grad(lambda w, y0: jnp.sum(jax.vmap(one, (None, 0))(w, y0)), (0, 1)))
    alone = gradient(w, starts)
    spread = jax.device_put(starts, NamedSharding(mesh, PartitionSpec("batch")))
    shared = jax.device_put(w, NamedSharding(mesh, PartitionSpec()))
    together = gradient(shared, spread)
    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, expected, rtol=ROUNDING, atol=ROUNDING)
    assert [shard.data.shape for shard in together[1].addressable_shards] == [(3, 2), (3, 2)]
    program = gradient.lower(shared, spread).compile().as_text()
    assert "all-reduce" in program
    assert "f64[3,2]" in program
