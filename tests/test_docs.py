"""What the documents say is so: files, names and commands that they mention exist, and examples
run."""

import re
import shlex
from pathlib import Path

import click
import pytest

from ray_stream.cli.application import application
from tests.ray.drivers import Driver

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [body for kind, body in found if kind == language]


def commands(page: Path) -> list[list[str]]:
    """Every command line in the page's shell blocks, without its comment."""
    lines = (line for body in blocks(page, "sh") for line in body.splitlines())
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_map_of_files_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## Which file does what")[2].partition("\n## ")[0]
    named, package = set(), ""
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3:
            package = cells[0].strip("*`") if cells[0].startswith("**") else package
            named |= {package + name for name in re.findall(r"`(\w+\.py)`", cells[1])}
    source = ROOT / "ray_stream"
    modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    modules = {name for name in modules if not name.endswith("__init__.py")}
    assert modules - named == set(), "add these to the table in docs/architecture.md"
    assert named - modules == set(), "take these out of the table in docs/architecture.md"


@pytest.fixture(scope="module")
def known_tests() -> set[str]:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return {name for source in sources for name in re.findall(r"def (test_\w+)", source)}


@pages
def test_every_test_that_is_named_exists(page: Path, known_tests: set[str]) -> None:
    named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    assert named - known_tests == set()


@pages
def test_every_file_that_is_linked_or_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [name for name in linked if not (page.parent / name).exists()] == []
    named = re.findall(r"`((?:tests|docs|ray_stream|notebooks)/[\w/.]*)`", text)
    assert [name for name in named if not (ROOT / name).exists() and "decisions" not in name] == []


@pages
def test_every_make_target_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z -]*):", makefile, re.MULTILINE))
    targets = {name for names in targets for name in names.split()}
    named = set(re.findall(r"`make ([a-z-]+)[^`]*`", page.read_text(encoding="utf-8")))
    named |= {words[1] for words in commands(page) if words[0] == "make"}
    assert named - targets == set()


@pages
def test_every_command_line_is_one(page: Path) -> None:
    """Verbs exist, and so do the options that they are given."""
    for words in commands(page):
        if words[0] != "ray-stream":
            continue
        if "<" in words:
            words = words[: words.index("<")]  # noqa: PLW2901 - the shell's, not ours
        context, command = click.Context(application), words[1]
        found = application.get_command(context, command)
        assert found is not None, words
        rest = words[2:]
        if isinstance(found, click.Group):
            found = found.commands[rest.pop(0)]
        known = {name for one in found.params for name in one.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_every_example_runs(page: Path, tmp_path: Path) -> None:
    examples = "\n".join(blocks(page, "python"))
    script = f"os.chdir({str(tmp_path)!r})\n{examples}\ntell('ran')\n"
    with Driver(script) as driver:
        assert driver.hear() == "ran"
        driver.finish()
