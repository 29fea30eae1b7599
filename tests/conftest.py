"""Fixtures of all tests. Types and shapes are checked while the tests run (jaxtyping with beartype)."""

import gc
import os
import signal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two virtual devices; and programs that run once are compiled without the passes that make them fast.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

from jaxtyping import install_import_hook

gc.disable()  # tracing makes objects by the million that live on: looked at once, after some tests, see `_garbage`
TESTS_BETWEEN_COLLECTIONS = 20
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a job in a shell's background: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
HOOK = install_import_hook("implicitexp", "beartype.beartype")

import jax
import own_problems
import pytest

from implicitexp import device

TESTS_DONE = pytest.StashKey[int]()


@pytest.fixture(autouse=True, scope="session")
def _compilation_cache():
    """Programs that were compiled before are read from the user's cache folder."""
    with device.configured("cpu", "float32"):
        yield


@pytest.fixture(autouse=True)
def _garbage(request):
    """What is alive after TESTS_BETWEEN_COLLECTIONS tests, JAX's caches above all, is not looked at again."""
    yield
    done = request.session.stash.get(TESTS_DONE, 0) + 1
    request.session.stash[TESTS_DONE] = done
    if done % TESTS_BETWEEN_COLLECTIONS == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture
def float64():
    """The test runs in double precision."""
    with device.configured("cpu", "float64"):
        yield


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    """The test runs in both precisions; its value is the precision's name."""
    with device.configured("cpu", request.param):
        yield request.param


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with modules and configurations of a user's own."""
    folder = tmp_path_factory.mktemp("own")
    own_problems.written(folder)
    return folder


@pytest.fixture
def here(place, monkeypatch):
    """The same, as the folder in which the command is given."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    return place
