"""House rules that no off-the-shelf linter checks. A failure names the file and the line."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ray_stream"
PURE = (
    "groups/**/*.py",
    "log/**/*.py",
    "metadata/**/*.py",
    "records/**/*.py",
    "replication/**/*.py",
    "transactions/**/*.py",
    "client/*_core.py",
)
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 50

Function = ast.FunctionDef | ast.AsyncFunctionDef


def found(*patterns: str) -> list[Path]:
    return sorted({path for pattern in patterns for path in PACKAGE.glob(pattern)})


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))


def lines(function: Function) -> int:
    """From the first statement after the docstring to the last: prose is free."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def iterated(node: ast.AST) -> Iterable[ast.expr]:
    return (node.iter,) if isinstance(node, ast.For | ast.comprehension) else ()


def builds_a_set(expression: ast.expr) -> bool:
    match expression:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case _:
            return False


@pytest.mark.parametrize("path", found("**/*.py"), ids=name)
def test_a_module_fits_in_a_head(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MODULE_LINES_MAX
    assert ast.get_docstring(ast.parse(source)), "say what it owns and what it refuses"
    long = [
        f"{node.name}, line {node.lineno}: {lines(node)} lines"
        for node in nodes(path)
        if isinstance(node, Function) and lines(node) > FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("path", found(*PURE), ids=name)
def test_pure_code_never_iterates_a_set(path: Path) -> None:
    """Hashes of strings differ from process to process, so a seed would not reproduce a run."""
    unordered = [i.lineno for node in nodes(path) for i in iterated(node) if builds_a_set(i)]
    assert not unordered, "sort it first"


@pytest.mark.parametrize("path", found(*PURE), ids=name)
def test_pure_code_never_awaits(path: Path) -> None:
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [node.lineno for node in nodes(path) if isinstance(node, waits)]


@pytest.mark.parametrize("path", found("actors/**/*.py"), ids=name)
def test_an_actor_never_blocks_on_ray(path: Path) -> None:
    """One blocked coroutine stops every partition of its broker: await the reference."""
    blocking = [
        node.lineno
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("ray", "get"), ("ray", "wait")}
    ]
    assert not blocking
