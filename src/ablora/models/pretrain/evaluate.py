"""Bits per byte of the held-out text: the model, a Kneser-Ney 5-gram, LZMA; all from the same documents."""

import lzma
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from ablora.models.pretrain.corpus import KINDS, Document
from ablora.models.pretrain.kneser_ney import KneserNey
from ablora.models.pretrain.windows import END_ID

WINDOW_TOKENS = 512
STRIDE_TOKENS = 256  # every token past a document's first window sees at least 256 tokens
BATCH_WINDOWS = 8


class Span(NamedTuple):
    """One window: its document, its tokens (<|endoftext|> first in a document), and how many at its end are scored."""

    document: int
    tokens: np.ndarray
    scored: int


def spans(ids: Sequence[np.ndarray], window_tokens: int, stride_tokens: int) -> Iterator[Span]:
    """Windows in which every token of every document is scored once; <|endoftext|> is given, never scored."""
    for document, each in enumerate(ids):
        whole = np.concatenate([[END_ID], each])
        end, done = min(window_tokens, len(whole)), 1
        while True:
            yield Span(document, whole[max(0, end - window_tokens) : end], end - done)
            if end == len(whole):
                break
            end, done = min(end + stride_tokens, len(whole)), end


def padded_batch(group: Sequence[Span]) -> tuple[Tensor, Tensor]:
    """ids [windows, tokens] padded on the right, which a causal model cannot see, and the mask of scored targets."""
    length = max(len(span.tokens) for span in group)
    ids = torch.full((len(group), length), END_ID, dtype=torch.long)
    scored = torch.zeros((len(group), length), dtype=torch.bool)
    for row, span in enumerate(group):
        ids[row, : len(span.tokens)] = torch.from_numpy(span.tokens).long()
        scored[row, len(span.tokens) - span.scored : len(span.tokens)] = True
    return ids, scored[:, 1:]


@torch.no_grad()
def model_nats(
    model: nn.Module,
    ids: Sequence[np.ndarray],
    window_tokens: int = WINDOW_TOKENS,
    stride_tokens: int = STRIDE_TOKENS,
) -> Float64[np.ndarray, " documents"]:
    """Total nats of each document under the model, sliding window, in the model's own dtype."""
    model.eval()
    nats = np.zeros(len(ids))
    # longest last, so that a batch pads little
    ordered = sorted(spans(ids, window_tokens, stride_tokens), key=lambda span: len(span.tokens))
    for start in range(0, len(ordered), BATCH_WINDOWS):
        group = ordered[start : start + BATCH_WINDOWS]
        tokens, scored = padded_batch(group)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none") * scored
        np.add.at(nats, [span.document for span in group], losses.double().sum(1).numpy())
    return nats


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """nats / ln 2 / UTF-8 bytes."""
    return float(nats) / math.log(2) / text_bytes


def by_kind(nats: Iterable[float], documents: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of all documents together, and of each kind."""
    rows = [(d.kind, n, len(d.text.encode())) for d, n in zip(documents, nats, strict=True)]
    table = {"all": bits_per_byte(sum(n for _, n, _ in rows), sum(b for _, _, b in rows))}
    for kind in KINDS:
        if any(k == kind for k, _, _ in rows):
            of_kind = [(n, b) for k, n, b in rows if k == kind]
            table[kind] = bits_per_byte(sum(n for n, _ in of_kind), sum(b for _, b in of_kind))
    return table


def kneser_ney_nats(train: Sequence[np.ndarray], held_out: Sequence[np.ndarray], vocab_tokens: int) -> list[float]:
    """Total nats of each held-out document under the 5-gram of the training documents, each counted once."""
    model = KneserNey(train, vocab_tokens, order=5, start=END_ID)
    return [model.nats(document) for document in held_out]


def lzma_bytes(text: bytes) -> int:
    """Length of the raw LZMA2 stream, preset 9 extreme, with a dictionary that holds the whole text."""
    dictionary_bytes = max(1 << 16, 1 << (len(text) - 1).bit_length())
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary_bytes}]
    return len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=chain))


def lzma_bits_per_byte(train: Sequence[Document], held_out: Sequence[Document]) -> float:
    """(length(train + held-out) - length(train)) / held-out bytes, in bits; documents joined without separators."""
    seen = "".join(d.text for d in train).encode()
    new = "".join(d.text for d in held_out).encode()
    return 8.0 * (lzma_bytes(seen + new) - lzma_bytes(seen)) / len(new)
