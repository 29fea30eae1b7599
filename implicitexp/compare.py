"""Every strategy on one problem: same parameters, same forward solver and tolerances, one ground truth for all rows."""

import contextlib
import math
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from implicitexp import figures, prepare, record, report, result
from implicitexp.accuracy import format_error
from implicitexp.checking import SMALLEST_LOG, Checked, Checker
from implicitexp.cost import Cost
from implicitexp.errors import ConfigError, OtherKind, Unsupported
from implicitexp.experiment import Experiment
from implicitexp.notation import ANOTHER_NAME, OTHER_KINDS
from implicitexp.record import Folder
from implicitexp.reference import Referee, Reference
from implicitexp.result import RunResult
from implicitexp.training import SECONDS_FOR_TRACKER, Settings, Terminated, terminable

TRUSTED = 1e-3  # error + uncertainty, below which a strategy is sorted by what it costs and above which by its error
PLAIN = {"_target_": "optax.sgd", "learning_rate": 1.0}  # a comparison trains nothing

Row = dict[str, Any]


def compare(problem: Any, solver: Any, strategies: dict[str, Any], settings: Settings, tracker: Any) -> RunResult:
    """Judge every strategy at the first parameters of the problem, and record the table.

    `strategies`: label -> strategy, the row of each is called by its label. A strategy that fails says why in its row.
    **Raises** `ConfigError` before anything is written.
    """
    experiment, params, key, refused = prepared(problem, solver, strategies, settings)
    referee = Referee(experiment.problem, experiment.solver, settings.reference())
    folder = Folder(settings.folder, settings.config)
    parent = result.begin(settings, tracker, name=f"{settings.problem} compare")
    rows: list[Row] = []
    same = twins({label: x for label, x in strategies.items() if label not in refused})
    reference: Reference | None = None
    status, exit_status, error = "finished", 0, None
    try:
        with terminable():
            for label, strategy in strategies.items():
                if label in refused:
                    rows.append(_undefined(label, strategy, refused[label]))
                    continue
                if label in same:
                    continue
                checker = Checker(_with(experiment, strategy), key, referee, fresh=True)
                row, reference = _row(label, strategy, checker, params, reference)
                rows.append(row)
                _track(row, settings, tracker, parent)
    except (KeyboardInterrupt, Terminated) as stop:
        status, exit_status = "killed", 143 if isinstance(stop, Terminated) else 130
        error = {"step": 0, "reason": "stopped before all strategies were compared"}
    rows = sorted(rows + [_twin(rows, label, strategies[label], of) for label, of in same.items()], key=trade)
    if status == "finished" and not any(row["status"] == "finished" for row in rows):
        status, exit_status, error = "failed", 1, {"step": 0, "reason": "no strategy gave a gradient"}
    content = _content(settings, experiment, params, key, rows, reference, (status, error))
    return _close(content, rows, params, settings, folder, parent, tracker, exit_status)


def prepared(
    problem: Any, solver: Any, strategies: dict[str, Any], settings: Settings
) -> tuple[Experiment, PyTree, jax.Array, dict[str, Unsupported]]:
    """-> an experiment with the first strategy that is defined, parameters, key, and label -> why of the others."""
    refused: dict[str, Unsupported] = {}
    found = None
    for label, strategy in strategies.items():
        try:
            made = prepare.objects(problem, solver, strategy, PLAIN, seed=settings.seed)
        except Unsupported as error:
            refused[label] = error
        else:
            found = found or made
    if found is None:
        if len(messages := {str(error) for error in refused.values()}) == 1:  # it is the solver that cannot work
            raise ConfigError(messages.pop())
        reasons = "; ".join(f"{label}: {why}" for label, why in refused.items())
        raise ConfigError(f"no strategy works here: {reasons}")
    return *found, refused


def twins(strategies: dict[str, Any]) -> dict[str, str]:
    """Label -> the label of the row that it is another name for, as `gauss` is for `adjoint` of an ODE."""
    own = {label: strategy for label, strategy in strategies.items() if strategy.plain() is strategy}
    found = {}
    for label, strategy in strategies.items():
        of = next((x for x, original in own.items() if eqx.tree_equal(original, strategy.plain())), label)
        if of != label:
            found[label] = of
    return found


def _twin(rows: list[Row], label: str, strategy: Any, of: str) -> Row:
    row = next((row for row in rows if row["label"] == of), None)
    if row is None:  # the comparison was stopped before it
        return _empty(label, strategy, "failed", f"stopped before {of}, of which this is another name") | {
            "same_as": of
        }
    named = {"label": label, "gradient": record.described(strategy) | {"name": label}}
    return row | named | {"remark": f"{ANOTHER_NAME}{of}", "same_as": of}


def listed(rows: list[Row]) -> list[Row]:
    """The rows of a table or figure: without other names, and without strategies for other kinds of equation."""
    return [row for row in rows if not row["same_as"] and not row["other_kinds"]]


def unlisted(rows: list[Row]) -> list[str]:
    """What is said of the others, in a line each."""
    names = ", ".join(f"{row['label']} = {row['same_as']}" for row in rows if row["same_as"])
    elsewhere = ", ".join(row["label"] for row in rows if row["other_kinds"])
    return [f"Other names of the same gradient: {names}."] * bool(names) + [
        f"For other kinds of equation: {elsewhere} (implicitexp list strategies)."
    ] * bool(elsewhere)


def _undefined(label: str, strategy: Any, why: Unsupported) -> Row:
    elsewhere = isinstance(why, OtherKind)
    return _empty(label, strategy, "undefined", f"{OTHER_KINDS if elsewhere else ''}{why}") | {"other_kinds": elsewhere}


