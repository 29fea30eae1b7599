"""What the keys of the configuration may be: types and ranges, for every class that comes with the package."""

import math
from dataclasses import dataclass
from typing import Any

from implicitexp.configuration.words import shown, suggestion
from implicitexp.errors import ConfigError

BITS = 2**31 - 1  # the largest number of updates; not worth a word in a message
NUMBER, WHOLE, TEXT, FLAG, NODE = "a number", "a whole number", "a text", "true or false", "a node with a _target_"


@dataclass(frozen=True)
class Rule:
    """What one key may be. `above` is exclusive, `least` and `largest` are inclusive."""

    types: tuple[str, ...] = ()
    above: int | float | None = None
    least: int | float | None = None
    largest: int | float | None = None
    choices: tuple[Any, ...] = ()
    null: bool = False

    @property
    def mixed(self) -> bool:
        """Whether it takes one of its choices or a value of its types, `auto` or a number."""
        return bool(self.choices and self.types)

    def check(self, key: str, value: Any) -> Any:
        """The value, an integer as a float where a number is asked for. **Raises** `ConfigError` that says what is."""
        if value is None and self.null:
            return None
        if self.choices and not (self.types and self._fits(value)):
            return self._choice(key, value)
        if isinstance(value, dict) and NODE in self.types and "_target_" in value:
            return value
        if not self._fits(value):
            raise ConfigError(f"{key}={shown(value)}: must be {self.words()}.")
        return float(value) if NUMBER in self.types and isinstance(value, int) else value

    def _choice(self, key: str, value: Any) -> Any:
        if value not in self.choices or isinstance(value, bool):
            valid = [str(x) for x in self.choices] + ["null"] * self.null + ([self.words()] if self.types else [])
            raise ConfigError(f"{key}={shown(value)}: there is no such choice{suggestion(str(value), valid)}.")
        return value

    def _fits(self, value: Any) -> bool:
        if isinstance(value, bool):
            return FLAG in self.types
        if isinstance(value, str):
            return TEXT in self.types
        if isinstance(value, int) and not {NUMBER, WHOLE} & set(self.types):
            return False
        if isinstance(value, float) and NUMBER not in self.types:
            return False
        return isinstance(value, int | float) and self._within(value)

    def _within(self, value: int | float) -> bool:
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.largest is None or value <= self.largest)
        )

    def words(self) -> str:
        """`a number above 0, or null`."""
        parts = [f"above {self.above:g}" if self.above is not None else "",
                 f"{self.least:g} or more" if self.least is not None else "",
                 f"{self.largest:g} or less" if self.largest is not None and self.largest < BITS else ""]  # fmt: skip
        limits = " and ".join(part for part in parts if part)
        types = [f"{name} {limits}" if limits and name in (NUMBER, WHOLE) else name for name in self.types]
        return " or ".join(types) + (", or null" if self.null else "")


POSITIVE = Rule((NUMBER,), above=0)
POSITIVE_OR_NULL = Rule((NUMBER,), above=0, null=True)
COUNT = Rule((WHOLE,), least=1)
COUNT_OR_NULL = Rule((WHOLE,), least=1, null=True)
DECAY = Rule((NUMBER,), least=0, largest=1)
YES_OR_NO = Rule((FLAG,))
A_NODE = Rule((NODE,), null=True)
A_TEXT = Rule((TEXT,), null=True)
RATE = Rule((NUMBER, NODE), above=0)
CONVERGENCE = Rule(choices=("stop", "keep"))
LINEAR_SOLVER = Rule(choices=("auto", "lu", "qr", "cg", "gmres", "bicgstab", "normal_cg"))

