"""Predicted against what real steps hold: every storage from its birth to its death, on the embedded base."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ablora.data.arithmetic import Arithmetic
from ablora.method.adapt import adapt
from ablora.models.base import Embedded, load
from ablora.models.passes import WORTH
from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
from ablora.train.data import train_data
from ablora.train.loop import train_step
from ablora.train.member import RunState
from ablora.train.memory import predict
from ablora.train.memory_live import Live
from presets import method

PICO = Embedded(name="pico", dtype="float32")
BATCH = 8


def specs(
    preset: str, runs: int, rank: int | None = None, dropout: float = 0.0, micro: int | None = None, batch: int = BATCH
) -> list[RunSpec]:
    """Every step has all the items that there are, so that its length is the one that is predicted."""
    one = RunSpec(
        method=method(preset),
        model=PICO,
        dataset=Arithmetic(name="arithmetic", max_train_items=batch),
        train=TrainSpec(lr=1e-3, max_steps=5, batch_size=batch, micro_batch=micro),
        eval=EvalSpec(tasks={}),
        adapter=AdapterSpec(dropout=dropout),
        rank=rank,
        seed=0,
    )
    return [replace(one, seed=seed) for seed in range(runs)]


def held(runs: list[RunSpec]) -> int:
    """Bytes that the second step holds at most over what is there before it, the optimizers' state among that."""
    base = load(PICO)
    adapted = adapt(base.model, runs, [None] * len(runs), None)
    nothing = cast(Any, SimpleNamespace())
    try:
        live = Live(base.model.parameters())
        with live:
            members = [RunState(i, nothing, nothing, s, train_data(s, base), adapted) for i, s in enumerate(runs)]
            train_step(base, adapted, members)
            between = live.bytes
            live.since()
            train_step(base, adapted, members)
        assert live.bytes == between, "nothing more after the second step than after the first"
        assert all(p.grad is None for member in members for p in member.parameters.values())
        return live.peak - between
    finally:
        adapted.detach()


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize(
    ("preset", "runs", "rank", "dropout"),
    [("lora", 3, 64, 0.0), ("lora", 1, 8, 0.1), ("goat", 3, 32, 0.1), ("dora", 2, 32, 0.0), ("full", 1, None, 0.0)],
)
def test_what_a_real_step_holds_is_predicted(preset, runs, rank, dropout, micro):
    asked = specs(preset, runs, rank, dropout, micro)
    found = predict(asked, WORTH)
    assert found.step_bytes == pytest.approx(held(asked), rel=0.05)


def test_gradients_count_where_they_are_more_than_what_is_kept():
    """Full fine-tuning of one example: at the end of the backward pass the gradients are all there, and little else."""
    asked = specs("full", 1, batch=1)
    found = predict(asked, WORTH)
    assert found.gradients > 0
    assert found.step_bytes == pytest.approx(held(asked), rel=0.1)