def _with(experiment: Experiment, strategy: Any) -> Experiment:
    return Experiment.of(experiment.problem, experiment.solver, strategy, experiment.optimizer)


def _row(
    label: str, strategy: Any, checker: Checker, params: PyTree, reference: Reference | None
) -> tuple[Row, Reference | None]:
    """A strategy's row, and the reference that the following rows share."""
    try:
        if reference is None:
            reference = checker.reference(params, 0)
        checked = checker(params, 0, reference)
        cost = checker.cost(params, 0)
    except Exception as error:  # whatever a strategy raises must not end the others
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return _empty(label, strategy, "failed", text), reference
    return _full(label, strategy, checked, cost), reference


def _full(label: str, strategy: Any, checked: Checked, cost: Cost) -> Row:
    check = checked.check
    finite = math.isfinite(check.norm)
    return {
        "label": label,
        "gradient": record.described(strategy) | {"name": label},
        "status": "finished" if finite else "failed",
        "remark": check.remark
        if finite
        else "the gradient is not finite: a forward or backward solve did not converge",
        "error_text": format_error(check.relative_error, check.uncertainty),
        "gradient_check": check.as_dict(),
        "cost": cost.as_dict(),
        "loss": checked.loss,
        "same_as": None,
        "other_kinds": False,
    }


def _empty(label: str, strategy: Any, status: str, remark: str) -> Row:
    return {"label": label, "gradient": record.described(strategy) | {"name": label}, "status": status, "remark": remark,
            "error_text": "-", "gradient_check": None, "cost": None, "loss": None, "same_as": None,
            "other_kinds": False}  # fmt: skip


def trade(row: Row) -> tuple[Any, ...]:
    """The order of rows: first those that can be trusted, by error times time; then the others by their error; last those
    without a result. An error counts with its uncertainty: what cannot be told apart is not a difference."""
    check, cost = row["gradient_check"], row["cost"]
    if not check or check["relative_error"] is None:
        absolute = (check or {}).get("absolute_error")
        return (2, math.inf if absolute is None else absolute)
    error = check["relative_error"] + (check["uncertainty"] or 0.0)
    return (0, error * cost["gradient_ms"]) if error <= TRUSTED else (1, error)


def _track(row: Row, settings: Settings, tracker: Any, parent: Any) -> None:
    """A nested run for the strategy."""
    config = settings.config | {"gradient": row["gradient"]["options"] | {"name": row["gradient"]["name"]}}
    nested = result.begin(settings, tracker, parent=parent, name=row["label"], config=config)
    metrics = numbers(row)
    nested.log([(0, {name: value for name, value in metrics.items() if value is not None})])
    nested.note(f"{row['label']}: relative error {row['error_text']}. {row['remark'] or ''}")
    nested.finish("finished" if row["status"] == "finished" else "failed")


def _content(
    settings: Settings, experiment: Experiment, params: PyTree, key: jax.Array, rows: list[Row],
    reference: Reference | None, end: tuple[str, dict[str, Any] | None],
) -> dict[str, Any]:  # fmt: skip
    """result.json of a comparison: the best row's check and cost, and all rows in `strategies`."""
    best = next((row for row in rows if row["status"] == "finished"), None)
    check = best["gradient_check"] if best else None
    loss = best["loss"] if best else None
    status, error = end
    names = ("gradient", "status", "remark", "gradient_check", "cost")
    return result.header(settings, status, 0, error) | {
        "solver": result.solvers_used(experiment, params, key),
        "loss": {"first": loss, "last": loss},
        "metrics": {},
        "params": record.flat_or_file(params, "params.npz"),
        "gradient_check": {"first": check, "last": check},
        "reference": reference.as_dict() if reference else None,
        "cost": best["cost"] if best else None,
        "strategies": [{name: row[name] for name in names} for row in rows],
    }


def _close(
    content: dict[str, Any], rows: list[Row], params: PyTree, settings: Settings, folder: Folder, parent: Any,
    tracker: Any, exit_status: int,
) -> RunResult:  # fmt: skip
    """Figure, files, MLflow and the table on the terminal."""
    title = f"Gradients of {settings.problem}, {settings.precision}"
    folder.save_params(params)
    others, rows = unlisted(rows), listed(rows)
    warning = figures.drawn(folder, "compare", lambda: figures.compare_figure(rows, title))
    forward = [row["cost"]["forward_ms"] for row in rows if row["cost"]]
    forward_ms = min(forward) if forward else None
    caption = "\n".join([report.compare_caption(content, forward_ms), *others])
    history = [{"step": 0, "gradient": row["label"], **numbers(row)} for row in rows]
    folder.log(history)
    folder.finish(content)
    note = report.markdown_compare(title, rows, forward_ms, caption)
    result.finish(parent, folder, note, {}, 0, content["status"])
    with contextlib.suppress(KeyboardInterrupt):
        outcome = tracker.close(SECONDS_FOR_TRACKER)
        if settings.progress:
            report.print_compare(title, rows, forward_ms, caption)
            report.print_record(folder.path, outcome)
        report.print_warnings(outcome, [warning])
    return RunResult(content, params, history, folder.path, exit_status)


def numbers(row: Row) -> dict[str, Any]:
    """A row's numbers in the vocabulary of the record."""
    check, cost = row["gradient_check"] or {}, row["cost"] or {}
    found = {
        f"grad/{name}": check.get(name)
        for name in ("relative_error", "absolute_error", "cosine", "program_error", "norm")
    }
    error = check.get("relative_error")
    if error is not None:
        found["grad/log10_relative_error"] = math.log10(max(error, check["uncertainty"] or 0.0, SMALLEST_LOG))
    found |= {"reference/uncertainty": check.get("uncertainty"), "loss": row["loss"]}
    return found | {f"cost/{name}": value for name, value in cost.items()}
