"""Completion as a bash with our script offers it, and what it is offered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablora.cli import COMMANDS, main
from ablora.completion import query
from ablora.store.roots import Roots
from ablora.study.manifest import Row, StudyFolder

TAKES = {name: command.takes for name, command in COMMANDS.items()}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ABLORA_RUNS", raising=False)
    for name in ("first", "second"):
        StudyFolder(Roots.from_environment().studies / name).write([Row("0" * 12, {}, "lora", 0)], [], {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder for PATH whose `ablora` is this checkout's, whether or not the script is installed."""
    program = tmp_path / "bin/ablora"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ablora.cli "$@"\n')
    program.chmod(0o755)
    return program.parent


def pressed(path: Path, line: str) -> list[str]:
    """What COMPREPLY holds when <TAB> is pressed at the end of the line, as bash calls the function."""
    code = (
        "eval \"$(ablora -sc install=bash)\"; complete -p ablora >&2; COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'; "
        f'COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=(ablora); _ablora; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "complete -o default -o nospace -F _ablora ablora" in done.stderr
    return [offer for offer in done.stdout.split("\n") if offer]


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("ablora sta", ["status "]),
        ("ablora watch f", ["first "]),
        ("ablora run -m method=lora,pi", ["lora,pissa"]),  # bash replaces what stands behind the last =
    ],
)
def test_a_real_bash_completes_commands_studies_and_overrides(path, line, offers):
    assert pressed(path, line) == offers


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("ablora resume ", ["first ", "second "]),
        ("ablora retry first --only dis", ["disk_full "]),
        ("ablora clean first --s", ["--snapshots "]),
        ("ablora clean --dry-run first ", ["--snapshots ", "--failed "]),
        ("ablora run --re", ["--retry "]),
        ("ablora run met", ["method=", "method/", "method."]),
        ("ablora run method=mil", ["method=milora"]),
        ("ablora run method/init=svd_m", ["method/init=svd_middle", "method/init=svd_minor"]),
        ("ablora run method=goat method.structure.e", ["method.structure.experts="]),
        ("ablora run -m method=lora,goat train.max_s", ["train.max_steps="]),
        ("ablora plan +sweeps=de", ["+sweeps=demo"]),
        ("ablora run dataset.path=", []),
        ("ablora nothing ", []),
    ],
)
def test_offers(line, offers):
    assert query(line, TAKES) == offers


def test_every_command_is_offered():
    assert query("ablora ", TAKES) == [f"{name} " for name in COMMANDS]


def test_commands_and_studies_are_offered_without_hydra_and_torch():
    code = (
        "import sys; from ablora.completion import query; query('ablora ', {}); "
        "query('ablora status ', {'status': 'STUDY'}); print({'torch', 'hydra', 'pandas'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_overrides_are_offered_without_torch():
    code = "import sys; from ablora.config.offers import offers; offers([], 'me'); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_a_shell_of_hydras_is_left_to_hydra(capsys):
    assert main(["-sc", "install=fish"]) == 0
    assert "hydra_fish_completion" in capsys.readouterr().out
