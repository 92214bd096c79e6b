"""The README's commands: every one composes and validates, every make target and every file exists."""

import re
import shlex
from pathlib import Path

import pytest

from ablora import cli
from ablora.config import ask
from ablora.study.plan import make

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, re.S)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip().startswith(("ablora ", "make "))
]
QUESTIONS = [c for c in COMMANDS if c.split()[1] in ("run", "plan")]
OTHERS = [c for c in COMMANDS if c not in QUESTIONS and c.startswith("ablora ")]
TABLE = re.findall(r"^\| `([^`]*)` \| ", TEXT, re.M)
SNIPPETS = [row for row in TABLE if "=" in row]


def composed(arguments: list[str], base: Path, shared: Path) -> int:
    """How many runs a command line asks for."""
    places = {"../shared/data": str(shared / "data"), "FOLDER": str(base), "=DIR": f"={shared}/data/math"}
    places["=FILE"] = f"={shared}/data/text/wikitext2_test.txt"
    for written, there in places.items():
        arguments = [argument.replace(written, there) for argument in arguments]
    flags = {a for a in arguments if a.startswith("-")}
    question = ask([a for a in arguments if a not in flags], multirun=bool(flags))
    return len(make(question.cells).specs)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from train.small import save_base

    return save_base(tmp_path_factory.mktemp("base"))


def test_there_is_something_to_test():
    assert len(QUESTIONS) >= 3
    assert len(SNIPPETS) >= 6
    assert "DEMO_TIME" not in TEXT
    assert "SUITE_TIME" not in TEXT


@pytest.mark.parametrize("command", QUESTIONS)
def test_commands_compose_and_validate(command, base, shared):
    runs = composed(shlex.split(command)[2:], base, shared)
    assert runs == (36 if "rank=4,8" in command else 2)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_compose_and_validate(snippet, base, shared):
    assert composed(shlex.split(snippet), base, shared) >= 1


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_exist(command):
    assert command.split()[1] in cli.COMMANDS


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {c.split()[1] for c in COMMANDS if c.startswith("make ")} | set(re.findall(r"`make ([a-z-]+)", TEXT))
    assert named <= targets
    assert {"demo", "test", "env"} <= named


def test_files_exist():
    for name in [*re.findall(r"\]\(([^)#:]+)\)", TEXT), *(row for row in TABLE if "/" in row and "=" not in row)]:
        assert list(ROOT.glob(name)), name
