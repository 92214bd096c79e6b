"""Predicted memory: exact where it can be, additive, and growing with what it must grow with."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from ablora.data.arithmetic import Arithmetic
from ablora.evals.answer_loss import AnswerLoss
from ablora.evals.generation import Generation
from ablora.method.adapt import adapt
from ablora.method.full import Full
from ablora.method.peft_tuner import Peft
from ablora.models.base import Base, Embedded, load
from ablora.models.rows import lay_out
from ablora.spec import AdapterSpec, BadInput, EvalSpec, RunSpec, TrainSpec
from ablora.train.member import make_optimizer
from ablora.train.memory import predict, suggest_micro_batch
from ablora.train.memory_trace import passes
from presets import fitting, method
from tiny import made_up

PICO = Embedded(name="pico", dtype="float32")
TASKS = {
    "loss": AnswerLoss(split="test", max_items=20),
    "text": Generation(split="test", max_items=4, max_new_tokens=8),
}


@cache
def base() -> Base:
    return load(PICO)


def spec(preset: str = "lora", rank: int | None = None, dropout: float = 0.0, **train: Any) -> RunSpec:
    chosen = method(preset)
    return RunSpec(
        method=chosen,
        model=PICO,
        dataset=Arithmetic(name="arithmetic", max_train_items=64),
        train=replace(TrainSpec(lr=1e-3, max_steps=5, batch_size=4), **train),
        eval=EvalSpec(tasks={}),
        adapter=AdapterSpec(dropout=dropout),
        rank=rank or (fitting(chosen) if hasattr(chosen, "structure") else 8),
        seed=0,
    )


@pytest.mark.parametrize("preset", ["lora", "pissa", "dora", "goat", "adalora", "lora_fa", "full"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_runs_own_tensors_are_predicted_to_the_byte(preset, optimizer):
    run = spec(preset, optimizer=optimizer)
    adapted = adapt(base().model, [run], [None], None)
    try:
        stepped = make_optimizer(run, adapted.roles(0))
        for parameter in adapted.parameters(0).values():
            parameter.grad = torch.zeros_like(parameter)
        stepped.step()
        state = [t for own in stepped.state.values() for t in own.values() if isinstance(t, torch.Tensor)]
        fixed = getattr(adapted, "constants", lambda member: {})(0)
        found = predict([run])
        assert found.trained == sum(p.nbytes for p in adapted.parameters(0).values())
        assert predict([replace(run, train=replace(run.train, micro_batch=1))]).gradients == found.trained
        assert found.fixed == sum(t.nbytes for t in fixed.values())
        assert found.optimizer == sum(t.nbytes for t in state)
    finally:
        adapted.detach()
    assert found.base == sum(p.nbytes for p in base().model.parameters())


@pytest.mark.parametrize("preset", ["lora", "pissa", "dora", "goat"])
def test_what_is_kept_for_backward_is_what_autograd_keeps(preset):
    """Counted a second way: the storages that autograd saves in a real forward pass, but for weights and factors."""
    run = spec(preset)
    adapted = adapt(base().model, [run], [None], None)
    try:
        rows = lay_out([made_up(0, 12)])
        saved: dict[int, torch.Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            hidden = adapted.hidden(rows)
        known = [*base().model.parameters(), *adapted.parameters(0).values(), *adapted.constants(0).values()]  # type: ignore
        own = {t.untyped_storage().data_ptr() for t in known}
        kept = sum(t.untyped_storage().nbytes() for at, t in saved.items() if at not in own)
    finally:
        adapted.detach()
    assert hidden.requires_grad
    assert passes(run).kept.at(rows.ids.shape[1]) == pytest.approx(kept, rel=0.06)


@pytest.mark.parametrize("tuner", ["SHIRA", "FROD"])
def test_a_tuner_that_starts_from_weights_counts_as_all_of_its_targets(tuner):
    """There are none to read; before, a legal run was refused for it."""
    config = {"progressbar": False} if tuner == "FROD" else {}
    found = predict([replace(spec(), method=Peft(name=tuner, tuner=tuner, config=config), rank=None)])
    assert found == predict([replace(spec(), method=Full(name="", part="targets"), rank=None)])


def test_runs_add_up():
    runs = [replace(spec(), seed=i) for i in range(3)]
    one, three = predict(runs[:1]), predict(runs)
    assert three.peak_bytes - three.process - three.base == 3 * (one.peak_bytes - one.process - one.base)


def test_a_pack_is_as_wide_as_its_widest_run():
    short, long, wide = spec(batch_size=2), spec(batch_size=8), spec(rank=32)
    both = predict([short, long])
    assert both.activations == 2 * predict([long]).activations
    assert predict([spec(), wide]).trained == 2 * predict([wide]).trained
    assert predict([spec(), wide]).optimizer == predict([spec()]).optimizer + predict([wide]).optimizer
    assert predict([spec("dora"), wide]).trained < 2 * predict([wide]).trained


@pytest.mark.parametrize("preset", ["lora", "dora", "goat"])
def test_memory_grows_with_rank_batch_length_and_dropout(preset):
    peaks = [predict([spec(preset, rank)]).peak_bytes for rank in (8, 16, 24, 64)]
    assert peaks == sorted(set(peaks))
    peaks = [predict([spec(preset, batch_size=size)]).peak_bytes for size in (1, 2, 4, 8)]
    assert peaks == sorted(set(peaks))
    assert predict([spec(preset, max_tokens=100)]).peak_bytes < predict([spec(preset)]).peak_bytes
    assert predict([spec(preset, dropout=0.1)]).activations > predict([spec(preset)]).activations


@pytest.mark.parametrize("preset", ["pissa", "dora", "goat"])
def test_ranks_between_counted_ones_are_interpolated_truly(preset):
    from ablora.train.memory_trace import _Key, _passes

    run = spec(preset, rank=48)
    for name, own in _passes(_Key(run))._asdict().items():
        assert getattr(passes(run), name).at(1000, 100) == pytest.approx(own.at(1000, 100), rel=0.02), name


def test_evaluations_count_where_they_are_larger():
    run = replace(spec(batch_size=1), eval=EvalSpec(tasks=TASKS))
    assert predict([run]).evaluation > predict([run]).step_bytes
    longer = replace(TASKS["text"], max_items=32, max_new_tokens=400)
    assert predict([replace(run, eval=EvalSpec(tasks={"text": longer}))]).evaluation > 0
    assert predict([replace(run, train=replace(run.train, max_steps=0))]).step_bytes <= predict([run]).step_bytes


def test_the_largest_micro_batch_within_a_limit():
    runs = [spec(batch_size=8)] * 2
    limit = predict([spec(batch_size=8, micro_batch=3)] * 2).peak_bytes
    assert suggest_micro_batch(runs, limit) == 3
    assert suggest_micro_batch(runs, 2**40) == 8
    assert suggest_micro_batch(runs, 2**20) is None
    with pytest.raises(BadInput):
        predict([])


def test_of_runs_that_pass_one_after_another_the_heaviest_counts():
    runs = [spec(batch_size=2), spec(batch_size=8), spec(batch_size=2)]
    own = [predict([run]) for run in runs]
    found = predict(runs, worth=1)
    assert (found.activations, found.backward) == (own[1].activations, own[1].backward)
    assert found.gradients == sum(part.trained for part in own)
    assert found.peak_bytes < predict(runs, worth=10**6).peak_bytes == predict(runs).peak_bytes
