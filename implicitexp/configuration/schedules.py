"""What the YAML of optimizers and schedules derives from other values, as `${implicitexp.peak:${hints.learning_rate}}`."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

PEAKS = ("peak_value", "init_value", "value")  # the arguments of Optax's schedules that are their largest value


def peak(rate: Any) -> Any:
    """The largest value of a learning rate: a number's own, or what the node of a schedule names."""
    if not isinstance(rate, Mapping):
        return rate
    return next((rate[name] for name in PEAKS if name in rate), None)


def scaled(factor: float, rate: Any) -> Any:
    """A learning rate times a factor, the schedule's shape kept."""
    if not isinstance(rate, Mapping):
        return None if rate is None else float(factor) * rate
    return {name: float(factor) * rate[name] if name in (*PEAKS, "end_value") else rate[name] for name in rate}


def share(fraction: float, count: int) -> int:
    """That part of a number of updates, at least one."""
    return max(1, round(float(fraction) * int(count)))


def register() -> None:
    """Make them known to OmegaConf."""
    for function in (peak, scaled, share):
        OmegaConf.register_new_resolver(f"implicitexp.{function.__name__}", function, replace=True)
