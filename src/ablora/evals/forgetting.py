"""What tuning made the model forget of what the base predicted, on text that has nothing to do with the task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from ablora.data.text import Chunk, Corpus, cut, spread, stream_of
from ablora.evals._base import TEXT, Items, Outcome
from ablora.evals._divergence import Compared, against_base
from ablora.evals._kept import Kept, nothing
from ablora.method.adaptation import Adaptation
from ablora.models.base import Base
from ablora.models.rows import head_of, lay_out
from ablora.spec import check

ROW_TOKENS = 2048
"""Tokens per run and forward pass: bounds the memory of hidden states. Not tuned."""
SLICE_NUMBERS = 2**22
"""Log-probabilities of all runs at a time: 32 MiB in float64, and some five times that in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgetting:
    """Next-token cross-entropy against the BASE's predicted distribution, over running text.

    L_f = -(1/T) sum_t sum_v p_base(v | x_<t) log p_tuned(v | x_<t),   floor H(p_base),   KL = L_f - floor

    `forgetting_nats`, `forgetting_floor_nats`, `forgetting_kl_nats`; beside them the loss on the true next tokens of
    both models (`text_loss_nats`, `base_text_loss_nats`) and the share of positions with one most likely token
    (`top1_agreement`). All are means over the T tokens of the chunks taken; records hold sums per chunk.
    A chunk is one token of context (bos, or end-of-text) and chunk_tokens - 1 of text, and every token of text is
    predicted: the first from that context alone. KL is 0 at step 0 for pairs, to the bit where rows of a product do
    not depend on their number; a mixture with a start begins at its own deviation.

    p_base comes from one row of the pack that no adapter touches, in the same forward pass, whatever the methods and
    however many runs. Nothing is cached: at a vocabulary of 32,000 a position takes 128 KB.

    Source: arXiv:2406.09044 section 5.4; arXiv:2401.05605 (Kalajdzievski) for the loss.
    Differs: chunk, stride and corpus are part of the specification; the floor is reported, since L_f alone cannot be
        compared across bases.
    """

    revision: ClassVar[int] = 1
    split: ClassVar[str] = TEXT
    max_items: ClassVar[int | None] = None
    corpus: Corpus
    chunk_tokens: int = 1024
    """Length of a sequence, its token of context included."""
    stride_tokens: int | None = None
    """Text from one chunk's begin to the next's; null: chunk_tokens - 1. What a chunk repeats of the one before is
    context and not counted again."""
    max_chunks: int | None = None
    """So many chunks, from the middles of equal parts of the corpus; null: all."""

    def __post_init__(self) -> None:
        check(self.chunk_tokens >= 2, "chunk_tokens", self.chunk_tokens, "an integer of at least 2")
        stride, widest = self.stride_tokens, self.chunk_tokens - 1
        check(stride is None or 1 <= stride <= widest, "stride_tokens", stride, f"null, or 1 to {widest}")
        check(self.max_chunks is None or self.max_chunks >= 1, "max_chunks", self.max_chunks, "null, or at least 1")

    def check_model(self, config: PretrainedConfig) -> None:
        """Refuse chunks that the model's context cannot hold."""
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        legal = f"2 to {context}, the context of the model"
        check(context is None or self.chunk_tokens <= context, "chunk_tokens", self.chunk_tokens, legal)

    @torch.no_grad()
    def run(
        self, base: Base, adapted: Adaptation, members: Sequence[Items] = (), kept: Kept | None = None
    ) -> list[Outcome]:
        self.check_model(base.model.config)
        chunks = self.chunks(base)
        kept = kept or nothing(len(adapted.records))
        for group in _left(chunks, kept):
            kept.add(_sums(base, adapted, group))
        return [_outcome(chunks, mine) for mine in kept.found]

    def chunks(self, base: Base) -> list[Chunk]:
        """The chunks that are evaluated, in the corpus's order."""
        vocabulary = cast(nn.Embedding, base.model.get_input_embeddings()).num_embeddings
        start, stream = _stream(self.corpus, self.corpus.fingerprint(), base.tokenizer, vocabulary)
        every = cut(self.corpus.name, stream, start, self.chunk_tokens, self.stride_tokens)
        return [every[i] for i in spread(len(every), self.max_chunks)]


