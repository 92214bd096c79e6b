"""Every tuner of PEFT as a method: what a run of it promises, over all that are not refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("peft", reason="the extra `peft` is not installed")

sys.path.insert(0, str(Path(__file__).parent))
import try_tuners
from peft import PeftModel
from try_tuners import HEAD, method, one_by_one, packed, train, tried

from ablora.cli import main
from ablora.config.compose import Composer, resolve
from ablora.config.loader import open_loader
from ablora.method.adaptation import Adaptation
from ablora.method.dropout import Draw
from ablora.method.peft_tuner import IN_THE_BASES_DTYPE, PLACES_OF_ITS_OWN, REFUSED, Peft, tuners
from ablora.method.plan import check_cell, count
from ablora.models.rows import lay_out
from ablora.spec import BadInput, RunSpec, run_id
from ablora.tree import build
from tiny import llama, logits, made_up, qwen

DOCUMENT = Path(__file__).parents[2] / "docs" / "peft_tuners.md"
HERE = [name for name in tried() if name != "ADAMSS"]
"""ADAMSS wants scikit-learn, which is no dependency."""
SMALL: dict[str, dict[str, Any]] = {
    "OFT": {"oft_block_size": 8},
    "ROAD": {"group_size": 8},
    "FOURIERFT": {"n_frequency": 100},
    "WAVEFT": {"n_frequency": 100},
    **{name: {"r": 8} for name in ("GRALORA", "HIRA", "MISS", "PEANUT", "PSOFT", "RANDLORA")},
    "SHIRA": {"r": 4, "random_seed": 0},
}
"""What PEFT's defaults are too large for on the tiny base."""
ITEMS = made_up(1, 4)


def small(tuner: str, **more: Any) -> Peft:
    return method(tuner, **{**SMALL.get(tuner, {}), **more})


def inside(model: nn.Module) -> list[object]:
    """All that a tuner might leave in a model, but for its numbers."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        (name, id(m), sorted(vars(m)), [len(getattr(m, hook)) for hook in hooks], m.training)
        for name, m in model.named_modules()
    ] + [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()]


@pytest.mark.parametrize("tuner", HERE)
def test_it_trains_resumes_and_loads_in_peft_and_the_base_is_not_touched(tuner, tmp_path):
    model = llama()
    before, weights = inside(model.requires_grad_(False)), {k: v.clone() for k, v in model.state_dict().items()}
    adapted, run, losses = train(small(tuner), model, 3)
    saved = train(small(tuner), llama(), 1)
    state = {k: v.clone() for k, v in saved.state.state().items()}, saved.state.counters()
    resumed = train(small(tuner), llama(), 2, state)
    assert saved.losses + resumed.losses == losses
    assert all(torch.equal(p, resumed.state.parameters[name]) for name, p in run.parameters.items())

    adapted.save(0, tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path).eval()
    ours = packed(adapted, ITEMS)
    torch.testing.assert_close(ours, one_by_one(loaded, ITEMS), rtol=1e-5, atol=1e-5)
    assert (ours - one_by_one(llama(), ITEMS)).abs().max() > 1e-4, "what was learnt must be visible"
    assert sum(r.parameters for r in adapted.records[0].values()) == sum(p.numel() for p in run.parameters.values())

    adapted.detach()
    assert inside(model) == before
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("tuner", HERE)
def test_the_plan_counts_what_is_trained(tuner, tmp_path):
    llama().config.save_pretrained(tmp_path)
    trained = train(small(tuner), llama(), 0).state.parameters
    assert count(small(tuner), tmp_path, "all-linear", None) == sum(p.numel() for p in trained.values())


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal", True])
def test_a_start_that_changes_weights_changes_the_twins(start, tmp_path):
    model = llama()
    out, weights = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    adapted = train(small("LORA", init_lora_weights=start), model, 2).adapted
    assert torch.equal(logits(model), out)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    adapted.save(0, tmp_path)
    ours = packed(adapted, ITEMS)
    torch.testing.assert_close(
        ours, one_by_one(PeftModel.from_pretrained(llama(), tmp_path), ITEMS), rtol=1e-4, atol=1e-4
    )


def test_trained_biases_and_whole_modules_are_copies(tmp_path):
    model = qwen()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    adapted, run, _ = train(small("LORA", bias="all", modules_to_save=["norm"]), model, 2)
    assert {"bias", "norm"} <= {part for name in run.parameters for part in name.split(".")}
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    adapted.save(0, tmp_path)
    loaded = PeftModel.from_pretrained(qwen(), tmp_path)
    torch.testing.assert_close(packed(adapted, ITEMS), one_by_one(loaded, ITEMS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tuner", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE", "VERA"])
def test_prompts_of_any_lengths_are_answered_as_each_alone(tuner):
    adapted = train(small(tuner), llama(), 2).adapted
    prompts = [list(e.input_ids[:n]) for e, n in zip(ITEMS, (5, 8, 3, 8))]
    ids = torch.tensor([[96] * (8 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (8 - len(p)) + [1] * len(p) for p in prompts])
    fixed = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 96, "pad_token_id": 96}
    out = adapted.generate(input_ids=ids, attention_mask=mask, **fixed)
    for prompt, got in zip(prompts, out[:, 8:].tolist()):
        assert got == alone(adapted, prompt)


def alone(adapted: Adaptation, prompt: list[int]) -> list[int]:
    """Six tokens, each by PEFT's own forward over all before it."""
    text = list(prompt)
    for _ in range(6):
        with torch.no_grad():
            text.append(int(adapted.twin.tuned(input_ids=torch.tensor([text])).logits[0, -1].argmax()))  # type: ignore[attr-defined]
        if text[-1] == 96:
            break
    return (text[len(prompt) :] + [96] * 6)[:6]


