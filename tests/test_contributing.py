"""CONTRIBUTING's two walks as they stand: its files are written, its commands asked, its test and the contract run."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

import ablora.method.init
from ablora.config import ask, catalogue, loader
from ablora.study.plan import make

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "method"), str(HERE / "train")]

import test_against_peft as against_peft  # noqa: E402
import test_contract as contract  # noqa: E402
from packs import pack, spec  # noqa: E402

from presets import method  # noqa: E402
from tiny import llama, qwen  # noqa: E402

TEXT = (HERE.parent / "CONTRIBUTING.md").read_text()
FILES = {path: text for _, path, text in re.findall(r"```(yaml|python) (\S+)\n(.*?)```", TEXT, re.S)}
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", TEXT, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def _repository(tmp_path_factory):
    """This repository's conf and package with the walk's files in them."""
    root, patch = tmp_path_factory.mktemp("clone"), pytest.MonkeyPatch()
    shutil.copytree(loader.conf_dir(), root / "conf", symlinks=False)
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        assert not (root / path).exists(), path
        (root / path).write_text(text)
    patch.setattr(loader, "conf_dir", lambda: root / "conf")
    patch.setattr(catalogue, "conf_dir", lambda: root / "conf")
    patch.setattr(ablora.method.init, "__path__", [*ablora.method.init.__path__, str(root / "src/ablora/method/init")])
    yield
    patch.undo()


pytestmark = pytest.mark.usefixtures("_repository")


def test_the_walks_have_files_and_commands():
    assert sorted(FILES) == [
        "conf/method/init/minor_left.yaml", "conf/method/milora_dora.yaml", "src/ablora/method/init/minor_left.py",
        "tests/method/test_minor_left.py",
    ]  # fmt: skip
    assert len(COMMANDS) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_plan_what_they_say(command):
    program, verb, *arguments = shlex.split(command)
    assert (program, verb in ("plan", "run")) == ("ablora", True)
    cells = ask([a for a in arguments if a != "-m"], multirun=True).cells
    assert len(make(cells).specs) == (18 if "milora_dora" in command else 9)


def test_a_preset_keeps_the_contract_and_has_its_row(tmp_path):
    contract.test_v1_merge_equals_forward_or_is_refused("milora_dora")
    contract.test_g4_only_the_adapter_learns_and_the_base_is_never_written("milora_dora")
    contract.test_v2_saved_and_loaded_into_a_fresh_base("milora_dora", tmp_path)
    contract.test_v2_peft_loads_what_was_exported("milora_dora", tmp_path)
    (case,) = re.findall(r'`"milora_dora": (.*?)`', TEXT)
    against_peft.test_three_steps_are_pefts("milora_dora", eval(case, vars(against_peft)))
    losses = pack(spec("milora_dora", lr=1e-2)).steps(12)[0]
    assert sum(losses[-3:]) < sum(losses[:3])
    header = FILES["conf/method/milora_dora.yaml"].splitlines()[0].removeprefix("# ")
    about, source = catalogue.divided(header)
    assert about == "the minor directions turn, lengths are trained apart; s = 1"
    assert source == "arXiv:2406.09044, arXiv:2402.09353"


def test_a_value_keeps_the_contract_and_its_own_test_passes(tmp_path):
    namespace: dict = {}
    exec(FILES["tests/method/test_minor_left.py"], namespace)
    (own,) = [run for name, run in namespace.items() if name.startswith("test_")]
    own()
    for structure in ("pair", "dora", "adalora"):
        contract.test_i1_step_0_is_the_base_bit_for_bit(qwen, torch.bfloat16, "minor_left", "alpha_over_r", structure)
    contract.test_i1_step_0_is_the_base_bit_for_bit(llama, torch.float32, "minor_left", "goat", "pair")
    contract.test_bfloat16_keeps_the_update("minor_left")
    chosen = method("lora", "init=minor_left")
    assert type(chosen.init).__name__ == "MinorLeft"
    assert catalogue._part(type(chosen.init), "Differs").startswith("B learns like A")
