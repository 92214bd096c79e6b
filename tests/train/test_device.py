"""A base that is not on the CPU: nothing is forgotten there, and what is learnt is what is learnt on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import elsewhere
import pytest
import torch

from ablora.models.device import device
from presets import every

FEW = ["adalora", "lora_ga"]
"""State of a structure, and gradients of the base."""


def results(folder: Path) -> dict[str, dict[str, float]]:
    return {path.parent.name: json.loads(path.read_text())["metrics"] for path in folder.glob("runs/*/result.json")}


def trained_there(folder: Path, presets: list[str]) -> dict[str, dict[str, float]]:
    """In a process of its own: a device is made known to torch for good."""
    done = subprocess.run(
        [sys.executable, elsewhere.__file__, folder, *presets], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return results(folder)


def require_equal(tmp_path: Path, presets: list[str]) -> None:
    there = trained_there(tmp_path / "there", presets)
    elsewhere.train(tmp_path / "here", tmp_path / "there" / "base", presets)
    here = results(tmp_path / "here")
    assert len(here) == len(presets)
    assert here.keys() == there.keys()
    for run in here:
        assert here[run] == pytest.approx(there[run], rel=1e-4, abs=1e-6)


def test_what_is_learnt_elsewhere_is_what_is_learnt_on_the_cpu(tmp_path):
    require_equal(tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("fifth", range(5))
def test_every_preset_learns_elsewhere_what_it_learns_on_the_cpu(tmp_path, fifth):
    require_equal(tmp_path, every()[fifth::5])


def test_the_pretended_device_refuses_what_a_real_one_would(tmp_path):
    code = ("import torch, elsewhere; keep = elsewhere.set_up(); x = torch.ones(2, device='elsewhere')\n"
            "assert (x + x).cpu().tolist() == [2, 2]\nx + torch.ones(2)")  # fmt: skip
    folder = Path(elsewhere.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert "tensors of the cpu and of elsewhere meet" in done.stderr


def test_a_process_computes_on_the_first_gpu_it_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device() == torch.device("cpu")
