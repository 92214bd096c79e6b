"""Adapters that PEFT saved go on here, and a run's own in PEFT."""

import json
import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ablora.method.attach import attach
from ablora.method.export import save_adapter
from ablora.method.member import Member
from ablora.models.segments import packed_logits, use_segments
from ablora.spec import AdapterSpec, BadInput
from ablora.spectra.library import Library
from peft_made import MADE, TARGETS, loaded, make
from presets import method
from tiny import disturb, ids, llama, logits

ALIKE = {"rtol": 1e-5, "atol": 2e-5}
"""Of logits up to 20."""


def gpt2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    use_segments(model)
    return model


def go_on(model, folder, kind, rank=0, targets=("re:.*_proj",)):
    chosen = method(kind, "init=saved", f"init.path={folder}")
    return attach(model, [Member(chosen, rank, AdapterSpec(targets=tuple(targets)), 0)], Library(None))


@pytest.mark.parametrize("name", MADE)
def test_the_first_step_sees_what_peft_computes(name, tmp_path):
    folder = make(name, tmp_path)
    with torch.no_grad():
        wanted = loaded(folder)(input_ids=ids(1)).logits
    model = llama()
    go_on(model, folder, MADE[name].kind)
    with torch.no_grad():
        found = packed_logits(model, ids(1), [[ids(1).shape[1]]])
    torch.testing.assert_close(found, wanted, **ALIKE)
    assert not torch.allclose(found, packed_logits(llama(), ids(1), [[ids(1).shape[1]]]), **ALIKE)


def test_a_conv1d_too(tmp_path):
    folder = make("lora", tmp_path, gpt2, target_modules=["c_attn"], fan_in_fan_out=True)
    x = ids(1)[:, :48]
    with torch.no_grad():
        wanted = loaded(folder, gpt2)(input_ids=x).logits
        model = gpt2()
        go_on(model, folder, "lora", targets=["c_attn"])
        torch.testing.assert_close(packed_logits(model, x, [[48]]), wanted, **ALIKE)


@pytest.mark.parametrize("preset", ["lora", "pissa", "dora"])
def test_there_and_back(preset, tmp_path):
    """Trained here, saved in PEFT's layout, and gone on with here: the same function."""
    model = llama()
    adapted = attach(model, [Member(method(preset), 8, AdapterSpec(), 0)], Library(None))
    disturb(adapted)
    save_adapter(adapted, 0, tmp_path)
    wanted = logits(model)
    again = llama()
    rank = json.loads((tmp_path / "adapter_config.json").read_text())["r"]
    assert rank == (16 if preset == "pissa" else 8)
    go_on(again, tmp_path, "dora" if preset == "dora" else "lora", rank, ["re:.*_proj"])
    torch.testing.assert_close(logits(again), wanted, **ALIKE)


def test_what_is_not_the_adapters_is_refused(tmp_path):
    folder = make("lora", tmp_path)
    for wrong, kind, rank, targets in (("rank", "lora", 8, TARGETS), ("method.structure", "dora", 4, TARGETS),
                                       ("adapter.targets", "lora", 4, ["q_proj"])):  # fmt: skip
        with pytest.raises(BadInput, match=f"{wrong}="):
            go_on(llama(), folder, kind, rank, targets)
    weights = folder / "adapter_model.safetensors"
    shutil.copy(weights, folder / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(BadInput, match=r"pickle.*safe_serialization"):
        go_on(llama(), folder, "lora")
