"""Packs in memory: runs without folders, over the tiny base and made-up data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from transformers import PreTrainedTokenizerFast

from ablora.data.encode import Encoded
from ablora.evals._kept import nothing
from ablora.method.attach import Adapted, attach
from ablora.method.member import Member
from ablora.method.structure._reallocates import reallocating
from ablora.models.base import Base
from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
from ablora.spectra.library import Library
from ablora.train.data import TrainData
from ablora.train.loop import Trained, train_step
from ablora.train.member import Diverged, RunState
from ablora.train.reallocation import reallocate
from presets import fitting, method
from tiny import calibrated, llama, made_up

TRAIN = TrainSpec(lr=3e-3, max_steps=100, batch_size=4)


def spec(
    preset: str, *overrides: str, rank: int | None = None, seed: int = 0, dropout: float = 0.0, **train: Any
) -> RunSpec:
    """Of rank 8 by default, or the next that the experts divide."""
    chosen = method(preset, *overrides)
    return RunSpec(
        method=chosen,
        model=None,
        dataset=None,
        train=replace(TRAIN, **train),
        eval=EvalSpec(tasks={}),
        adapter=AdapterSpec(dropout=dropout),
        rank=rank or (fitting(chosen) if chosen.has_rank else None),
        seed=seed,
    )


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
                run, found = self.runs[i], trained
                if isinstance(trained, Trained) and run.reallocation_due:
                    found = reallocate(self.base, self.adapted, run, nothing(len(self.runs)))
                if isinstance(found, Diverged):
                    self.runs[i].active = False
                    losses[i].append(float("nan"))
                else:
                    losses[i].append(cast(Trained, trained).loss_nats)
        return losses


def whole(*specs: RunSpec, data: Sequence[tuple[Encoded, ...]] | None = None) -> Pack:
    """Over a base whose widths are whole lanes, for what must be equal bit for bit: a CPU with AVX-512 takes 32 numbers
    of SiLU at a time, and the rest of a tensor by a formula that rounds otherwise. At the tiny base's 48 which numbers
    are the rest depends on the pack."""
    return pack(*specs, data=data, intermediate_size=64)


def pack(*specs: RunSpec, data: Sequence[tuple[Encoded, ...]] | None = None, **sizes: int) -> Pack:
    base = Base(llama(**sizes), cast(PreTrainedTokenizerFast, None))
    items_of = [made_up(s.seed) for s in specs] if data is None else data
    seen = [calibrated(base.model, s.method, s.adapter, items) for s, items in zip(specs, items_of)]
    members = [Member(s.method, s.rank or 0, s.adapter, s.seed, known) for s, known in zip(specs, seen)]
    adapted = attach(base.model, members, Library(None))
    runs = []
    for i, s in enumerate(specs):
        items = items_of[i]
        folder: Any = None
        looks = made_up(s.seed + 1000, 4) if reallocating(s.method) else ()
        runs.append(RunState(i, folder, folder, s, TrainData(items, s.seed, s.train.batch_size, looks), adapted))
    return Pack(base, adapted, runs)