@pytest.mark.parametrize("tuner", ["LORA", "LOKR", "PVERA", "BOTTLENECK"])
def test_draws_are_of_seed_step_and_micro(tuner):
    dropout = {"LORA": "lora_dropout", "LOKR": "module_dropout", "BOTTLENECK": "bottleneck_dropout"}.get(tuner)
    adapted = train(small(tuner, **({dropout: 0.5} if dropout else {})), llama(), 3).adapted
    rows = lay_out([ITEMS])
    state = torch.get_rng_state()
    with torch.no_grad():
        still = [adapted.hidden(rows) for _ in range(2)]
        a, again, other = (adapted.hidden(rows, [Draw(0, 1, micro, 0.0)]) for micro in (0, 0, 1))
        assert torch.equal(*still)
        assert torch.equal(a, again)
        assert not torch.equal(a, other)
        assert torch.equal(adapted.hidden(rows), still[0]), "evaluation draws nothing after a training pass"
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_tuners_own_modules_ever_drop_anything():
    """As with every other method: the base's own dropout rests."""
    model = llama()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5  # type: ignore[assignment]
    adapted, rows = train(small("LORA"), model, 2).adapted, lay_out([ITEMS])
    with torch.no_grad():
        assert torch.equal(adapted.hidden(rows, [Draw(0, 1, 0, 0.0)]), adapted.hidden(rows))


def test_a_budget_knows_a_tuners_one_size(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "method=ia3", "budget.params=30k"]) == 2
    assert "near 30,000 it has 3,584 at any rank and none more" in capsys.readouterr().err
    assert main(["plan", "method=ia3", "budget.params=3600"]) == 0
    assert "(-0.4% of the budget 3,600)" in capsys.readouterr().out


def test_a_start_is_of_the_runs_seed_alone():
    first = train(small("VERA", init_weights=False), llama(), 0).state.parameters
    torch.rand(3)
    second = train(small("VERA", init_weights=False), llama(), 0).state.parameters
    assert all(torch.equal(p, second[name]) for name, p in first.items())


def test_a_bottleneck_is_two_linear_layers_behind_a_linear_layer():
    adapted, run, _ = train(method("BOTTLENECK", bottleneck_size=5, act_fn="tanh", scaling=0.5), llama(), 2)
    layer = adapted.twin.model.get_submodule("model.layers.0.mlp.down_proj")  # type: ignore[attr-defined]
    name = "base_model.model.model.layers.0.mlp.down_proj.bottleneck_"
    D, d, U, u = (run.parameters[f"{name}{part}"] for part in (
        "down.default.weight", "down.default.bias", "up.default.weight", "up.default.bias"))  # fmt: skip
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
    y = x @ layer.base_layer.weight.T
    torch.testing.assert_close(layer(x), y + 0.5 * (torch.tanh(y @ D.T + d) @ U.T + u))
    assert sorted(adapted.records[0]) == [
        f"model.layers.{i}.{place}" for i in (0, 1) for place in ("mlp.down_proj", "self_attn.o_proj")
    ]
    fresh = train(method("BOTTLENECK"), llama(), 0).adapted
    assert torch.equal(packed(fresh, ITEMS), one_by_one(llama(), ITEMS)), "step 0 is the base"


@pytest.mark.parametrize("tuner", sorted(REFUSED))
def test_refused_tuners_say_why(tuner):
    with pytest.raises(BadInput, match=r"tuner=.*VERA.*") as refused:
        Peft(name="x", tuner=tuner, config={})
    assert REFUSED[tuner] in str(refused.value)


