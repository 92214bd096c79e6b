"""Where the routers of a mixture send the tokens of the data set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ablora.data.encode import Encoded
from ablora.evals._base import Items, Outcome
from ablora.evals._kept import Kept
from ablora.evals._routes import Labels, Routes, mutual_information
from ablora.evals.answer_loss import chunks_of
from ablora.method.adaptation import Adaptation
from ablora.method.attach import Adapted
from ablora.models.base import Base
from ablora.models.passes import passes_of
from ablora.models.rows import Rows
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Load, confidence and specialisation of every router, over the tokens of a split's items (prompt and answer).

    Per module over its T real tokens, with router probabilities p (T, E), gate weights w (rows sum to 1) and c = 1 for
    the experts of a token (k of them): load = mean c (sums to k), mean_gate = mean w, mean_probability P = mean p,
    balance = (E/k) sum_i load_i P_i (1 when balanced), entropy = mean H(p), top1_margin = mean p_(1) - p_(2),
    coactivation = mean c c^T (its diagonal is the load). Where routing lets k vary, it is the mean number of experts. A
    shared expert has load and gate 1 (so both sum to 1 more) and probability 0, and is not in the balance.
    Specialisation is the mutual information, in nats, of a token's class and the expert in the joint distribution
    (1/(k T)) sum_t c_ti: every expert of a token counts 1/k. `information_answer_nats`: prompt or answer token (the
    end-of-text token is the answer's); `information_frequency_nats`: frequency bin floor(log2 rank), rank 1 the
    commonest token OF THE EVALUATED ITEMS THEMSELVES (ties: smaller id first). Plug-in estimates: with nothing to
    find they are about (E - 1)(classes - 1)/(2 T) above zero, so compare at equal items.

    Metrics are means over modules, `routing_max_load` the largest load of any expert in any module. A method without
    experts has no outcome.

    Source: arXiv:2502.16894 section 3 (load and balance); the rest are plain definitions.
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
        if not isinstance(adapted, Adapted):
            return [None] * len(members)
        mixtures = [
            i
            for i, m in enumerate(adapted.members)
            if m.method and m.method.structure.experts > 1 and members[i].encoded
        ]
        if not mixtures:
            return [None] * len(members)
        bins = {i: frequency_bins(members[i].encoded) for i in mixtures}
        routes: dict[int, dict[str, Routes]] = {i: {} for i in mixtures}
        for chunk in chunks_of([m.encoded if i in bins else () for i, m in enumerate(members)]):
            if kept is not None:
                kept.pause()
            for own, rows in passes_of(chunk, base.model.device):
                _forward(adapted, rows)
                for i in own:
                    if chunk[i]:
                        _add(adapted, i, routes[i], _labels(chunk[i], bins[i], base.model.device))
        return [_outcome(routes[i]) if i in routes else None for i in range(len(members))]


def frequency_bins(items: Sequence[Encoded]) -> dict[int, int]:
    """floor(log2 rank) of every token of the items, rank 1 being the commonest."""
    counts = Counter(token for e in items for token in e.input_ids)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return {token: rank.bit_length() - 1 for rank, token in enumerate(ranked, 1)}


def _forward(adapted: Adapted, rows: Rows) -> None:
    """One pass without logits; the structures' reports on single tokens are in `adapted.state` after it."""
    adapted.state.per_token = True
    try:
        adapted.hidden(rows)
    finally:
        adapted.state.per_token = False


def _labels(items: Sequence[Encoded], bins: Mapping[int, int], device: torch.device) -> Labels:
    """The classes of a run's tokens, in the order of its row; what is behind them in the row is padding."""
    answer = [int(at >= e.answer_start) for e in items for at in range(len(e.input_ids))]
    frequency = [bins[token] for e in items for token in e.input_ids]
    return Labels(
        torch.tensor(answer, device=device), torch.tensor(frequency, device=device), max(bins.values()) + 1
    )  # fmt: skip


def _add(adapted: Adapted, member: int, routes: dict[str, Routes], labels: Labels) -> None:
    method = adapted.members[member].method
    assert method is not None
    tokens, experts = len(labels.answer), method.structure.experts
    for name, stats in adapted.stats(member).items():
        # without padding behind the run's tokens, and without the experts that only its pack-mates have
        p, w, c = (stats[key][:tokens, :experts].double() for key in ("probabilities", "weights", "chosen"))
        routable = stats["routable"][0, :experts].double()
        routes.setdefault(name, Routes(routable, labels.bins)).add(p, w, c, labels)


def _outcome(routes: Mapping[str, Routes]) -> Outcome:
    records = [{"item": name, **_record(found)} for name, found in routes.items()]

    def mean(key: str) -> float:
        return sum(record[key] for record in records) / len(records)

    metrics = {
        "routing_balance": mean("balance"),
        "routing_entropy_nats": mean("entropy_nats"),
        "routing_top1_margin": mean("top1_margin"),
        "routing_max_load": max(max(record["load"]) for record in records),
    }
    return Outcome(metrics, records)


def _record(found: Routes) -> dict[str, Any]:
    return {
        "tokens": found.tokens,
        "load": found.load().tolist(),
        "mean_gate": found.mean(found.gate).tolist(),
        "mean_probability": found.mean(found.probability).tolist(),
        "balance": found.balance().item(),
        "entropy_nats": found.mean(found.entropy).item(),
        "top1_margin": found.mean(found.margin).item(),
        "coactivation": found.mean(found.together).tolist(),
        "information_answer_nats": mutual_information(found.by_answer),
        "information_frequency_nats": mutual_information(found.by_frequency),
    }
