"""The device and the precision of a run, and the cache of compiled programs: the one place that touches `jax.config`.

`mesh` is all devices together, of all hosts where the environment says that there are several: JAX_COORDINATOR_ADDRESS
(host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import AxisType, Mesh
from jaxtyping import PyTree

from implicitexp.configuration.hosts import COORDINATOR, PROCESS, PROCESSES, several
from implicitexp.errors import ConfigError

MIN_COMPILE_SECONDS = 0.3  # programs that compile faster are not worth a file


def cache_folder() -> Path:
    """Where compiled programs are kept between runs: JAX_COMPILATION_CACHE_DIR, or the user's cache folder."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "implicitexp" / "jax"


@contextlib.contextmanager
def configured(device: str = "auto", precision: str = "float32") -> Iterator[Any]:
    """JAX set up for one run, and as it was afterwards. `device`: auto, cpu, gpu or mesh; `precision`: float32 or
    float64. Yields the device, or the mesh.

    **Raises** `ConfigError` where there is no such device.
    """
    chosen = mesh() if device == "mesh" else find(device)
    settings = {
        "jax_enable_x64": precision == "float64",
        "jax_default_device": None if device == "mesh" else chosen,
        "jax_compilation_cache_dir": str(cache_folder()),
        "jax_persistent_cache_min_compile_time_secs": MIN_COMPILE_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield chosen
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """What is compiled here is compiled, and neither read from the cache nor kept: to measure how long it takes."""
    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # it looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        reset_cache()


def find(device: str) -> Any:
    """The first device of this kind."""
    if device == "auto":
        return jax.local_devices()[0]
    try:
        return jax.local_devices(backend=device)[0]
    except RuntimeError as error:
        present = sorted({d.platform for d in jax.local_devices()} | {"cpu"})
        raise ConfigError(
            f"device={device} is not available: JAX sees {', '.join(present)} here. Use device=auto, or install JAX for "
            f"that device (for an NVIDIA GPU: pip install 'jax[cuda13]')."
        ) from error


def mesh() -> Mesh:
    """All devices in a row, its axis the minibatch's first one."""
    connect()
    return jax.make_mesh((len(jax.devices()),), ("batch",), axis_types=(AxisType.Auto,))


def connect() -> None:
    """Join the other hosts, where the environment names any. Before anything is computed.

    **Raises** `ConfigError` where it names the coordinator but not which of how many processes this is.
    """
    if not several() or jax.distributed.is_initialized():
        return
    try:
        count, own = int(os.environ[PROCESSES]), int(os.environ[PROCESS])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"device=mesh: {COORDINATOR} is set, so {PROCESSES} and {PROCESS} must be whole numbers: how many processes "
            f"there are, and which of them, from 0, this one is."
        ) from error
    jax.distributed.initialize(os.environ[COORDINATOR], count, own)


def local(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """What is whole on every device of the mesh, as arrays of this process's own default device."""
    return tree if mesh is None else jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)


def current() -> Any:
    """The device that computes now."""
    return jax.config.jax_default_device or jax.local_devices()[0]


def describe(device: Any) -> str:
    """A device in words, as `cpu`, or `gpu: NVIDIA H100`; a mesh as `mesh of 2: cpu`."""
    if isinstance(device, Mesh):
        return f"mesh of {device.size}: {describe(device.devices.flat[0])}"
    kind = device.device_kind
    return device.platform if kind == device.platform else f"{device.platform}: {kind}"
