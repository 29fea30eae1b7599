"""A batch of solves shared among two devices: the gradient of one device, half of the lanes on each."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import diffrax as dfx, jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from implicitexp.adjoints import Replay, Reversible

jax.config.update("jax_enable_x64", True)
mesh = jax.make_mesh((2,), ("lanes",), axis_types=(AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*names)) for names in (("lanes",), ()))


def loss(rate, starts, adjoint):
    def one(y0):
        sol = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, rate: -rate * y**2), dfx.Tsit5(), 0.0, 1.0, None, y0, rate, max_steps=100,
            stepsize_controller=dfx.PIDController(rtol=1e-8, atol=1e-8), adjoint=adjoint,
        )
        return sol.ys[-1]
    return jnp.sum(jax.vmap(one)(starts))


rate, starts = jnp.array(0.7), jnp.linspace(0.5, 2.0, 6)
for adjoint in (Replay(), Reversible()):
    gradient = jax.grad(lambda rate, starts: loss(rate, starts, adjoint), argnums=(0, 1))
    shared = jax.jit(gradient, in_shardings=(whole, split), out_shardings=(whole, split))
    of_rate, of_starts = shared(rate, jax.device_put(starts, split))
    assert [shard.data.shape for shard in of_starts.addressable_shards] == [(3,), (3,)]
    scale = 1 + rate * starts  # y(1) = y0 / (1 + rate y0)
    assert abs(of_rate + jnp.sum(starts**2 / scale**2)) < 1e-4, of_rate
    assert jnp.allclose(of_starts, 1 / scale**2, atol=1e-4), of_starts
    alone = jax.jit(gradient)(rate, starts)
    assert all(jnp.allclose(x, y, rtol=1e-12) for x, y in zip((of_rate, of_starts), alone))
print("devices", len(jax.devices()))
"""


@pytest.mark.slow
def test_a_batch_on_two_devices():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "devices 2"
