"""Which runs of a pack go through the base together."""

from collections.abc import Iterator, Sequence

import torch

from ablora.models.rows import Rows, Sequence_, lay_out

WORTH = 1024
"""Tokens from which on a pass on a CPU gains nothing by a further run's. Eight runs on the embedded base, one thread, a
step's time with passes of one run, of 1024 tokens and of all: 359, 361, 475 us a token at 960 tokens a run; 431, 422,
481 at 540; 511, 500, 517 at 280."""


def passes_of(runs: Sequence[Sequence[Sequence_]], device: torch.device) -> Iterator[tuple[range, Rows]]:
    """Every pass: the runs that take it, and their sequences as its rows."""
    for own in go_together([sum(len(s.input_ids) for s in run) for run in runs], device):
        yield own, lay_out([runs[i] for i in own], device, own.start)


def go_together(tokens: Sequence[int], device: torch.device) -> list[range]:
    """Neighbouring runs by forward and backward pass, from how many tokens each has in a micro-batch.

    A run is never cut, so that what it learns does not depend on this beyond rounding (4e-8 nats of AdaMoLE's loss in
    three steps, beside a longer row). Runs without tokens are left out where no other is with them.
    """
    cut = by_worth(tokens, WORTH if device.type == "cpu" else None)
    return [own for own in cut if any(tokens[i] for i in own)]


def by_worth(tokens: Sequence[int], worth: int | None) -> list[range]:
    """All runs at once where `worth` is None, as a GPU takes them. Else a pass is filled with runs up to so many
    tokens, padding counted: what a pass costs beside its tokens is little by then, while tensors of more runs leave
    the caches, and rows are padded to the longest run's."""
    if worth is None:
        return [range(len(tokens))]
    out = [range(0)]
    for i, count in enumerate(tokens):
        own = range(out[-1].start, i + 1)
        if len(own) * max(count, *(tokens[j] for j in own)) <= worth:
            out[-1] = own
        else:
            out.append(range(i, i + 1))
    return [own for own in out if own]