TOP = {
    "task": Rule(choices=("train", "compare")),
    "seed": Rule((WHOLE,), least=0, largest=2**32 - 1),
    "steps": Rule((WHOLE,), least=0, largest=BITS),
    "precision": Rule(choices=("float32", "float64")),
    "sort_by": Rule(choices=("gradient_error", "loss", "gradient_ms", "seconds", "job")),
    "check_every": COUNT_OR_NULL,
    "log_every": COUNT_OR_NULL,
    "clip_norm": POSITIVE_OR_NULL,
    "target_loss": Rule((NUMBER,), null=True),
    "patience": COUNT_OR_NULL,
    "reference.target": POSITIVE,
    "reference.max_seconds": POSITIVE,
    "device.kind": Rule(choices=("auto", "cpu", "gpu", "mesh")),
    "tracker.uri": A_TEXT,
    "tracker.experiment": A_TEXT,
}
SOLVER = {
    "rtol": POSITIVE_OR_NULL, "atol": POSITIVE_OR_NULL, "dt0": POSITIVE_OR_NULL, "max_steps": COUNT,
    "when_not_converged": CONVERGENCE, "history": COUNT, "damping": Rule((NUMBER,), above=0, largest=1),
    "extrapolate": YES_OR_NO, "root": A_NODE, "fixed_point": A_NODE, "ode": A_NODE, "integral": A_NODE,
    "method": Rule(choices=("euler", "midpoint", "heun", "dopri5", "tsit5", "dopri8")), "nodes": COUNT, "panels": COUNT,
}  # fmt: skip
GRADIENT = {
    "checkpoints": COUNT_OR_NULL, "last": COUNT_OR_NULL, "directions": COUNT_OR_NULL, "linear_solver": LINEAR_SOLVER,
    "rtol": POSITIVE_OR_NULL, "atol": POSITIVE_OR_NULL, "max_steps": COUNT_OR_NULL, "step": POSITIVE_OR_NULL,
    "factor": POSITIVE, "method": Rule(choices=("gauss", "backsolve")),
    "preconditioner": Rule(choices=("last", "start", "identity")), "key": A_NODE,
    "store": Rule((WHOLE,), least=1, choices=("auto", "steps", "stages")),
    "coupling": Rule((NUMBER,), above=0, largest=1, null=True),
    "terms": COUNT, "steps": COUNT, "damping": Rule((NUMBER,), above=0, largest=1), "refine": Rule((WHOLE,), least=0),
    "root": Rule((NODE,)), "fixed_point": Rule((NODE,)), "ode": Rule((NODE,)), "integral": Rule((NODE,)),
}  # fmt: skip
OPTIMIZER = {
    "learning_rate": RATE, "b1": DECAY, "b2": DECAY, "eps": Rule((NUMBER,), least=0), "nesterov": YES_OR_NO,
    "eps_root": Rule((NUMBER,), least=0), "weight_decay": Rule((NUMBER, NODE), least=0), "mu_dtype": A_TEXT,
    "decay": DECAY, "initial_scale": Rule((NUMBER,), least=0), "eps_in_sqrt": YES_OR_NO, "centered": YES_OR_NO,
    "bias_correction": YES_OR_NO, "mask": A_NODE,
    "momentum": Rule((NUMBER,), least=0, largest=1, null=True), "accumulator_dtype": A_TEXT, "memory_size": COUNT,
    "scale_init_precond": YES_OR_NO, "linesearch": A_NODE,
}  # fmt: skip
MUON = OPTIMIZER | {
    "ns_coeffs": Rule(choices=("muon", "dion")),
    "ns_steps": COUNT, "beta": DECAY, "adaptive": YES_OR_NO, "weight_decay_mask": A_NODE, "adam_b1": DECAY, "adam_b2": DECAY,
    "preconditioning": Rule(choices=("frobenius", "spectral", "aol", "schatten")),
    "adam_eps_root": Rule((NUMBER,), least=0), "adam_weight_decay": Rule((NUMBER, NODE), least=0),
    "adam_learning_rate": Rule((NUMBER, NODE), above=0, null=True), "muon_weight_dimension_numbers": A_NODE,
    "consistent_rms": POSITIVE_OR_NULL,
}  # fmt: skip
NOT_NEGATIVE = Rule((NUMBER,), least=0)
SCHEDULE = {
    "value": POSITIVE, "init_value": NOT_NEGATIVE, "peak_value": POSITIVE, "end_value": Rule((NUMBER,), least=0, null=True),
    "decay_steps": COUNT, "warmup_steps": Rule((WHOLE,), least=0), "transition_steps": COUNT, "alpha": DECAY,
    "exponent": POSITIVE, "decay_rate": POSITIVE, "transition_begin": Rule((WHOLE,), least=0), "staircase": YES_OR_NO,
}  # fmt: skip
LINE_SEARCH = {
    "max_linesearch_steps": COUNT, "max_learning_rate": POSITIVE_OR_NULL, "tol": Rule((NUMBER,), least=0),
    "increase_factor": Rule((NUMBER,), above=1), "slope_rtol": POSITIVE, "curv_rtol": POSITIVE,
    "approx_dec_rtol": POSITIVE_OR_NULL, "stepsize_precision": POSITIVE,
    "initial_guess_strategy": Rule(choices=("one", "keep")),
}  # fmt: skip

# The rules of a class hold for nothing but that class: somebody's own may have other ideas of `rtol`.
OF_TARGET = {
    "implicitexp.solvers.": SOLVER,
    "implicitexp.strategies.": GRADIENT,
    **{f"optax.{name}": OPTIMIZER for name in ("adam", "adamw", "sgd", "lbfgs", "rmsprop", "lion", "nadam")},
    "optax.contrib.muon": MUON,
    **{
        f"optax.{name}": SCHEDULE
        for name in (
            "constant_schedule",
            "cosine_decay_schedule",
            "exponential_decay",
            "linear_schedule",
            "warmup_cosine_decay_schedule",
        )
    },
    "optax.scale_by_zoom_linesearch": LINE_SEARCH,
    "hydra_plugins.implicitexp_local.LocalLauncher": {"n_jobs": COUNT_OR_NULL},
}
OF_ONE = {
    "implicitexp.strategies.Truncated": {"last": COUNT},
    "implicitexp.strategies.Reversible": {"checkpoints": Rule((WHOLE,), least=2)},
    "implicitexp.solvers.Auto": {"max_steps": COUNT_OR_NULL},  # null: each solver's own
    "optax.lbfgs": {"learning_rate": Rule((NUMBER, NODE), above=0, null=True)},
    **{f"implicitexp.solvers.{name}": {"dt0": POSITIVE} for name in ("Euler", "FixedStep", "Leapfrog")},
    "implicitexp.solvers.GaussKronrod": {"order": Rule(choices=(15, 21, 31, 41, 51, 61))},  # nodes that Quadax has
    "implicitexp.solvers.ClenshawCurtis": {"order": Rule(choices=(8, 16, 32, 64, 128))},
    "implicitexp.solvers.TanhSinh": {"order": Rule(choices=(41, 61, 81, 101))},
}


def of(target: str) -> dict[str, Rule]:
    """The rules for the keys of a node with this `_target_`; those of a package hold in its modules too."""
    packages = [rules for name, rules in OF_TARGET.items() if name.endswith(".") and target.startswith(name)]
    return (OF_TARGET.get(target) or next(iter(packages), {})) | OF_ONE.get(target, {})
