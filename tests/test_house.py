"""The rules of the house that a machine can check."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ablora"
FLOORS = [
    ("spec", "tree"),
    ("store",),
    ("models", "data", "spectra"),
    ("method",),
    ("evals",),
    ("train",),
    ("track",),
    ("dispatch",),
    ("study",),
    ("tune",),
    ("config", "app"),
    ("doctor", "completion"),
    ("cli",),
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
TOUCHES_HYDRA = {"config", "app"}


def modules() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if "conf" not in p.relative_to(SOURCE).parts)


def unit(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    mine = unit(path)
    if mine in ("__init__", "__main__"):
        return
    assert mine in FLOOR, f"{mine} has no floor in the house; give it one here and in the design"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ablora" and len(parts) > 1 and parts[1] != mine and parts[1] in FLOOR:
            same = FLOOR[parts[1]] == FLOOR[mine] and {parts[1], mine} <= {"spec", "tree", "config", "app"}
            assert FLOOR[parts[1]] < FLOOR[mine] or same, f"{mine} imports {name}"
        if parts[0] == "ablora_analysis":
            assert mine == "cli", f"{mine} imports {name}"
        if parts[0] in ("hydra", "omegaconf"):
            assert mine in TOUCHES_HYDRA, f"{mine} imports {name}"
        if parts[0] == "wandb":
            assert mine == "track", f"{mine} imports {name}"
    if mine == "spec":
        assert not {n.split(".")[0] for n in imports(path)} & {"torch", "hydra", "omegaconf"}


@pytest.mark.parametrize("path", sorted((ROOT / "analysis").rglob("*.py")), ids=lambda p: p.name)
def test_analysis_stands_on_method_and_below(path):
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "analysis", "the package is imported as ablora_analysis"
        if parts[0] == "ablora" and len(parts) > 1:
            assert FLOOR.get(parts[1], 0) <= FLOOR["method"], f"{path.name} imports {name}"


def python_files() -> list[Path]:
    folders = ("src/ablora", "src/hydra_plugins", "analysis", "tests", "benchmarks")
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in p.parts]


def test_files_are_small_and_say_what_they_hold():
    long = {str(p.relative_to(ROOT)): n for p in python_files() if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines: {long}"
    names = {p.stem for p in python_files()}
    assert not names & {"utils", "helpers", "common", "util", "helper", "misc"}


def test_every_public_function_of_the_package_has_a_docstring():
    """Public: a module-level class or function without an underscore; one-line bodies that say it all are spared."""
    missing = []
    for path in modules():
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None and (node.end_lineno or 0) - node.lineno > 12:
                missing.append(f"{path.relative_to(SOURCE)}:{node.name}")
    assert not missing


def test_no_conditional_defaults_in_the_configuration():
    """A reference in a defaults list would escape the composition by groups that planning relies on."""
    for path in (ROOT / "conf").rglob("*.yaml"):
        block = re.search(r"^defaults:\n((?:\s+-.*\n|\s*#.*\n)*)", path.read_text(), re.M)
        assert block is None or "${" not in block[1], path


def test_sweep_files_begin_with_their_package():
    files = sorted((ROOT / "sweeps").glob("*.yaml"))
    assert files
    for path in files:
        first, second = path.read_text().splitlines()[:2]
        assert first == "# @package _global_", path
        assert second.startswith("# Question:"), path


def test_what_make_test_leaves_out_is_there():
    for line in (ROOT / "tests/long.txt").read_text().splitlines():
        path, _, name = line.partition("::")
        assert (ROOT / path).is_file(), line
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text() or not name, line


def test_no_two_test_files_have_one_name():
    """pytest imports them by name alone, and refuses the second where both are collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
