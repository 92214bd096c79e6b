"""How long the rows of a run get: from its data's lengths and its batches, without a seed and without weights."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from ablora.data.encode import Encoded
from ablora.evals._base import TEXT
from ablora.evals.answer_loss import chunks_of
from ablora.method.seeds import generator
from ablora.models.base import Base, skeleton
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


@lru_cache(maxsize=4096)
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
    items = [_As(n, n - labels) for n, labels in _lengths(spec, split, max_items)]
    chunks = [chunk for (chunk,) in chunks_of([items])]  # pyright: ignore[reportArgumentType] -- lengths are all it reads
    tokens = max(sum(len(e.input_ids) for e in chunk) for chunk in chunks)
    return Length(tokens, max(sum(len(e.input_ids) - e.answer_start for e in chunk) for chunk in chunks))


def of_prompts(spec: RunSpec, split: str, max_items: int | None) -> Length:
    """The longest prompt of a split, and the number of its items."""
    items = _lengths(spec, split, max_items)
    return Length(max(n - labels for n, labels in items), len(items))


class _As:
    """An item of which only the length is known."""

    def __init__(self, tokens: int, answer_start: int):
        self.input_ids, self.answer_start = range(tokens), answer_start


def _lengths(spec: RunSpec, split: str, max_items: int | None) -> tuple[Length, ...]:
    assert split != TEXT
    most = SAMPLE if max_items is None else min(SAMPLE, max_items)
    items, _ = items_of(spec, _without_weights(spec.model), split, most)
    return _sizes(items.encoded)


@lru_cache(maxsize=64)
def _sizes(encoded: Sequence[Encoded]) -> tuple[Length, ...]:
    return tuple(Length(len(e.input_ids), len(e.input_ids) - e.answer_start) for e in encoded)


@lru_cache(maxsize=8)
def _without_weights(model: Any) -> Base:
    return Base(skeleton(model.folder), AutoTokenizer.from_pretrained(model.folder, local_files_only=True))
