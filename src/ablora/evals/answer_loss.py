"""The loss of the reference answers, item by item."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from ablora.data.encode import Encoded
from ablora.evals._base import Items, Outcome
from ablora.evals._kept import Kept, nothing
from ablora.method.adaptation import Adaptation, label_losses_of
from ablora.models.base import Base
from ablora.models.passes import passes_of
from ablora.spec import check

ROW_TOKENS = 2048
"""Tokens per run and forward pass: bounds the memory. Not tuned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerLoss:
    """Teacher-forced cross-entropy of the answer tokens (end-of-text included), in nats.

    answer_loss_nats = sum over items of the item's summed loss / number of answer tokens of all items.
    Per item: `loss_nats` (the sum) and `answer_tokens`, so that a paired test can weigh as it likes.
    """

    revision: ClassVar[int] = 1
    split: Literal["train", "validation", "test"]
    max_items: int | None
    """The first so many items of the split; null: all."""

    def __post_init__(self) -> None:
        check(self.max_items is None or self.max_items >= 1, "max_items", self.max_items, "null, or at least 1")

    @torch.no_grad()
    def run(
        self, base: Base, adapted: Adaptation, members: Sequence[Items], kept: Kept | None = None
    ) -> list[Outcome | None]:
        kept = kept or nothing(len(members))
        for chunk in chunks_of([m.encoded[len(done) :] for m, done in zip(members, kept.found)]):
            found: list[list[float]] = [[] for _ in chunk]
            for own, rows in passes_of(chunk, base.model.device):
                nats = label_losses_of(adapted, rows).double().cpu()
                counts = [len(chunk[i]) for i in own]
                sums = torch.zeros(sum(counts), dtype=torch.float64).index_add_(0, rows.owner.cpu(), nats)
                found[own.start : own.stop] = [part.tolist() for part in sums.split(counts)]
            kept.add(found)
        return [_outcome(m, losses) if m.encoded else None for m, losses in zip(members, kept.found)]


def _outcome(member: Items, losses: Sequence[float]) -> Outcome:
    tokens = [len(e.input_ids) - e.answer_start for e in member.encoded]
    records = [
        {"item": e.item, "loss_nats": loss, "answer_tokens": n} for e, loss, n in zip(member.encoded, losses, tokens)
    ]
    return Outcome({"answer_loss_nats": sum(losses) / sum(tokens)}, records)


def chunks_of(runs: Sequence[Sequence[Encoded]]) -> Iterator[list[list[Encoded]]]:
    """Cut every run's items, in order, into pieces of at most ROW_TOKENS (one item at least)."""
    at = [0] * len(runs)
    while any(a < len(run) for a, run in zip(at, runs)):
        chunk = []
        for i, run in enumerate(runs):
            end, tokens = at[i], 0
            while end < len(run) and (end == at[i] or tokens + len(run[end].input_ids) <= ROW_TOKENS):
                tokens += len(run[end].input_ids)
                end += 1
            chunk.append(list(run[at[i] : end]))
            at[i] = end
        yield chunk
