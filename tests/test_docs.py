"""The documentation: its code runs, its links lead somewhere, and its tables name what there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
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
