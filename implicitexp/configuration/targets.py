"""Whether a `_target_` can be imported, found out without importing it: importing may take seconds, as JAX does."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec

from implicitexp.configuration.words import nearest

DYNAMIC = ("globals(", "sys.modules", "setattr(", "exec(", "attach_stub")  # names cannot be read off such a source


def why_not(target: str) -> str | None:
    """Why `module.Name` cannot be imported, in words; None where nothing speaks against it."""
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return "it must be written module.Name"
    module, rest = parts[0], parts[1:]
    spec = _find(module, None)
    if spec is None and module not in sys.modules:
        return f"there is no module {module!r} in the current folder, on PYTHONPATH or among the installed packages"
    while rest and spec is not None:
        inner = _find(f"{module}.{rest[0]}", spec.submodule_search_locations)
        if inner is None:
            break
        module, spec, rest = f"{module}.{rest[0]}", inner, rest[1:]
    if not rest:
        return f"{target} is a module; name a class in it"
    return _why_no_name(module, spec, rest[0])


def _find(module: str, path: object) -> ModuleSpec | None:
    """The module's place. `importlib.util.find_spec` would import the packages around it."""
    if "." not in module:
        try:
            return importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
    if path is None:
        return None
    found = (finder.find_spec(module, list(path)) for finder in sys.meta_path)  # type: ignore[call-overload]
    return next((spec for spec in found if spec is not None), None)


def _why_no_name(module: str, spec: ModuleSpec | None, name: str) -> str | None:
    if module in sys.modules and name in vars(sys.modules[module]):
        return None
    if spec is None or not (spec.origin or "").endswith(".py"):
        return None if spec is not None else f"module {module} has no {name!r}"
    try:
        with open(spec.origin or "", encoding="utf-8") as file:
            source = file.read()
        names = set(_names(ast.parse(source, spec.origin or "").body))
    except SyntaxError as error:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    except (OSError, ValueError) as error:
        return f"{spec.origin} cannot be read: {error}"
    if name in names or "*" in names or any(word in source for word in DYNAMIC):
        return None
    if "__getattr__" in names and re.search(rf"\b{name}\b", source):  # a table of names that are imported late
        return None
    near = nearest(name, names).removeprefix("; ")
    return f"module {module} ({spec.origin}) has no {name!r}{near and f' ({near})'}"


def _names(statements: list[ast.stmt]) -> Iterator[str]:
    """What a module's statements define at its top level."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
        else:
            yield from (x.id for x in ast.walk(statement) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store))
            for field in ("body", "orelse", "finalbody"):
                yield from _names(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from _names(handler.body)
