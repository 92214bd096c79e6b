"""A run's data: encoded once per process, in an order that is a function of seed and step alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ablora.data._base import Dataset, Example, Splits
from ablora.data.encode import Encoded, encode_all
from ablora.evals._base import TEXT, Items
from ablora.method.seeds import generator
from ablora.method.structure._reallocates import Probe, reallocating
from ablora.models.base import Base
from ablora.spec import BadInput, RunSpec, canonical, check
from ablora.train.tokens import stored


@dataclass(frozen=True, slots=True)
class TrainData:
    """The training items of one run and the order it sees them in."""

    items: Sequence[Encoded]
    seed: int
    batch_size: int
    probe: tuple[Encoded, ...] = ()
    """What a method that moves ranks compares losses on."""

    def batch(self, step: int) -> list[Encoded]:
        """The examples of optimizer step `step` (from 1): a resume needs no state but the step."""
        first = (step - 1) * self.batch_size
        return [self.items[self._index(position)] for position in range(first, first + self.batch_size)]

    def _index(self, position: int) -> int:
        epoch, within = divmod(position, len(self.items))
        return _permutation(self.seed, epoch, len(self.items))[within]


@lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, count: int) -> Sequence[int]:
    return torch.randperm(count, generator=generator("order", seed, epoch)).tolist()


@lru_cache(maxsize=8)
def _splits(dataset: Dataset, content: str) -> Splits:
    return dataset.load()


@lru_cache(maxsize=24)
def _encoded(
    dataset: Dataset, content: str, model: object, split: str, max_tokens: int, max_items: int | None, base: "_Key",
    cache: Path | None,
) -> tuple[Items, tuple[str, ...]]:  # fmt: skip
    examples: tuple[Example, ...] = getattr(_splits(dataset, content), split)[:max_items]
    vocabulary = cast(nn.Embedding, base.base.model.get_input_embeddings()).num_embeddings
    key = {"dataset": canonical(dataset), "model": canonical(model), "split": split}
    key |= {"max_tokens": max_tokens, "max_items": max_items}
    done = stored(key, cache, lambda: encode_all(examples, base.base.tokenizer, max_tokens, vocab_size=vocabulary))
    left_out = set(done.dropped)
    return Items(dataset, tuple(e for e in examples if e.item not in left_out), done.items), done.dropped


class _Key:
    """A base that does not take part in a cache's key (the model's specification does)."""

    def __init__(self, base: Base):
        self.base = base

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key)


def items_of(
    spec: RunSpec, base: Base, split: str, max_items: int | None, cache: Path | None = None
) -> tuple[Items, tuple[str, ...]]:
    """A split's items (the first `max_items`) and the ids of those left out for being over train.max_tokens; their
    tokens are kept in `cache`."""
    content = spec.dataset.fingerprint()
    most = spec.train.max_tokens
    items, left_out = _encoded(spec.dataset, content, spec.model, split, most, max_items, _Key(base), cache)
    if not items.encoded:
        raise BadInput("dataset", getattr(spec.dataset, "name", "?"), f"a data set whose {split} split has items")
    return items, left_out


def forget_encoded() -> None:
    """Read or make tokens anew from here on: another process may have taken their files away."""
    _encoded.cache_clear()


def train_data(spec: RunSpec, base: Base, cache: Path | None = None) -> TrainData:
    """A run's training data."""
    items, _ = items_of(spec, base, "train", None, cache)
    probe = ()
    if (structure := reallocating(spec.method)) is not None:
        found, _ = items_of(spec, base, structure.probe.split, None, cache)
        probe = choose_probe(found.encoded, structure.probe, spec.seed)
    return TrainData(items.encoded, spec.seed, spec.train.batch_size, probe)


def left_out(spec: RunSpec, base: Base, cache: Path | None = None) -> dict[str, int]:
    """How many items of what a run asks for are over train.max_tokens, by split; of evaluations of one split the one
    that asks for most counts.

    From the specification alone, not from what a process happened to read: one that found every evaluation finished
    reads none of their items.
    """
    structure = reallocating(spec.method)
    asked: list[tuple[str, int | None]] = [("train", None)]
    asked += [(structure.probe.split, None)] if structure is not None else []
    asked += [(task.split, task.max_items) for task in spec.eval.tasks.values() if task.split != TEXT]
    out: dict[str, int] = {}
    for split, most in asked:
        out[split] = max(out.get(split, 0), len(items_of(spec, base, split, most, cache)[1]))
    return out


def choose_probe(items: Sequence[Encoded], probe: Probe, seed: int) -> tuple[Encoded, ...]:
    """A run's items of a probe."""
    legal = f"1 to {len(items)}, the items of the {probe.split} split"
    check(probe.items <= len(items), "method.structure.probe.items", probe.items, legal)
    order = torch.randperm(len(items), generator=generator("probe", seed)).tolist()
    return tuple(items[i] for i in order[: probe.items])
