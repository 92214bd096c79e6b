"""AB-LoRA's scores of ranks by ablation, and ALoRA's choice of who gives and who gets."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Gates = Mapping[str, Float[Tensor, " rows"]]
"""By module, 1 for a rank that lives and 0 for an empty row."""


class Choice(NamedTuple):
    """Who gives and who gets, by module."""

    pruned: dict[str, Bool[Tensor, " rows"]]
    granted: dict[str, int]


def ablations(gates: Gates) -> dict[str, Float[Tensor, "variants rows"]]:
    """The gates of 1 + 2 n models for n living ranks: all; each rank without; each rank alone."""
    counts = [int(gate.count_nonzero()) for gate in gates.values()]
    total = sum(counts)
    out, at = {}, 0
    for (name, gate), count in zip(gates.items(), counts):
        own = torch.eye(len(gate), dtype=gate.dtype, device=gate.device)[gate != 0]
        without, alone = gate.expand(total, -1).clone(), gate.new_zeros(total, len(gate))
        without[at : at + count] -= own
        alone[at : at + count] = own
        out[name] = torch.cat([gate[None], without, alone])
        at += count
    return out


def scores(losses: Float[Tensor, " variants"], gates: Gates) -> dict[str, Float[Tensor, " rows"]]:
    """IS_i = S(M) - S(M without i) + S(i alone), S the negative loss, of the models of `ablations`; NaN for an empty
    row."""
    total = (len(losses) - 1) // 2
    found = losses[1 : 1 + total] - losses[0] - losses[1 + total :]
    out, at = {}, 0
    for name, gate in gates.items():
        lives = (gate != 0).to(found.device)
        out[name] = found.new_full((len(gate),), math.nan)
        out[name][lives] = found[at : (at := at + int(lives.sum()))]
    return out


def choose(found: Mapping[str, Float[Tensor, " rows"]], most: int) -> Choice:
    """Prune the lowest scores over all modules, and give as many ranks to the modules that lose none.

    They get one each, and again from the first, by descending mean score (one without ranks comes last), as far as
    their rows reach. Of equal scores the earlier is pruned. Fewer than `most` are pruned where the modules that lose
    none had no rows for so many: as many as they have, so that the total stays.
    """
    joined = torch.cat(list(found.values()))
    order = joined.nan_to_num(nan=math.inf).argsort(stable=True)
    for count in range(min(most, int((~joined.isnan()).sum())), -1, -1):
        marked = torch.zeros_like(joined, dtype=torch.bool)
        marked[order[:count]] = True
        pruned = dict(zip(found, marked.split([len(s) for s in found.values()])))
        room = {name: int(score.isnan().sum()) for name, score in found.items() if not pruned[name].any()}
        if sum(room.values()) >= count:
            return Choice(pruned, shared_out(count, room, found))
    raise AssertionError("nothing pruned always finds its place")


def shared_out(count: int, room: Mapping[str, int], found: Mapping[str, Float[Tensor, " rows"]]) -> dict[str, int]:
    """`count` ranks among modules with so much room, one each and again, by descending mean score."""
    means = {name: found[name].nanmean().item() for name in room}
    order = sorted(room, key=lambda name: (math.isnan(means[name]), -means[name]))
    granted = dict.fromkeys(room, 0)
    while count:
        for name in [name for name in order if granted[name] < room[name]][:count]:
            granted[name] += 1
            count -= 1
    return granted
