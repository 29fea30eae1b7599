"""The device and the precision of a run, and the cache of compiled programs: the one place that touches `jax.config`."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from implicitexp.errors import ConfigError

MIN_COMPILE_SECONDS = 0.3  # programs that compile faster are not worth a file


def cache_folder() -> Path:
    """Where compiled programs are kept between runs: JAX_COMPILATION_CACHE_DIR, or the user's cache folder."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "implicitexp" / "jax"


@contextlib.contextmanager
def configured(device: str = "auto", precision: str = "float32") -> Iterator[Any]:
    """JAX set up for one run, and as it was afterwards. `device`: auto, cpu or gpu; `precision`: float32 or float64.

    **Raises** `ConfigError` where there is no such device.
    """
    chosen = find(device)
    settings = {
        "jax_enable_x64": precision == "float64",
        "jax_default_device": chosen,
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


def current() -> Any:
    """The device that computes now."""
    return jax.config.jax_default_device or jax.local_devices()[0]


def describe(device: Any) -> str:
    """A device in words, as `cpu`, or `gpu: NVIDIA H100`."""
    kind = device.device_kind
    return device.platform if kind == device.platform else f"{device.platform}: {kind}"