@lru_cache(maxsize=4)
def _stream(
    corpus: Corpus, content: str, tokenizer: PreTrainedTokenizerFast, vocabulary: int
) -> tuple[int, tuple[int, ...]]:
    return stream_of(corpus, tokenizer, vocabulary)


def _left(chunks: Sequence[Chunk], kept: Kept) -> Iterator[list[Chunk]]:
    """The groups of chunks that not all members have. All of a pass' rows are the same chunks, so a member that is
    ahead of its pack-mates (its last line was whole, theirs was not) drops what it has of a group that is taken again.
    """
    at, have = 0, min(map(len, kept.found))
    for group in _groups(chunks):
        at += len(group)
        if at > have:
            for mine in kept.found:
                del mine[at - len(group) :]
            yield group


def _sums(base: Base, adapted: Adaptation, group: Sequence[Chunk]) -> list[list[dict[str, float]]]:
    """By member and chunk: sums over the chunk's positions, by name."""
    sums: dict[str, Float64[Tensor, "runs chunks"]] = {}
    for compared, owner in _compared(base, adapted, group):
        for name, values in _named(compared).items():
            blank = values.new_zeros(len(adapted.records), len(group), dtype=torch.float64)
            sums[name] = sums.get(name, blank).index_add(1, owner, values.double())
    by_name = {name: values.tolist() for name, values in sums.items()}
    return [[{name: rows[i][c] for name, rows in by_name.items()} for c in range(len(group))]
            for i in range(len(adapted.records))]  # fmt: skip


def _named(compared: Compared) -> dict[str, Tensor]:
    soft, runs = compared.soft, len(compared.loss)
    return {
        "forgetting_nats": soft.cross_entropy,
        "floor_nats": soft.floor,
        "kl_nats": soft.kl,
        "loss_nats": compared.loss,
        "base_loss_nats": compared.base_loss.expand(runs, -1),
        "agree": compared.agree,
    }


class _Slice(NamedTuple):
    compared: Compared
    owner: Int[Tensor, " labels"]
    """Which chunk of the group a label belongs to."""


def _compared(base: Base, adapted: Adaptation, group: Sequence[Chunk]) -> Iterator[_Slice]:
    """One forward pass of the members and the base over the group's chunks; logits for a slice of positions at a
    time."""
    rows = lay_out([group] * (len(adapted.records) + 1), base.model.device)
    hidden = adapted.hidden(rows, beside_base=True)
    hidden = hidden[:, rows.predicts[0]]  # (runs + 1, labels, width); all rows are laid out alike
    labels, owner = (t[: hidden.shape[1]] for t in (rows.labels, rows.owner))
    size = max(1, SLICE_NUMBERS // (len(hidden) * cast(nn.Linear, head_of(base.model)).weight.shape[0]))
    for at in range(0, len(labels), size):
        logits = adapted.logits(hidden[:, at : at + size], beside_base=True)
        here = slice(at, at + size)
        yield _Slice(against_base(logits[-1], logits[:-1], labels[here]), owner[here])


def _groups(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Pieces of at most ROW_TOKENS (one chunk at least)."""
    group: list[Chunk] = []
    for chunk in chunks:
        if group and sum(len(c.input_ids) for c in (*group, chunk)) > ROW_TOKENS:
            yield group
            group = []
        group.append(chunk)
    yield group


def _outcome(chunks: Sequence[Chunk], found: Sequence[dict[str, float]]) -> Outcome:
    tokens = sum(chunk.scored for chunk in chunks)
    records: list[dict[str, Any]] = []
    for chunk, sums in zip(chunks, found, strict=True):
        records.append({"item": chunk.item, "tokens": chunk.scored, **sums, "agree": int(sums["agree"])})
    means = {name: sum(sums[name] for sums in found) / tokens for name in found[0]}
    metrics = {
        "forgetting_nats": means["forgetting_nats"],
        "forgetting_floor_nats": means["floor_nats"],
        "forgetting_kl_nats": means["kl_nats"],
        "text_loss_nats": means["loss_nats"],
        "base_text_loss_nats": means["base_loss_nats"],
        "top1_agreement": means["agree"],
    }
    return Outcome(metrics, records)
