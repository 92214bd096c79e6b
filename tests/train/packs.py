"""Packs in memory: runs without folders, over the tiny base and made-up data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerFast

from ablora.data.encode import Encoded
from ablora.method.attach import Adapted, Member, attach
from ablora.models.base import Base
from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
from ablora.spectra.library import Library
from ablora.train.data import TrainData
from ablora.train.loop import train_step
from ablora.train.member import Diverged, RunState
from presets import method
from tiny import llama

TRAIN = TrainSpec(lr=3e-3, max_steps=100, batch_size=4)


def spec(preset: str, *overrides: str, rank: int = 8, seed: int = 0, dropout: float = 0.0, **train: Any) -> RunSpec:
    return RunSpec(
        method=method(preset, *overrides),
        model=None,
        dataset=None,
        train=replace(TRAIN, **train),
        eval=EvalSpec(tasks={}),
        adapter=AdapterSpec(dropout=dropout),
        rank=rank,
        seed=seed,
    )


def made_up(seed: int, count: int = 24) -> tuple[Encoded, ...]:
    """Sequences whose answers (9 tokens) follow a rule, so that there is something to learn."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        prompt = torch.randint(1, 96, (int(torch.randint(6, 12, (1,), generator=g)),), generator=g).tolist()
        answer = [(3 * t + 1) % 96 for t in (prompt * 2)[:9]]
        out.append(Encoded((*prompt, *answer), len(prompt), str(i)))
    return tuple(out)


@dataclass
class Pack:
    base: Base
    adapted: Adapted
    runs: list[RunState]

    def steps(self, count: int) -> list[list[float]]:
        """The losses of each run over `count` optimizer steps."""
        losses: list[list[float]] = [[] for _ in self.runs]
        for _ in range(count):
            for i, trained in train_step(self.base, self.adapted, self.runs).items():
                if isinstance(trained, Diverged):
                    self.runs[i].active = False
                    losses[i].append(float("nan"))
                else:
                    losses[i].append(trained.loss_nats)
        return losses


def pack(*specs: RunSpec, data: Sequence[tuple[Encoded, ...]] | None = None) -> Pack:
    base = Base(llama(), cast(PreTrainedTokenizerFast, None))
    members = [Member(s.method, s.rank or 0, s.adapter, s.seed) for s in specs]
    adapted = attach(base.model, members, Library(None))
    runs = []
    for i, s in enumerate(specs):
        items = made_up(s.seed) if data is None else data[i]
        folder: Any = None
        runs.append(RunState(i, folder, folder, s, TrainData(items, s.seed, s.train.batch_size), adapted))
    return Pack(base, adapted, runs)