@pytest.mark.parametrize(
    ("tuner", "config", "said"),
    [
        ("LORAA", {}, r"tuner='LORAA' .* BOFT, BOTTLENECK, .* VERA"),
        ("VERA", {"rank": 3}, r"config.rank=3 .* VeraConfig has .*vera_dropout"),
        ("VERA", {"peft_type": "LORA"}, r"config.peft_type='LORA' .* VeraConfig has"),
        ("IA3", {"target_modules": ["q_proj"], "feedforward_modules": ["up_proj"]}, r"IA3 takes; it says: .*subset"),
        ("BOTTLENECK", {"bottleneck_size": 0}, r"bottleneck_size=0 must be an integer of at least 1"),
        ("BOTTLENECK", {"bottleneck_dropout": 1.0}, r"bottleneck_dropout=1.0 must be a probability"),
        ("BOFT", {"boft_n_butterfly_factor": 2}, "left at its default: it counts for nothing but 1"),
        ("LORA", {"init_lora_weights": "eva"}, "use method=eva"),
        ("LORA", {"init_lora_weights": "pissa_niter_4"}, "pissa, without niter"),
        ("LORA", {"kasa_config": {"beta": 1}}, r"config.kasa_config=.* left at its default: it is trained on the loss"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tuner, config, said):
    with pytest.raises(BadInput, match=said):
        Peft(name="x", tuner=tuner, config=config)


def test_what_peft_refuses_is_refused_by_the_plan_with_its_reason(tmp_path):
    llama().config.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"method.config=.* PEFT's C3A .* block size should be a factor"):
        count(Peft(name="c3a", tuner="C3A", config={}), tmp_path, "all-linear", None)
    with pytest.raises(BadInput, match=r"method.config=.*nowhere.* PEFT's VERA .* Please check"):
        count(Peft(name="vera", tuner="VERA", config={"target_modules": ["nowhere"]}), tmp_path, "all-linear", None)
    with pytest.raises(BadInput, match="something that TRAINABLE_TOKENS trains"):
        count(Peft(name="tokens", tuner="TRAINABLE_TOKENS", config={}), tmp_path, "all-linear", None)


def test_without_peft_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft.mapping", None)
    with pytest.raises(BadInput, match=r"pip install ablora\[peft\]"):
        Peft(name="vera", tuner="VERA", config={})


def composed(*overrides: str) -> RunSpec:
    with open_loader() as loader:
        tree = resolve(Composer(loader).base(list(overrides)))
    keys = ("method", "model", "dataset", "train", "eval", "adapter", "rank", "seed")
    return build({key: tree[key] for key in keys}, RunSpec)


def test_a_run_is_what_the_tuner_makes_of_its_fields():
    vera = run_id(composed("method=vera"))
    assert run_id(composed("method=vera", "rank=4")) == vera, "it has no rank"
    assert run_id(composed("method=vera", "+method.config.d_initial=0.1")) == vera, "PEFT's default, written"
    assert run_id(composed("method=vera", "+method.config.d_initial=0.2")) != vera
    assert run_id(composed("method=vera", "+method.config.target_modules=null")) != vera, "PEFT's places, not the run's"
    ranks = [run_id(composed("method=bottleneck", f"rank={rank}")) for rank in (4, 8)]
    assert ranks[0] != ranks[1]
    assert composed("method=bottleneck", "rank=4").method.config["bottleneck_size"] == 4
    assert composed("method=boft", "adapter.dropout=0.1").method.config["boft_dropout"] == 0.1


def test_targets_are_the_runs_or_the_tuners_own():
    places = {
        name: set(train(small(name, **more), llama(), 0).adapted.records[0])
        for name, more in (("VERA", {}), ("IA3", {}), ("HRA", {"target_modules": None}))
    }
    assert {name.split(".")[-1] for name in places["IA3"]} == {"k_proj", "v_proj", "down_proj"}
    assert len(places["VERA"]) == 14
    assert {name.split(".")[-1] for name in places["HRA"]} == {"q_proj", "v_proj"}


def test_dtypes_that_a_tuner_makes_nothing_of_are_refused_by_the_plan():
    with pytest.raises(BadInput, match=r"adapter.compute_dtype='bfloat16'"):
        check_cell(composed("method=ia3", "adapter.compute_dtype=bfloat16"))
    tuner = IN_THE_BASES_DTYPE[1]
    tree = composed("method=ia3", "model.dtype=bfloat16", f"method.tuner={tuner}")
    with pytest.raises(BadInput, match=r"model.dtype='bfloat16' .* LN_TUNING"):
        check_cell(tree)
    assert check_cell(composed("method=ia3", "model.dtype=bfloat16")) == 3584


def test_the_configuration_that_is_saved_is_in_order(tmp_path):
    train(small("VERA"), llama(), 0).adapted.save(0, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["inference_mode"] is True
    assert config["base_model_name_or_path"] is None


def test_the_document_names_every_tuner():
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(tuners()), "a new PEFT: python tests/method/try_tuners.py > docs/peft_tuners.md"
    assert text.endswith(try_tuners.refusals())
    assert text.startswith(HEAD.split("%s")[0])
    assert all(f"| `{name}` |" in text and name in tuners() for name in (*PLACES_OF_ITS_OWN, *HERE))
