"""Imports run one way: from the command line down to the kernels, with no circle and no arrow upwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = (
    *("cli", "commands", "view", "report", "run", "forecast", "stream", "ranks", "device", "render", "image", "optim"),
    *("strategy", "plan", "formats", "store", "scene", "kernels", "root"),
)  # from top to bottom; `root`: the modules directly in clm/
# (module, module): arrows upwards that are known, and are to go


@cache
def modules() -> dict[str, Path]:
    """Every module of clm by its dotted name."""
    found = {}
    for path in sorted((REPOSITORY / "clm").rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, *, lazily: bool) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything that a file imports when it is imported, and inside functions if `lazily`."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level, f"{path}:{node.lineno}: imports are absolute here"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif lazily or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def arrows(name: str, *, lazily: bool = True) -> Iterator[tuple[str, int]]:
    """(module of clm, line) for each import of a module of clm."""
    for target, line in imported(modules()[name], lazily=lazily):
        while target not in modules() and "." in target:
            target = target.rpartition(".")[0]
        if target in modules() and target != name:
            yield target, line


def room(name: str) -> str:
    part = name.removeprefix("clm.").partition(".")[0]
    return part if part in ROOMS else "root"


def test_every_folder_is_a_room_of_the_list() -> None:
    folders = {path.name for path in (REPOSITORY / "clm").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ROOMS) - {"cli", "root"}


def test_no_arrow_points_upwards() -> None:
    upwards = [
        f"{modules()[name].relative_to(REPOSITORY)}:{line} imports {target}"
        for name in modules()
        for target, line in arrows(name)
        if ROOMS.index(room(target)) < ROOMS.index(room(name)) and name != "clm.__main__"
    ]
    assert not upwards, "\n".join(upwards)


def test_no_circle_within_a_room() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target, _ in arrows(name):
                visit(target, (*path, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_a_command_imports_no_command() -> None:
    assert not [
        f"{name}:{line} imports {target}"
        for name in modules()
        for target, line in arrows(name)
        if room(name) == room(target) == "commands" and target != "clm.commands"
    ]


def test_neither_scripts_nor_clm_import_tests_and_clm_imports_no_script() -> None:
    for folder, foreign in (("scripts", {"tests"}), ("clm", {"tests", "scripts"})):
        for path in (REPOSITORY / folder).rglob("*.py"):
            wrong = [line for name, line in imported(path, lazily=True) if name.partition(".")[0] in foreign]
            assert not wrong, f"{path}:{wrong}"


def everything_below(name: str, *, lazily: bool) -> set[str]:
    """Names of all that importing a module of clm imports, others' packages by their first name."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        for target, _ in imported(modules()[current], lazily=lazily):
            found.add(target.partition(".")[0])
        # a package runs its __init__ before its modules
        parents = [current.rpartition(".")[0]] if "." in current else []
        for target in [*(target for target, _ in arrows(current, lazily=lazily)), *parents]:
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


@pytest.mark.parametrize("name", [name for name in modules() if room(name) in ("plan", "store", "optim", "scene")])
def test_what_decides_imports_no_torch_not_even_lazily(name: str) -> None:
    assert "torch" not in everything_below(name, lazily=True)


def test_the_parser_imports_nothing_heavy() -> None:
    code = "import clm.cli, sys; print(*(n for n in ('torch', 'numpy', 'pycolmap', 'PIL') if n in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0 and result.stdout.split() == [], result.stdout + result.stderr
