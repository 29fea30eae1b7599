"""Problems as a user writes them, in a folder of their own: right, wrong, and failing. `written` puts them there."""

import textwrap
from pathlib import Path

MODULE = '''
import os
import signal
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import implicitexp


class Kepler(implicitexp.AbstractProblem):
    """E - e sin E = M: the eccentricity e that puts the eccentric anomaly E at `target`."""
    mean_anomaly: float = 1.0  # rad
    target: float = 1.5        # rad

    def init(self, key):
        return jnp.array(0.1)

    def loss(self, params, batch, solve):
        kepler = implicitexp.Root(lambda E, e: E - e * jnp.sin(E) - self.mean_anomaly, self.mean_anomaly)
        return (solve(kepler, params).value - self.target) ** 2


class Vector(Kepler):
    def loss(self, params, batch, solve):
        return jnp.ones(3) * params


class Nothing(Kepler):
    def loss(self, params, batch, solve):
        return None


class NotANumber(Kepler):
    def loss(self, params, batch, solve):
        return jnp.log(-params)


class Words(Kepler):
    def init(self, key):
        return {"e": "a tenth"}


class Whole(Kepler):
    def init(self, key):
        return jnp.array(1)


class Infinite(Kepler):
    def init(self, key):
        return jnp.array(jnp.inf)


class Metrics(Kepler):
    def loss(self, params, batch, solve):
        return params**2, {"all": jnp.ones(3)}


class Steep(Kepler):
    def loss(self, params, batch, solve):
        return jnp.sqrt(params - self.init(None))


class Picky(Kepler):
    def __check_init__(self):
        raise ValueError("target must be above 2")


class Abstract(implicitexp.AbstractProblem):
    def init(self, key):
        return jnp.array(0.1)


class Buggy(Kepler):
    def loss(self, params, batch, solve):
        return undefined_name


class Shot(Kepler):
    """Its process is killed in the midst of a run, at the first attempt."""
    def evaluate(self, params, solve):
        marker = Path(os.environ["OWN_MARKER"])
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


class Doomed(Kepler):
    """Its process is killed in the midst of a run, at every attempt."""
    def evaluate(self, params, solve):
        os.kill(os.getpid(), signal.SIGKILL)


class Cliff(Kepler):
    """y^2 + p = 0 has a root for p <= 0 only, and descent pushes p up: the run fails after some updates."""
    def init(self, key):
        return jnp.array(-0.2)

    def loss(self, params, batch, solve):
        return -params + 0 * solve(implicitexp.Root(lambda y, p: y**2 + p, 1.0), params).value
'''
BROKEN_MODULE = "import implicitexp\nraise RuntimeError('no licence')\nKepler = None\n"
CLASSES = ("Kepler", "Vector", "Nothing", "NotANumber", "Words", "Whole", "Infinite", "Metrics", "Steep", "Picky",
           "Abstract", "Buggy", "Shot", "Doomed", "Cliff")  # fmt: skip
HINTED = "# @package _global_\nproblem:\n  _target_: own.Kepler\n  target: {target}\nhints: {hints}\n"
YAML = {
    "tab": "_target_: own.Kepler\nmean_anomaly: [1\ntarget: 2\n",
    "list": "- 1\n- 2\n",
    "mandatory": "_target_: own.Kepler\nmean_anomaly: ???\n",
    "classless": "mean_anomaly: 2\n",
    "dangling": "_target_: own.Kepler\ntarget: ${foo.bar}\n",
    "toplevel": "# @package _global_\nstepss: 4\nproblem:\n  _target_: own.Kepler\n",
    "badhints": HINTED.format(target=1.5, hints="{kinds: [rot]}"),
    "hints_number": HINTED.format(target=1.5, hints="5"),
    "hints_kinds": HINTED.format(target=1.5, hints="{kinds: root}"),
    "hints_choices": HINTED.format(target=1.5, hints="{choices: 5}"),
    "hints_range": HINTED.format(target=1.5, hints="{range: {target: 3}}"),
    "hints_positive": HINTED.format(target="far", hints="{positive: [target]}"),
    "misfit": "_target_: own.Kepler\ntargett: 2.0\n",
    "misspelt": "_target_: own.Keppler\n",
    "nomodule": "_target_: my_modul.Kepler\n",
    "broken": "_target_: own_broken.Kepler\n",
    "syntax": "_target_: own_syntax.Kepler\n",
}


def written(folder: Path) -> Path:
    """Modules and a folder `conf` in `folder` -> that of the configurations."""
    problems = folder / "conf" / "problem"
    problems.mkdir(parents=True)
    (folder / "own.py").write_text(textwrap.dedent(MODULE))
    (folder / "own_broken.py").write_text(BROKEN_MODULE)
    (folder / "own_syntax.py").write_text("def f(:\n")
    for name in CLASSES:
        (problems / f"{name.lower()}.yaml").write_text(f"# {name}, of the tests\n_target_: own.{name}\n")
    (problems / "kepler.yaml").write_text(
        "# Kepler of my own\n_target_: own.Kepler\nmean_anomaly: 1.0  # rad\ntarget: 1.5  # rad\n"
    )
    for name, text in YAML.items():
        (problems / f"{name}.yaml").write_text(text)
    (problems / "latin.yaml").write_bytes(b"# caf\xe9\n_target_: own.Kepler\n")
    return folder / "conf"
