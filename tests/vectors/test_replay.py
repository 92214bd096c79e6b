"""The replay finds official numbers met, wrong ones wrong, and says what it cannot do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
MINE = (
    "lora,rslora,pissa,milora,molora,goat,subspace,forgetting,olora,corda,eva,lora_ga,"
    "loraplus,lorafa,preconditioner,moe_riemannian_layer,moe_riemannian_optimizer,"
    "dora,adalora_allocator,adalora_forward,adamole,hydralora"
)
COUNT = len(MINE.split(","))


def replay(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(HERE / "replay.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_official_numbers_are_met():
    done = replay(HERE, "--only", MINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COUNT} of {COUNT} cases pass" in done.stdout


def test_perturbed_numbers_are_found_out():
    done = replay(HERE, "--only", MINE, "--self-test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every perturbed answer fails") == COUNT


def test_every_case_is_named():
    assert len(json.loads((HERE / "manifest.json").read_text())) == COUNT


def test_a_case_without_implementation_fails(tmp_path):
    (case,) = [
        case for case in json.loads((HERE / "manifest.json").read_text()) if case["file"] == "peft_lora.safetensors"
    ]
    shutil.copy(HERE / case["file"], tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps([case, {**case, "method": "unheard_of"}]))
    done = replay(tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("no implementation") == 1
    assert "1 of 2 cases pass" in done.stdout
    assert replay(HERE, "--only", "nothing").returncode == 1


@pytest.mark.parametrize(("method", "answer"), [("goat", "grad_gate_aux"), ("milora", "min_W_res")])
def test_one_wrong_number_fails(tmp_path, method, answer):
    manifest = [case for case in json.loads((HERE / "manifest.json").read_text()) if case["method"] == method]
    (case,) = manifest
    shutil.copy(HERE / case["file"], tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert replay(tmp_path).returncode == 0
    tensors = load_file(tmp_path / case["file"])
    tensors[answer].view(-1)[3] *= 1 + 1e-6
    save_file(tensors, tmp_path / case["file"])
    done = replay(tmp_path)
    assert done.returncode == 1
    assert f"({answer}" in done.stdout
