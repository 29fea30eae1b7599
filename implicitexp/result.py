"""What a run hands back and writes down: the content of `result.json`, and what MLflow is told of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import equinox as eqx
from jaxtyping import PyTree

from implicitexp import notebook, record, solvers, tracing
from implicitexp.notation import format_error, with_own_rows

if TYPE_CHECKING:
    from pathlib import Path

    from implicitexp.record import Folder
    from implicitexp.training import Settings, Training


@dataclass(frozen=True)
class RunResult:
    """A run: the content of its `result.json` (also as attributes: `result.loss["last"]`), its parameters as a pytree,
    its logged lines, its folder, and the exit status of the command."""

    content: dict[str, Any]
    params: PyTree
    history: list[dict[str, Any]]
    folder: "Path"
    exit_status: int

    def __getattr__(self, name: str) -> Any:
        content = self.__dict__.get("content", {})
        if name in content:
            return content[name]
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(f"a result has no {name!r}; it has {', '.join(content)}.")

    def _repr_html_(self) -> str:
        title = f"{self.content['problem']}: {self.content['status']}, in {self.folder}"
        if "strategies" in self.content:
            rows = [
                (row["gradient"]["name"], _error(row["gradient_check"]), _milliseconds(row["cost"]))
                for row in with_own_rows(self.content["strategies"])
            ]
            head = ("gradient", "relative error", "time of a gradient")
            return notebook.table(title, rows, head) + notebook.image(self.folder / "compare.png")
        loss, checks = self.content["loss"], self.content["gradient_check"]
        rows = [("loss", f"{loss['first']:.4g} → {loss['last']:.4g}")] if loss["first"] is not None else []
        rows += [(f"gradient error, {when}", _error(check)) for when, check in checks.items()]
        rows += [(name, f"{value:.4g}") for name, value in self.content["metrics"].items()]
        return notebook.table(title, rows) + notebook.image(self.folder / "run.png")


def _error(check: dict[str, Any] | None) -> str:
    return format_error(check["relative_error"], check["uncertainty"]) if check else "-"


def _milliseconds(cost: dict[str, Any] | None) -> str:
    return f"{cost['gradient_ms']:.2g} ms" if cost else "-"


def header(settings: "Settings", status: str, steps: int, error: dict[str, Any] | None) -> dict[str, Any]:
    """What a training and a comparison have in common."""
    config = settings.config
    return {
        "schema": record.SCHEMA,
        "status": status,
        "error": error,
        "problem": settings.problem,
        "seed": settings.seed,
        "precision": settings.precision,
        "device": settings.device_name(),
        "steps": steps,
        "config_hash": record.config_hash(config),
        "git_commit": record.git_commit(),
        "versions": record.versions(),
        "gradient": {"name": settings.gradient, "options": options(config.get("gradient"))},
    }


def options(node: Any) -> dict[str, Any]:
    """A node's own options, without what Hydra adds."""
    return {key: value for key, value in (node or {}).items() if not key.startswith("_")}


def of_training(training: "Training", status: str) -> dict[str, Any]:
    """DESIGN's schema 1."""
    first, last = training.checks[:1], training.checks[-1:]
    parameters = record.flat_or_file(training.params, "params.npz")
    return header(training.settings, status, training.step, training.fault) | {
        "solver": solvers_used(training.experiment, training.params, training.key),
        "loss": {"first": _of(first, lambda c: c.loss), "last": _of(last, lambda c: c.loss)},
        "metrics": training.evaluation,
        "params": parameters,
        "gradient_check": {
            "first": _of(first, lambda c: c.check.as_dict()),
            "last": _of(last, lambda c: c.check.as_dict()),
        },
        "reference": _of(first, lambda c: c.reference.as_dict()),
        "cost": training.cost.as_dict() if training.cost else None,
    }


def solvers_used(experiment: Any, params: PyTree, key: Any) -> dict[str, Any]:
    """Kind of equation -> the solver that this problem uses for it, and its options."""
    batch = eqx.filter_eval_shape(experiment.problem.batch, key)
    used = tracing.uses(experiment.problem, params, batch)
    return {u.kind: record.described(solvers.for_kind(u.pinned or experiment.solver, u.kind)) for u in used}


def last_metrics(content: dict[str, Any]) -> dict[str, float]:
    """What MLflow shows in a column beside the curves: the cost, and the error at the first parameters."""
    cost, first = content["cost"] or {}, content["gradient_check"]["first"] or {}
    metrics = {f"cost/{name}": value for name, value in cost.items()}
    metrics["grad/first_relative_error"] = first.get("relative_error")
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _of(checks: list[Any], what: Any) -> Any:
    return what(checks[0]) if checks else None


def begin(
    settings: "Settings",
    tracker: Any,
    parent: Any = None,
    name: str | None = None,
    config: dict[str, Any] | None = None,
) -> Any:
    """Open the run in the tracker: flat configuration, versions, commit, hash and device."""
    config = settings.config if config is None else config
    tags = {
        "config_hash": record.config_hash(config),
        "git_commit": record.git_commit() or "",
        "device": settings.device_name(),
        "folder": str(settings.folder),
        "task": settings.task,
        **{f"version.{package}": version for package, version in record.versions().items()},
    }
    name = name or f"{settings.problem} {settings.gradient} seed {settings.seed}"
    return tracker.start(settings.problem, name, flat(config), tags, parent)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = [flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()]
    return {key: value for part in parts for key, value in part.items()}


def finish(tracked: Any, folder: "Folder", note: str, last: dict[str, float], step: int, status: str) -> None:
    """Close the run in the tracker: costs, the summary, figures and configuration, its end status."""
    tracked.log([(step, last)])
    tracked.note(note)
    tracked.artifacts([*sorted(folder.path.glob("*.*"))])
    tracked.finish(status)
