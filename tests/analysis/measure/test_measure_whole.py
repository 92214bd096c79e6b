"""Updates that are whole matrices, and methods that leave none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from measure_made import write_run, write_study

from ablora.method.adapt import adapt
from ablora.models.base import load
from ablora.store import lines
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create
from ablora_analysis.measure import main
from ablora_analysis.measure.adapters import EXPECTED, NotMeasured
from ablora_analysis.measure.from_run import open_run
from ablora_analysis.measure.update import decompose
from presets import method
from train.small import save_base, small_spec


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def write_alone(roots, spec) -> tuple[RunFolder, dict[str, torch.Tensor]]:
    """A finished run of a method that has a pack of its own, its weights moved at random, and those weights."""
    folder, base = create(roots, spec), load(spec.model)
    adapted = adapt(base.model, [spec], [None], None)
    with torch.no_grad():
        for parameter in adapted.parameters(0).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 1e-2)
    adapted.save(0, folder.adapter)
    tensors = {name: p.detach().clone() for name, p in adapted.parameters(0).items()}
    adapted.detach()
    lines.write(folder.path / "result.json", [{}])
    return folder, tensors


@pytest.mark.parametrize("part", ["all", "targets"])
def test_full_fine_tunings_update_is_what_was_added_to_the_weight(base, roots, part):
    spec = replace(small_spec(base, "lora"), method=method("full", f"part={part}"))
    folder, tensors = write_alone(roots, spec)
    adapter, own = open_run(folder), load(spec.model).model
    assert len(adapter.ranks) == 14, "the layers that a low-rank method adapts: no embedding, no head"
    for module, rank in adapter.ranks.items():
        (found,) = adapter.parts(module).values()
        before = own.get_submodule(module).weight
        assert found.rank == rank == min(64, *before.shape)
        wanted = (tensors[f"{module}.weight"] - before).double().detach()
        np.testing.assert_allclose((found.update.B @ found.update.A).numpy(), wanted.numpy(), atol=1e-6)
        assert len(decompose(found.update).sigma) == min(before.shape)


def test_a_mixture_of_whole_experts_has_parts_and_gates(base, roots):
    spec = replace(small_spec(base, "lora"), method=method("full_moe", "structure.experts=2", "structure.top_k=1"))
    folder, tensors = write_alone(roots, spec)
    adapter = open_run(folder)
    module = next(iter(adapter.ranks))
    parts = adapter.parts(module)
    assert list(parts) == [EXPECTED, "expert 0", "expert 1"]
    D = tensors[f"{module}.D"].double()
    assert parts[EXPECTED].gates == "uniform"
    for name, wanted in ((EXPECTED, D.mean(0)), ("expert 0", D[0]), ("expert 1", D[1])):
        np.testing.assert_allclose((parts[name].update.B @ parts[name].update.A).numpy(), wanted.numpy(), atol=1e-12)


def test_what_leaves_no_update_is_not_measured_and_no_fault(base, tmp_path, capsys):
    roots = Roots(tmp_path / "runs", tmp_path / "studies", tmp_path / "cache")
    prompt = replace(small_spec(base, "lora"), method=method("prompt_tuning"))
    folder = create(roots, prompt)
    with pytest.raises(NotMeasured, match=r"prompt_tuning \(Peft\).*Pair or Experts"):
        open_run(folder)
    for name, value in (("a", folder), ("b", write_run(roots, small_spec(base, "lora"))[0])):
        assert value.path.exists(), name
    result = (roots.runs / value.id / "result.json").read_text().replace(value.id, folder.id)
    folder.result.write_text(result)
    write_study(roots, "s", {"a": (folder, prompt), "b": (value, small_spec(base, "lora"))})
    written = main.measure_study(roots, "s")
    assert folder.id in json.loads((written / "measures.json").read_text())["left_out"]
    assert f"run {folder.id} is not measured" in capsys.readouterr().err
