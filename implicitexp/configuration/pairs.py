"""Solver and strategy fit the kinds of equation that the problem solves, where its YAML says which these are."""

from collections.abc import Callable
from typing import Any

from implicitexp.configuration.words import KIND_WORDS
from implicitexp.errors import ConfigError

Config = dict[str, Any]
Kinds = Callable[[], dict[str, str | None]]

ITERATED = ("root", "fixed_point")  # the kinds for which `unroll` knows a last iteration


def check(
    config: Config, hints: Config, solver_kinds: Kinds, strategy_kinds: dict[str, list[str]], names: dict[str, Any]
) -> None:
    """**Raises** `ConfigError` that names those that would work. `names`: the option that was chosen of each group."""
    kinds = hints.get("kinds")
    if not kinds:
        return
    chosen = {group: names.get(group) or config[group]["_target_"].rpartition(".")[2] for group in
              ("problem", "solver", "gradient")}  # fmt: skip
    _check_solver(kinds, hints.get("solver_kind"), solver_kinds, chosen)
    if config["task"] != "compare":  # which says itself what is not defined
        _check_strategy(kinds, strategy_kinds, chosen)
    _check_last(kinds, config["gradient"])


def _check_solver(kinds: list[str], wanted: str | None, solver_kinds: Kinds, chosen: dict[str, str]) -> None:
    if wanted is None or wanted in kinds:
        return
    fit = [name for name, of in solver_kinds().items() if of is None or of in kinds]
    raise ConfigError(
        f"solver={chosen['solver']} is for {KIND_WORDS[wanted]}, but problem={chosen['problem']} solves {_words(kinds)}; "
        f"use one of the solvers for that: {', '.join(sorted(fit)) or 'auto'}."
    )


def _check_strategy(kinds: list[str], strategy_kinds: dict[str, list[str]], chosen: dict[str, str]) -> None:
    defined = strategy_kinds.get(chosen["gradient"], list(KIND_WORDS))
    if set(kinds) <= set(defined):
        return
    fit = [name for name, of in strategy_kinds.items() if set(kinds) <= set(of)]
    raise ConfigError(
        f"gradient={chosen['gradient']} is for {_words(defined)}, but problem={chosen['problem']} solves {_words(kinds)}; "
        f"use one of the strategies for that: {', '.join(sorted(fit))}."
    )


def _check_last(kinds: list[str], gradient: Config) -> None:
    last, wrong = gradient.get("last"), [k for k in kinds if k not in ITERATED]
    if gradient["_target_"] == "implicitexp.strategies.Unroll" and last is not None and wrong:
        raise ConfigError(
            f"gradient.last={last}: unroll knows a last iteration of a root and of a fixed point, not of "
            f"{KIND_WORDS[wrong[0]]}; use gradient.last=null, or gradient=adjoint."
        )


def _words(kinds: list[str]) -> str:
    return " and ".join(KIND_WORDS[k] for k in kinds)
