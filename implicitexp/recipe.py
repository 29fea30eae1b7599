"""An optimizer as data: what to call, with which numbers.

Optax hides numbers in closures. A recipe keeps them as leaves of a pytree until the optimizer is built, inside the
compiled function: so the same compiled program serves other learning rates.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx

from implicitexp.errors import ConfigError


class Recipe(eqx.Module):
    """`target(*positional, **named)`, not yet called; arguments may be recipes themselves (a schedule)."""

    target: Callable[..., Any] = eqx.field(static=True)
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = eqx.field(default_factory=dict)
    partial: bool = eqx.field(static=True, default=False)

    def build(self) -> Any:
        """Call it."""
        positional = [_built(x) for x in self.positional]
        named = {name: _built(x) for name, x in self.named.items()}
        return (
            functools.partial(self.target, *positional, **named) if self.partial else self.target(*positional, **named)
        )


def _built(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.build()
    if isinstance(value, list | tuple):
        return type(value)(_built(x) for x in value)
    if isinstance(value, dict):
        return {key: _built(x) for key, x in value.items()}
    return value


def from_node(node: Any, key: str = "optimizer") -> Any:
    """A configuration node as a recipe: every dictionary with a `_target_` becomes one.

    **Raises** `ConfigError` where a target does not import, or does not take these arguments.
    """
    if isinstance(node, list):
        return [from_node(x, f"{key}[{i}]") for i, x in enumerate(node)]
    if not isinstance(node, dict):
        return node
    parts = {name: from_node(x, f"{key}.{name}") for name, x in node.items()}
    if "_target_" not in parts:
        return parts
    target = imported(parts.pop("_target_"), key)
    partial, positional = parts.pop("_partial_", False), tuple(parts.pop("_args_", ()))
    parts.pop("_convert_", None)
    _check_arguments(target, positional, parts, partial, key)
    return Recipe(target, positional, parts, partial)


def imported(path: str, key: str) -> Callable[..., Any]:
    """The object that a `_target_` names."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}._target_={path} cannot be imported: {error}. Give module.name of a callable."
        ) from error


def _check_arguments(target: Any, positional: tuple[Any, ...], named: dict[str, Any], partial: bool, key: str) -> None:
    try:
        signature = inspect.signature(target)
        (signature.bind_partial if partial else signature.bind)(*positional, **named)
    except TypeError as error:
        known = ", ".join(inspect.signature(target).parameters)
        raise ConfigError(f"{key}: {name_of(target)} does not fit: {error}. It takes {known}.") from error


def name_of(target: Any) -> str:
    """`module.name` of a callable, of the function inside where Optax has bound some arguments."""
    inner = getattr(target, "func", target)
    return f"{inner.__module__}.{inner.__name__}"
