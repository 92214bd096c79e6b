"""Adapters that PEFT itself saved: their update is what merging them adds to the base, or they are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ablora.spec import BadInput
from ablora_analysis.measure.from_peft import open_peft
from ablora_analysis.measure.main import measure_adapters
from ablora_analysis.measure.update import decompose
from tiny import llama

KINDS = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    return folder


def load(base: Path):
    return AutoModelForCausalLM.from_pretrained(base)


def moved(model: torch.nn.Module) -> None:
    """Every factor moved at random, as training would."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))


def trained(base: Path, folder: Path, **options) -> Path:
    """A folder that PEFT saved; a start that changes the base is converted."""
    model = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=6, target_modules=KINDS, **options))
    converted = {}
    if isinstance(options.get("init_lora_weights"), str) and options["init_lora_weights"] in ("pissa", "olora"):
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(folder / "initial")
        model.peft_config["default"].init_lora_weights = options["init_lora_weights"]
        converted = {"path_initial_model_for_weight_conversion": str(folder / "initial")}
    moved(model)
    model.save_pretrained(folder / "saved", **converted)
    return folder / "saved"


OPTIONS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "ranks": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3}},
    "alphas": {"alpha_pattern": {r"model\.layers\.0\..*q_proj": 40}, "use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "rspissa": {"init_lora_weights": "pissa", "use_rslora": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_update_is_what_merging_adds(base, tmp_path, name):
    folder = trained(base, tmp_path, **OPTIONS[name])
    adapter = open_peft(folder, base)
    clean, tuned = load(base), PeftModel.from_pretrained(load(base), str(folder)).merge_and_unload()
    assert len(adapter.ranks) == 4
    for module, rank in adapter.ranks.items():
        (part,) = adapter.parts(module).values()
        delta = (tuned.get_submodule(module).weight - clean.get_submodule(module).weight).detach().double()
        found = part.update.B @ part.update.A
        np.testing.assert_allclose(found.numpy(), delta.numpy(), atol=3e-6)
        assert part.rank == rank
        assert len(decompose(part.update).sigma) == rank
    assert adapter.start("any") is None


def test_a_folder_names_its_base_and_is_measured(base, tmp_path):
    one = trained(base, tmp_path / "one")
    frames = measure_adapters([one], roots=None)
    assert set(frames["subspace"]["id"]) == {str(one)}
    assert frames["phi"].empty
    assert set(frames["phi"].columns) >= {"id_b", "shared_start", "null"}
    two = trained(base, tmp_path / "two", use_rslora=True)
    frames = measure_adapters([one, two], base)
    assert frames["phi"]["shared_start"].isna().all()  # PEFT does not say where a pair started
    assert len(frames["phi"]) == 4 * 2 * 16


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory) -> Path:
    return trained(base, tmp_path_factory.mktemp("plain"))


def edited(plain: Path, tmp_path: Path, **config) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path / "edited"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "lora_magnitude_vector='missing"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "converted"),
        ({"init_lora_weights": "lora_ga"}, "converted"),
        ({"init_lora_weights": "loftq"}, "quantised"),
        ({"init_lora_weights": "unheard_of"}, "gaussian"),
        ({"lora_bias": True}, "lora_bias"),
        ({"an_option_of_next_year": 1}, "an_option_of_next_year=1"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"r": 5}, r"lora_A.weight.*\(5, "),
        ({"base_model_name_or_path": "some/hub-name"}, "--base"),
    ],
)
def test_what_is_not_plain_lora_is_refused_with_what_would_be_legal(base, plain, tmp_path, config, named):
    own = None if "base_model_name_or_path" in config else base
    with pytest.raises(BadInput, match=named) as caught:
        open_peft(edited(plain, tmp_path, **config), own)
    assert "edited" in str(caught.value)


def spoil(folder: Path, change) -> Path:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t[FIRST].view(-1)[7].fill_(float("nan")), f"{FIRST}.*1 of 192 not finite"),
        (lambda t: t[FIRST].view(-1)[7].fill_(float("inf")), f"{FIRST}.*1 of 192 not finite"),
        (lambda t: t.pop(FIRST), f"{FIRST}.*missing"),
        (
            lambda t: t.update({FIRST.replace("lora_A", "lora_magnitude_vector"): torch.ones(3)}),
            "magnitude.*not expected",
        ),
        (lambda t: t.update({FIRST: torch.zeros(4, 47)}), r"lora_A.*\(4, 47\).*\(4, 48\).*base"),
        (lambda t: t.update({k.replace("layers.0", "layers.7"): t.pop(k) for k in list(t)}), "layers.7.*absent"),
    ],
)
def test_damaged_tensors_and_adapters_of_another_base_are_named(base, plain, tmp_path, change, named):
    with pytest.raises(BadInput, match=named) as caught:
        open_peft(spoil(edited(plain, tmp_path), change), base)
    assert "adapter_model.safetensors" in str(caught.value)


def test_a_cut_file_a_missing_one_and_no_base_are_named(base, plain, tmp_path):
    folder = edited(plain, tmp_path)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"adapter_model.safetensors.*whole safetensors"):
        open_peft(folder, base)
    path.unlink()
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors is not there"):
        open_peft(folder, base)
    with pytest.raises(BadInput, match="base="):
        open_peft(plain, tmp_path)
