"""The documentation: its code runs, its links lead somewhere, and its tables name what there is."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
TOUR = ROOT / "docs" / "tour.ipynb"
STRATEGIES = sorted(ROOT.glob("docs/strategies/*.md"))
SECTIONS = ("## Equation", "## Source", "## Cost", "## When it is right", "## When it fails")
FIGURE = re.compile(r"!\[.+\]\(\.\./figures/(\w+)\.png\)")
FIGURES = ROOT / "docs" / "figures" / "make.py"
WIDTH, MOST = 900, 60_000  # pixels, bytes: of a figure of docs/strategies
WITH_CODE = [page for page in PAGES if FENCE.search(page.read_text())]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of a page, one after the other, as a reader types them."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    namespace = {"__name__": "documentation"}
    for block in FENCE.finditer(text):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in LINK.findall(text) if not link.startswith(("http://", "https://"))]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_pages_with_code_and_links_are_found() -> None:
    assert {"README.md", "docs/extending.md", "docs/truth.md", "docs/record.md"} <= {name(page) for page in WITH_CODE}
    assert any(LINK.search(page.read_text()) for page in PAGES)


@pytest.mark.parametrize(
    ("group", "page"), [("gradient", "docs/strategies.md"), ("solver", "docs/solvers.md"), ("problem", "CHANGELOG.md")]
)
def test_every_option_is_described(group: str, page: str) -> None:
    text = (ROOT / page).read_text()
    assert [path.stem for path in (ROOT / "conf" / group).glob("*.yaml") if f"`{path.stem}`" not in text] == []


def test_every_strategy_has_a_page() -> None:
    """And the overview links to it. `per_kind` is no strategy of its own: it stands in the overview."""
    options = {path.stem for path in (ROOT / "conf" / "gradient").glob("*.yaml")} - {"per_kind"}
    overview = (ROOT / "docs" / "strategies.md").read_text()
    assert {page.stem for page in STRATEGIES} == options
    assert set(re.findall(r'^    "(\w+)": ', FIGURES.read_text(), flags=re.MULTILINE)) == options
    assert [name for name in options if f"| [`{name}`](strategies/{name}.md) |" not in overview] == []


@pytest.mark.parametrize("page", STRATEGIES, ids=lambda page: page.stem)
def test_a_strategys_page_is_complete(page: Path) -> None:
    """Its sections in order, one figure of its own, in width and bytes as all of them, and the command that makes it."""
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert FIGURE.findall(text) == [page.stem]
    assert f"`python docs/figures/make.py {page.stem}`" in text
    image = (ROOT / "docs" / "figures" / f"{page.stem}.png").read_bytes()
    assert int.from_bytes(image[16:20]) == WIDTH  # PNG: the header's first field
    assert len(image) < MOST


@pytest.mark.slow
def test_a_figure_can_be_made_again(tmp_path: Path) -> None:
    """By its command, which prints the numbers that its page quotes: the cheapest of them."""
    command = [sys.executable, str(FIGURES), "one_step", "--into", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = [[float(x) for x in line.split()] for line in printed.splitlines() if re.match(r" +0\.\d", line)]
    assert len(table) == 8
    assert all(0.5 * bound < error <= bound and newton < 1e-13 for _, error, newton, bound in table)
    assert (tmp_path / "one_step.png").stat().st_size < MOST


def test_every_drop_in_is_in_the_table() -> None:
    from implicitexp import adjoints

    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "drop-in.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == adjoints.__all__


# A cell of the tour, what is in its output before a number, and the bounds within which the text around it is true.
CLAIMS = [
    ("solve", r"E = ", 1.288091, 1.288092),
    ("solve", r"residual ", 0, 1e-12),
    *(("gradients", rf"{name} .*relative error ", 0, 1e-14) for name in ("Unroll", "Implicit", "Adjoint", "Forward")),
    ("gradients", r"FiniteDifference .*relative error ", 1e-9, 1e-6),
    ("truncated", r"last 1: relative error ", 0.08, 0.09),
    ("truncated", r"last 4: relative error ", 0.08**4, 0.09**4),
    ("unrolled", r"relative error ", 285, 295),
    ("unrolled", r"program error ", 0, 1e-12),
    *(
        ("tolerances", rf"{row}: slope ", 1000, 1200)
        for row in ("Unroll .*1e-04", "Unroll .*1e-12", "Implicit .*1e-12")
    ),
    ("adjoint", r"relative error ", 0, 1e-7),
    ("adjoint", r"program error ", 0.9, 1.1),
    ("check", r"relative error < ", 0, 1e-9),
    ("train", r"loss .* → ", 0, 1e-8),
    ("train", r"gradient error, first ", 0, 1e-5),
    ("train", r"gradient error, last ", 1e-5, 1),
    ("found", r"k = ", 1.485, 1.515),
    ("found", r"exp\(", 0.78, 0.82),
    *(("compare", rf"{name} < ", 0, 1e-9) for name in ("unroll", "implicit", "adjoint", "forward")),
    ("compare", r"finite_difference ", 1e-7, 1e-5),
    ("compare", r"finite_difference .*? ± ", 0, 1e-9),
]
WORDS = {
    "record": "config.yaml metrics.jsonl params.npz result.json run.png",
    "refusal": "did you mean adjoint?",
    "tangents": "<image>",
    "train": "<image>",
    "compare": "<image>",
}


def shown(cell) -> str:
    """What a cell's outputs show: text as it is, the rows of an HTML table as lines, `<image>` for a figure."""
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {"text/plain": output.get("text", "")})
        page = data.get("text/html", "").replace("</tr>", "\n")
        page = html.unescape(re.sub(r"<(?!image>)[^>]*>", " ", page.replace("<img", "<image><img")))
        parts += ["<image>"] if "image/png" in data else [page or data["text/plain"]]
    return re.sub(r" +", " ", "\n".join(parts))


def number_after(pattern: str, text: str) -> float:
    found = re.search(pattern + r"(-?[\d.]+(?:e[-+]\d+)?)", text)
    return float(found[1]) if found else float("nan")


@pytest.mark.slow
def test_the_tour_shows_what_it_says(tmp_path: Path) -> None:
    """All cells in a kernel of their own, as a reader runs them; then the text's claims against the outputs."""
    import nbformat
    from nbclient import NotebookClient

    tour = nbformat.read(TOUR, as_version=4)
    NotebookClient(tour, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = {cell.id: shown(cell) for cell in tour.cells}
    found = [(cell, pattern, number_after(pattern, texts[cell]), low, high) for cell, pattern, low, high in CLAIMS]
    assert [row for row in found if not row[3] <= row[2] <= row[4]] == []
    assert {cell: texts[cell] for cell, words in WORDS.items() if words not in texts[cell]} == {}
    assert list(tmp_path.iterdir()) == []  # it writes to a folder of its own


def test_the_tour_is_kept_without_outputs_and_its_links_exist() -> None:
    cells = json.loads(TOUR.read_text())["cells"]
    assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert {name for name, *_ in CLAIMS} | set(WORDS) <= {cell["id"] for cell in cells}
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert [link for link in LINK.findall(text) if not (TOUR.parent / link).exists()] == []
