"""What a person reads: progress while it runs, a table at the end, and the same as Markdown for MLflow."""

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from implicitexp.accuracy import format_error

if TYPE_CHECKING:
    from implicitexp.training import Settings, Training

SECONDS_A_LINE = 3.0  # between two plain lines of progress
WIDTH = 120  # of the report where no terminal gives one

Facts = list[tuple[str, str]]


def console() -> Console:
    """Where reports go: the terminal, or whatever standard output is."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, soft_wrap=False)


class Bar:
    """A progress bar with loss, gradient error and updates a second, in a terminal."""

    def __init__(self, settings: "Settings"):
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                   TextColumn("{task.fields[text]}"), TimeRemainingColumn()]  # fmt: skip
        self.progress = Progress(*columns, console=console(), transient=True)
        self.task = self.progress.add_task(settings.problem, total=settings.steps, text="compiling")

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.progress.stop()

    def update(self, training: "Training") -> None:
        self.progress.update(self.task, completed=training.step, text=state_of(training))


class Lines:
    """A plain line every few seconds, where there is no terminal."""

    def __init__(self, settings: "Settings"):
        self.steps, self.last = settings.steps, 0.0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *exception: Any) -> None:
        return None

    def update(self, training: "Training") -> None:
        now = time.monotonic()
        if now - self.last > SECONDS_A_LINE:
            self.last = now
            print(f"update {training.step}/{self.steps}  {state_of(training)}", flush=True)


class Quiet:
    """No progress."""

    def __enter__(self) -> "Quiet":
        return self

    def __exit__(self, *exception: Any) -> None:
        return None

    def update(self, training: "Training") -> None:
        return None


def progress(settings: "Settings") -> Bar | Lines | Quiet:
    """What shows progress here."""
    if not settings.progress:
        return Quiet()
    return Bar(settings) if sys.stdout.isatty() else Lines(settings)


def state_of(training: "Training") -> str:
    """Loss, gradient error and speed in one line."""
    parts = [f"loss {training.loss:.4g}"] if training.loss is not None else []
    parts += [f"gradient error {error_of(training.checks[-1].check)}", f"{training.speed:.0f} updates/s"]
    return "  ".join(parts)


def error_of(check: Any) -> str:
    """A check's relative error with its uncertainty, or why there is none."""
    if check is None:
        return "unknown"
    if check.relative_error is None and check.absolute_error is not None:
        return f"absolute {check.absolute_error:.2g}"
    return format_error(check.relative_error, check.uncertainty)


SMALL = 1e-3  # a gradient that fell below this part of the first one: its own norm says little of its error


def beside_first(training: "Training", check: Any) -> str:
    """Near an optimum the gradient vanishes and its relative error grows: the error in units of the first gradient."""
    first = training.checks[0].check.norm
    if check.absolute_error is None or not first or check.norm > SMALL * first:
        return ""
    return f" of a gradient that vanishes; {check.absolute_error / first:.2g} of the first one"


def training_facts(training: "Training", content: dict[str, Any]) -> Facts:
    """The table at the end of a training."""
    loss, cost, reference = content["loss"], content["cost"], content["reference"] or {}
    why = f" after {content['error']['reason']}" if content["error"] else ""
    why = f", by {training.ended}={getattr(training.settings, training.ended):g}" if training.ended else why
    facts: Facts = [("status", content["status"] + why)]
    seconds = training.train_seconds
    speed = f", {content['steps'] / seconds:.0f} a second" if seconds > 0 else ""
    facts += [("updates", f"{content['steps']} in {seconds:.1f} s{speed}; compiled in {training.compile_seconds:.1f} s, "
                          f"gradient checks {training.check_seconds:.1f} s")]  # fmt: skip
    facts += [("loss", f"{number(loss['first'])} → {number(loss['last'])}")]
    facts += [(name, number(value)) for name, value in content["metrics"].items()]
    for when, checked in (("first", training.checks[:1]), ("last", training.checks[-1:])):
        if checked:
            facts += [
                (f"gradient error, {when}", error_of(checked[0].check) + beside_first(training, checked[0].check))
            ]
    facts += [("ground truth", reference.get("how") or reference.get("remark") or "none")]
    if training.checks:
        worst = training.checks[0].check.worst
        program = training.checks[0].check.program_error
        if worst and worst.get("relative_error"):  # 0: none is above its uncertainty
            facts += [("worst component", f"{worst['leaf']}{worst['index']}: {number(worst['relative_error'])}")]
        facts += [("program error", "unknown" if program is None else number(program))]
        if training.checks[0].check.remark:
            facts += [("remark", training.checks[0].check.remark)]
    if cost:
        facts += [("cost", cost_of(cost))]
    return facts


def cost_of(cost: dict[str, Any]) -> str:
    """A cost in one line."""
    return (f"gradient {number(cost['gradient_ms'])} ms, forward {number(cost['forward_ms'])} ms, "
            f"{number((cost['memory_bytes'] or 0) / 2**20)} MiB, {number(cost['solver_steps'])} solver steps, "
            f"compiled in {number(cost['compile_s'])} s")  # fmt: skip


