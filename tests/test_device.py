"""The cache of compiled programs, and how compilation is measured without it."""

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from implicitexp import device


def test_what_is_compiled_uncached_is_neither_kept_nor_read(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(device, "MIN_COMPILE_SECONDS", 0.0)

    def kept_after(number):
        """The files in the cache once a program of that number has been compiled anew."""
        jax.jit(lambda x: jnp.sin(x) ** number).lower(1.0).compile()
        return {path.name for path in tmp_path.glob("*-cache")}

    with device.configured("cpu", "float32"):
        reset_cache()  # which may have looked at another folder
        before = kept_after(3)
        with device.uncached():
            assert kept_after(4) == before
        after = kept_after(5)
    reset_cache()
    assert len(before) == 1
    assert len(after) == 2
