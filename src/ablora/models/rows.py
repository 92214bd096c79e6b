"""The layout of tokens: a row is a run, its sequences back to back, and logits only where there are labels."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ablora.models.segments import packed_inputs

PAD = 0
"""Fills a row behind its last sequence. Any id of the vocabulary serves: no label and no other token sees it."""

TAIL = 64
"""Padding is cut into sequences of at most so many tokens: attention is quadratic in a sequence's length."""


@runtime_checkable
class Sequence_(Protocol):  # noqa: N801 -- `Sequence` is taken
    """One example as tokens; the loss is on input_ids[answer_start:]."""

    @property
    def input_ids(self) -> tuple[int, ...]: ...

    @property
    def answer_start(self) -> int: ...


class Rows(NamedTuple):
    """Sequences of several runs, one row per run."""

    ids: Int[Tensor, "runs tokens"]
    segments: list[list[int]]
    """Lengths of the sequences of each row, and of the pieces of padding behind them."""
    real: Bool[Tensor, "runs tokens"]
    predicts: Bool[Tensor, "runs tokens"]
    """True where the next token is a label."""
    labels: Int[Tensor, " labels"]
    """Row by row, sequence by sequence."""
    owner: Int[Tensor, " labels"]
    """Which sequence a label belongs to, counted over all rows."""
    first: int = 0
    """The member of the pack that the first row is of; the next rows are the next members'."""

    def part(self, runs: slice) -> "Rows":
        """The tokens of some rows. Labels stay those of all, whose order nothing here can tell apart."""
        own = {"ids": self.ids[runs], "segments": self.segments[runs], "real": self.real[runs]}
        return self._replace(**own, predicts=self.predicts[runs])


def lay_out(runs: Sequence[Sequence[Sequence_]], device: torch.device | str = "cpu", first: int = 0) -> Rows:
    """Put each run's sequences into its row; a run without sequences gets a row of padding and no label.

    `first`: the place in the pack of the first of these runs.
    """
    lengths = [[len(s.input_ids) for s in run] for run in runs]
    width = max(max(sum(row) for row in lengths), 1)
    ids = torch.full((len(runs), width), PAD)
    predicts = torch.zeros(len(runs), width, dtype=torch.bool)
    labels: list[int] = []
    owner: list[int] = []
    count = 0
    for r, run in enumerate(runs):
        at = 0
        for s in run:
            n, a = len(s.input_ids), s.answer_start
            ids[r, at : at + n] = torch.tensor(s.input_ids)
            predicts[r, at + a - 1 : at + n - 1] = True
            labels.extend(s.input_ids[a:])
            owner.extend([count] * (n - a))
            at, count = at + n, count + 1
        lengths[r].extend(min(TAIL, width - start) for start in range(at, width, TAIL))
    filled = torch.tensor([[sum(len(s.input_ids) for s in run)] for run in runs])
    real = torch.arange(width)[None] < filled
    label_ids, owners = torch.tensor(labels, dtype=torch.long), torch.tensor(owner, dtype=torch.long)
    at = torch.device(device)
    return Rows(ids.to(at), lengths, real.to(at), predicts.to(at), label_ids.to(at), owners.to(at), first)


def label_losses(model: PreTrainedModel, rows: Rows) -> Float[Tensor, " labels"]:
    """Cross-entropy in nats of every label, in float32; logits exist at label positions only.

    At a vocabulary of 32,000 and labels at a quarter of the positions this took a fifth of the time of all logits.
    """
    return cross_entropies(head_of(model)(last_states(model, rows)[rows.predicts]), rows.labels)


def last_states(model: PreTrainedModel, rows: Rows) -> Float[Tensor, "runs tokens width"]:
    """The model's last hidden states, as the output head takes them."""
    return model.base_model(**packed_inputs(rows.ids, rows.segments)).last_hidden_state


def head_of(model: PreTrainedModel) -> nn.Module:
    return cast(nn.Module, model.get_output_embeddings())


def cross_entropies(logits: Float[Tensor, "labels vocab"], labels: Int[Tensor, " labels"]) -> Float[Tensor, " labels"]:
    return F.cross_entropy(logits.float(), labels, reduction="none")