def number(value: Any) -> str:
    """Four digits, or a dash for what is not known."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def short(value: Any) -> str:
    """Two digits, for a table."""
    return f"{value:.2g}" if isinstance(value, float) else number(value)


def print_facts(title: str, facts: Facts) -> None:
    """A table of names and values."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, value)
    console().print(table)


def print_training(title: str, facts: Facts, folder: Any, outcome: Any) -> None:
    """The table of a run, and where its record lies."""
    print_facts(title, facts + record_facts(folder, outcome))


def print_record(folder: Any, outcome: Any) -> None:
    """Below a table that has no room for it: where the record lies."""
    for name, value in record_facts(folder, outcome):
        console().print(f"{name:10} {value}", highlight=False)


def print_warnings(outcome: Any, warnings: list[str | None]) -> None:
    """What did not work, on standard error."""
    for warning in [*warnings, outcome.warning]:
        if warning:
            print(f"warning: {warning}", file=sys.stderr)


def record_facts(folder: Any, outcome: Any) -> Facts:
    """Where the record lies, and how to open the dashboard."""
    facts: Facts = [("record", str(folder))]
    if outcome.hint and not outcome.warning:
        facts += [("dashboard", outcome.hint)]
    return facts


def markdown_facts(title: str, facts: Facts) -> str:
    """The same as Markdown. The first line is the answer, since MLflow's lists show no more, and the first four lines
    are the summary: a run's page folds away what is below them."""
    known = dict(facts)
    first, last = known.get("gradient error, first", "unknown"), known.get("gradient error, last", "unknown")
    lines = [
        f"**{title}: gradient error {last}** at the last parameters, {first} at the first",
        f"Ground truth: {known['ground truth']}",
        f"Status: {known['status']}, loss {known['loss']}",
        f"Cost: {known.get('cost', 'not measured')}",
    ]
    rows = "\n".join(f"| {name} | {value.replace('|', '/')} |" for name, value in facts)
    return "  \n".join(lines) + f"\n\n| | |\n|---|---|\n{rows}\n"


COMPARE_COLUMNS = ("gradient", "relative error", "worst component", "program error", "gradient / forward", "compile s",
                   "memory MiB", "remark")  # fmt: skip


def compare_cells(row: dict[str, Any], forward_ms: float | None) -> list[str]:
    """One strategy's row, without its remark."""
    check, cost = row["gradient_check"], row["cost"] or {}
    if not check:
        return [row["label"], row["status"], *["-"] * 5]
    worst = check["worst"] or {}
    ratio = cost["gradient_ms"] / forward_ms if forward_ms and cost.get("gradient_ms") else None
    memory = cost["memory_bytes"] / 2**20 if cost.get("memory_bytes") is not None else None
    above = (
        worst.get("leaf") and worst["relative_error"] != 0
    )  # 0: none is above its uncertainty, which is no error of zero
    component = f"{short(worst['relative_error'])} in {worst['leaf']}" if above else "-"
    return [row["label"], row["error_text"], component, short(check["program_error"]), short(ratio),
            short(cost.get("compile_s")), short(memory)]  # fmt: skip


def numbered_remarks(rows: list[dict[str, Any]]) -> list[str]:
    """Every different remark once, in the order of the rows: they stand below the table."""
    return list(dict.fromkeys(row["remark"] for row in rows if row["remark"]))


def compare_caption(content: dict[str, Any], forward_ms: float | None) -> str:
    """What all rows share."""
    reference = content["reference"] or {}
    forward = f"Forward solve {number(forward_ms)} ms. " if forward_ms else ""
    truth = f"Ground truth: {reference.get('how')}, uncertainty {number(reference.get('uncertainty'))}. "
    return f"{forward}{truth}Best trade of error and time first."


def print_compare(title: str, rows: list[dict[str, Any]], forward_ms: float | None, caption: str) -> None:
    """The table of a comparison; remarks are numbered and stand below it."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(COMPARE_COLUMNS):
        table.add_column(name, overflow="fold", no_wrap=i < 3, justify="left" if i < 3 else "right")
    remarks = numbered_remarks(rows)
    for row in rows:
        mark = str(remarks.index(row["remark"]) + 1) if row["remark"] else ""
        table.add_row(*compare_cells(row, forward_ms), mark)
    console().print(table)
    for i, remark in enumerate(remarks):
        console().print(f"{i + 1} {remark}", highlight=False)
    console().print(caption, highlight=False)


def markdown_compare(title: str, rows: list[dict[str, Any]], forward_ms: float | None, caption: str) -> str:
    """The table of a comparison as Markdown, below what can be seen of it without unfolding."""
    errors = ", ".join(f"{row['label']} {row['error_text']}" for row in rows)
    head = "| " + " | ".join(COMPARE_COLUMNS) + " |\n|" + "---|" * len(COMPARE_COLUMNS)
    cells = [[*compare_cells(row, forward_ms), row["remark"] or ""] for row in rows]
    body = "\n".join("| " + " | ".join(x.replace("|", "/") for x in row) + " |" for row in cells)
    answer = f"**{title}: best {rows[0]['label'] if rows else 'none'}**  \nRelative errors: {errors}"
    return f"{answer}\n\n{head}\n{body}\n\n{caption}\n"
