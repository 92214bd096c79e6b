"""What every method promises that is no low-rank pair, over every such YAML: a new one is under test as it exists."""

from typing import Any, cast

import pytest
import torch
from packs import spec
from transformers import PreTrainedTokenizerFast

from ablora.method.adapt import adapt
from ablora.method.adaptation import label_losses_of
from ablora.models.base import Base
from ablora.models.rows import label_losses, lay_out
from ablora.spec import BadInput
from ablora.train.data import TrainData
from ablora.train.loop import Trained, train_step
from ablora.train.member import RunState
from presets import every, others
from tiny import llama, logits, made_up

OTHERS = others()


def train(preset: str, steps: int, *overrides: str, state=None, model=None, **more):
    """A run of some steps over the tiny base: (base, adapted, run, losses)."""
    base = Base(llama() if model is None else model, cast(PreTrainedTokenizerFast, None))
    s = spec(preset, *overrides, **more)
    adapted = adapt(base.model, [s], [None], None)
    nowhere: Any = None
    run = RunState(0, nowhere, nowhere, s, TrainData(made_up(0), 0, 4), adapted)
    if state is not None:
        run.load(*state)
    losses = [cast(Trained, train_step(base, adapted, [run])[0]).loss_nats for _ in range(steps)]
    return base, adapted, run, losses


def test_every_preset_is_of_a_kind_that_is_tested():
    assert "full" in OTHERS
    assert len(every()) > len(OTHERS)


@pytest.mark.parametrize("preset", OTHERS)
def test_the_base_comes_back_as_it_was(preset):
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules, out = [type(m) for m in model.modules()], logits(model)
    _, adapted, _, _ = train(preset, 2, model=model)
    adapted.detach()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [type(m) for m in model.modules()] == modules
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model), out)


@pytest.mark.parametrize("preset", OTHERS)
def test_it_learns_and_the_base_stays_to_be_had_beside_it(preset):
    model = llama()
    items = made_up(1, 3)
    plain = label_losses(model, lay_out([items])).detach()
    _, untrained, _, _ = train(preset, 0)
    _, adapted, run, _ = train(preset, 12, model=model)
    seen = lay_out([made_up(0)])
    with torch.no_grad():
        assert label_losses_of(adapted, seen).mean() < label_losses_of(untrained, seen).mean()
    rows = lay_out([items, items])
    with torch.no_grad():
        hidden = adapted.hidden(rows, beside_base=True)
        own, base = adapted.logits(hidden[:, rows.predicts[0]], beside_base=True)
    labels = rows.labels[: len(own)]
    assert torch.equal(torch.nn.functional.cross_entropy(base, labels, reduction="none"), plain)
    assert not torch.allclose(own, base)
    assert all(p.grad is None for p in run.parameters.values()), "none is left between steps"
    label_losses_of(adapted, seen).sum().backward()
    adapted.hand_out_gradients()
    assert all(p.grad is not None for p in run.parameters.values())


@pytest.mark.parametrize("preset", OTHERS)
def test_a_resumed_run_is_the_uninterrupted_one(preset):
    _, _, whole, losses = train(preset, 6, dropout=0.1)
    _, _, first, begun = train(preset, 3, dropout=0.1)
    saved = {name: tensor.clone() for name, tensor in first.state().items()}, first.counters()
    _, _, second, ended = train(preset, 3, state=saved, dropout=0.1)
    assert begun + ended == losses
    assert all(torch.equal(p, second.parameters[name]) for name, p in whole.parameters.items())


@pytest.mark.parametrize("preset", [name for name in OTHERS if not spec(name).method.packs])
def test_it_runs_alone(preset):
    with pytest.raises(BadInput, match="pack of one"):
        adapt(llama(), [spec("lora"), spec(preset)], [None, None], None)


@pytest.mark.parametrize("preset", OTHERS)
def test_what_it_learnt_is_saved_whole(preset, tmp_path):
    _, adapted, run, _ = train(preset, 1)
    adapted.save(0, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "ablora_adapter.json").exists()
    assert not list((tmp_path / "adapter").glob(".*"))
    assert sum(record.parameters for record in adapted.records[0].values()) == sum(
        p.numel() for p in run.parameters.values()
    )


def test_full_fine_tuning_is_the_model_trained_by_torch():
    """Three AdamW steps of every weight, written plainly."""
    _, _, run, losses = train("full", 3, lr=1e-3, schedule="constant", clip_norm=None)
    model, data = llama(), TrainData(made_up(0), 0, 4)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(3):
        loss = label_losses(model, lay_out([data.batch(step + 1)])).mean()
        assert loss.item() == pytest.approx(losses[step], rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    named = dict(model.named_parameters())
    assert set(named) == set(run.parameters)
    assert all(torch.allclose(p, named[name], atol=1e-6) for name, p in run.parameters.items())


def test_full_of_the_targets_trains_their_weights_alone():
    _, adapted, run, _ = train("full", 1, "part=targets")
    assert {name.split(".")[-2] for name in run.parameters} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert all(record.rank is None for record in adapted.records[0].values())


def test_a_tied_weight_is_one_parameter_in_all_its_places():
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    _, adapted, run, _ = train("full", 1, model=model)
    assert "lm_head.weight" not in run.parameters
    assert model.lm_head.weight is model.model.embed_tokens.weight is run.parameters["model.embed_tokens.weight"]
    adapted.detach()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_half_precision_base_is_trained_in_float32():
    base, _, run, _ = train("full", 1, model=llama(torch.bfloat16))
    assert {p.dtype for p in run.parameters.values()} == {torch.float32}
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    with pytest.raises(BadInput, match="all, where the base is"):
        train("full", 1, "part=targets", model=llama(torch.bfloat16))


def test_the_rank_that_was_asked_is_null():
    assert spec("full", rank=40).rank is None
