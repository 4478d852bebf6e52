"""The shape of the house: who may import whom, what imports cheaply, how large things get."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MAY_IMPORT = {
    "core": {"core"},
    "vesuvius": {"core", "vesuvius"},
    "ssp": {"core", "ssp"},
    "kernels": {"vesuvius"},
}
CHEAP = sys.stdlib_module_names | {"torch", "numpy", "core"}
HEAVY = {"torch", "numpy", "tyro", "rich", "cv2"}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(*folders: str) -> list[Path]:
    """Return the Python files below `folders` of the repository."""
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below `node` that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not isinstance(child, Function | ast.Lambda) and not is_for_types:
            yield child
            yield from at_import_time(child)


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Return the top-level packages that the import statements among `nodes` name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_those_below_them(package):
    allowed, paths = MAY_IMPORT[package], modules(package)
    if package == "kernels" and not paths:
        pytest.skip("kernels/ holds no Python file")
    assert paths, f"{package}/ holds no Python file"
    wrong = {
        str(path.relative_to(REPOSITORY)): names
        for path in paths
        if (names := imported(ast.walk(tree_of(path))) & set(MAY_IMPORT) - allowed)
    }
    assert wrong == {}


def test_core_imports_with_torch_and_numpy_alone():
    wrong = {
        path.name: names
        for path in modules("core")
        if (names := imported(at_import_time(tree_of(path))) - CHEAP)
    }
    assert wrong == {}


def test_imports_inside_functions_do_not_count_as_import_time():
    tree = ast.parse(
        "import a\nif a:\n    import b\ndef f():\n    import c\nclass D:\n    import d"
    )
    assert imported(at_import_time(tree)) == {"a", "b", "d"}


def help_of(program: str) -> tuple[set[str], float]:
    """Return the top-level modules that `PROGRAM --help` imports and the seconds it takes."""
    code = (
        f"import sys; sys.argv = [{program!r}, '--help']; from {program}.cli import main; main(); "
        "print(*sys.modules, file=sys.stderr)"
    )
    started_s = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in result.stderr.split()}, (
        time.perf_counter() - started_s
    )


@pytest.mark.parametrize("program", ["vesuvius", "ssp"])
def test_help_answers_at_once(program):
    names, seconds = zip(*(help_of(program) for _ in range(3)), strict=True)
    assert "core" in names[0]
    assert names[0] & HEAVY == set()
    assert min(seconds) < 0.7


def test_modules_and_functions_stay_small():
    large = []
    for path in modules(*MAY_IMPORT, "tests", "benchmarks"):
        name = str(path.relative_to(REPOSITORY))
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_MODULE_LINES:
            large.append(name)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, Function) and size(node) > MAX_FUNCTION_LINES:
                large.append(f"{name}:{node.lineno} {node.name}")
    assert large == []


def size(function: Function) -> int:
    """Return the number of lines of `function` with its docstring."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_pyproject_lists_exactly_the_packages_that_exist():
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    found = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in modules("core", "vesuvius", "ssp")
    }
    assert sorted(pyproject["tool"]["setuptools"]["packages"]) == sorted(found)
    assert all((REPOSITORY / name.replace(".", "/") / "__init__.py").is_file() for name in found)
