"""How long the rows of a run get: from its data's lengths and its batches, without a seed and without weights."""

from functools import lru_cache
from typing import NamedTuple

import torch

from ablora.data.encode import Encoded
from ablora.evals._base import TEXT
from ablora.evals.answer_loss import chunks_of
from ablora.method.seeds import generator
from ablora.models.base import without_weights
from ablora.spec import RunSpec
from ablora.train.data import items_of

SAMPLE = 2048
"""Items of a split that are looked at: the first ones. Tokenising takes 0.2 ms an item."""
BATCHES = 512
"""Micro-batches that are drawn for the longest of them; a run with fewer draws as many as it has."""


class Length(NamedTuple):
    """Of a row."""

    tokens: int
    labels: int


def of_batches(spec: RunSpec) -> Length:
    """The longest row that a run's micro-batches are expected to make, and the most labels of one.

    Batches are drawn from the data in an order that is no run's own: a memory that differs between seeds would cut
    equal runs into unequal packs. A run of more than 512 micro-batches may meet a longer one.
    """
    size = spec.train.micro_batch or spec.train.batch_size
    cuts = -(-spec.train.batch_size // size)
    return _longest(_lengths(spec, "train", None), size, max(1, min(BATCHES, spec.train.max_steps * cuts)))


@lru_cache(maxsize=1024)
def _longest(items: tuple[Length, ...], size: int, draws: int) -> Length:
    draw, tokens, labels = generator("memory"), [], []
    sizes = torch.tensor(items)
    for _ in range(draws):
        chosen = sizes[torch.randint(len(items), (size,), generator=draw)]
        tokens.append(int(chosen[:, 0].sum()))
        labels.append(int(chosen[:, 1].sum()))
    return Length(max(tokens), max(labels))


def of_chunks(spec: RunSpec, split: str, max_items: int | None) -> Length:
    """The longest row of an evaluation that goes through a split's items in chunks, and the most labels of one."""
    items = [Encoded((0,) * n, n - labels, "") for n, labels in _lengths(spec, split, max_items)]
    chunks = [chunk for (chunk,) in chunks_of([items])]
    tokens = max(sum(len(e.input_ids) for e in chunk) for chunk in chunks)
    return Length(tokens, max(sum(len(e.input_ids) - e.answer_start for e in chunk) for chunk in chunks))


def of_prompts(spec: RunSpec, split: str, max_items: int | None) -> Length:
    """The longest prompt of a split, and the number of its items."""
    items = _lengths(spec, split, max_items)
    return Length(max(n - labels for n, labels in items), len(items))


def _lengths(spec: RunSpec, split: str, max_items: int | None) -> tuple[Length, ...]:
    assert split != TEXT
    most = SAMPLE if max_items is None else min(SAMPLE, max_items)
    return _found(_Data(spec), split, most)


class _Data:
    """A run's data, by what decides their lengths."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self._key = spec.dataset, spec.model, spec.train.max_tokens

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Data) and self._key == other._key


@lru_cache(maxsize=256)
def _found(data: _Data, split: str, most: int) -> tuple[Length, ...]:
    items, _ = items_of(data.spec, without_weights(data.spec.model), split, most)
    return tuple(Length(len(e.input_ids), len(e.input_ids) - e.answer_start) for e in items.encoded)
