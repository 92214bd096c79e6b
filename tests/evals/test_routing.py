"""Routing records against a loop over single tokens, alone and in packs with padding."""

import math
from collections import Counter
from typing import Any, cast

import pytest
import torch

from ablora.data.encode import Encoded
from ablora.evals import routing as module
from ablora.evals._base import Items
from ablora.evals._routes import mutual_information
from ablora.evals.routing import Routing, frequency_bins
from ablora.models import passes
from ablora.models.base import Base
from presets import method
from tiny import adapt, disturb, llama

ROUTING = Routing(split="test", max_items=None)


def made_up(seed: int, count: int) -> Items:
    """Items of 5 to 30 tokens, the smaller ids more often."""
    g = torch.Generator().manual_seed(seed)
    encoded = []
    for i in range(count):
        prompt, answer = (int(torch.randint(2, 16, (1,), generator=g)) for _ in range(2))
        ids = (97 * torch.rand(prompt + answer, generator=g) ** 3).long().tolist()
        encoded.append(Encoded(tuple(ids), prompt, f"test/{i}"))
    return Items(cast(Any, None), (), tuple(encoded))


def mixture(experts: int = 8, top_k: int = 2, preset: str = "goat"):
    return method(preset, f"structure.experts={experts}", f"structure.top_k={top_k}")


def run(items: list[Items], *methods, rank: int | None = 8, zero_router: bool = False):
    base = Base(llama(torch.float64), cast(Any, None))
    adapted = adapt(base.model, *methods, rank=rank, compute_dtype="float64")
    for member in range(len(methods)):
        disturb(adapted, member, 0.05)
        if zero_router:
            named = adapted.parameters(member)
            adapted.write(member, {k: torch.zeros_like(p) for k, p in named.items() if k.endswith("router")})
    return ROUTING.run(base, adapted, items), base, adapted


def by_hand(base: Base, adapted, items: Items, top_k: int, name: str) -> dict[str, Any]:
    """One module's record from the inputs that reach it, item by item, token by token."""
    layer, router = adapted.modules[name], adapted.parameters(0)[f"{name}.router"].detach()
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0]))
    with torch.no_grad():
        for e in items.encoded:
            base.model(input_ids=torch.tensor([e.input_ids]), use_cache=False)
    hook.remove()
    counts = Counter(t for e in items.encoded for t in e.input_ids)
    rank = {t: i for i, t in enumerate(sorted(counts, key=lambda t: (-counts[t], t)), 1)}
    experts, tokens = len(router), sum(len(e.input_ids) for e in items.encoded)
    load, gate, mean_p = ([0.0] * experts for _ in range(3))
    together = [[0.0] * experts for _ in range(experts)]
    entropy = margin = 0.0
    answers: Counter = Counter()
    bins: Counter = Counter()
    for e, inputs in zip(items.encoded, seen, strict=True):
        for at, (token, x) in enumerate(zip(e.input_ids, inputs, strict=True)):
            p = (router @ x).softmax(-1).tolist()
            order = sorted(range(experts), key=lambda i: -p[i])
            best = order[:top_k]
            for i in range(experts):
                mean_p[i] += p[i] / tokens
                entropy -= p[i] * math.log(p[i]) / tokens
            margin += (p[order[0]] - p[order[1]]) / tokens
            for i in best:
                load[i] += 1 / tokens
                gate[i] += p[i] / sum(p[j] for j in best) / tokens
                answers[at >= e.answer_start, i] += 1
                bins[int(math.log2(rank[token]) + 1e-9), i] += 1
                for j in best:
                    together[i][j] += 1 / tokens
    balance = experts / top_k * sum(a * b for a, b in zip(load, mean_p))
    return {
        "tokens": tokens, "load": load, "mean_gate": gate, "mean_probability": mean_p, "balance": balance,
        "entropy_nats": entropy, "top1_margin": margin, "coactivation": together,
        "information_answer_nats": information(answers), "information_frequency_nats": information(bins),
    }  # fmt: skip


def information(counts: Counter) -> float:
    total = sum(counts.values())
    rows, columns = Counter(), Counter()
    for (c, e), n in counts.items():
        rows[c] += n
        columns[e] += n
    return sum(n / total * math.log(n * total / (rows[c] * columns[e])) for (c, e), n in counts.items())


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b))
    return a == b if isinstance(a, str) else a == pytest.approx(b, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (4, 1), (4, 3)])
def test_records_are_those_of_a_loop_over_tokens(experts, top_k, monkeypatch):
    monkeypatch.setattr("ablora.evals.answer_loss.ROW_TOKENS", 50)  # several passes
    items = made_up(1, 8)
    (found,), base, adapted = run([items], mixture(experts, top_k))
    assert [r["item"] for r in found.records] == list(adapted.modules)
    for record in (found.records[0], found.records[-1]):
        expected = by_hand(base, adapted, items, top_k, record["item"])
        assert {k for k in expected if not alike(record[k], expected[k])} == set()
        assert record.keys() == {"item", *expected}
    for metric, key in [("balance", "balance"), ("entropy_nats", "entropy_nats"), ("top1_margin", "top1_margin")]:
        mean = sum(r[key] for r in found.records) / len(found.records)
        assert found.metrics[f"routing_{metric}"] == pytest.approx(mean)
    assert found.metrics["routing_max_load"] == max(max(r["load"]) for r in found.records)


def test_the_shares_add_up():
    (found,), *_ = run([made_up(2, 6)], mixture())
    for record in found.records:
        assert sum(record["load"]) == pytest.approx(2)
        assert sum(record["mean_gate"]) == pytest.approx(1)
        assert sum(record["mean_probability"]) == pytest.approx(1)
        assert [row[i] for i, row in enumerate(record["coactivation"])] == record["load"]
        assert record["coactivation"] == [list(column) for column in zip(*record["coactivation"])]


@pytest.mark.parametrize("preset", ["molora", "adamole", "hydralora", "goat_top_p", "goat_shared_expert"])
def test_other_routings_have_the_same_records(preset):
    """In one pass the balance is what the structure itself reports, and 1 for a router without opinion."""
    chosen, items = method(preset), made_up(2, 6)
    (found,), _, adapted = run([items], chosen, rank=None)
    shared = chosen.structure.shared_expert
    for record in found.records:
        assert sum(record["mean_gate"]) == pytest.approx(1 + shared)
        assert sum(record["mean_probability"]) == pytest.approx(1)
        assert [row[i] for i, row in enumerate(record["coactivation"])] == record["load"]
        assert record["balance"] == pytest.approx(adapted.stats(0)[record["item"]]["balance"].item(), rel=1e-12)
    (indifferent,), *_ = run([items], chosen, rank=None, zero_router=True)
    assert indifferent.metrics["routing_balance"] == pytest.approx(1, rel=1e-12)
    loads = found.records[0]["load"]
    if chosen.structure.top_k is None and type(chosen.structure.routing).__name__ == "Soft":
        assert loads == [1.0] * len(loads)
    if shared:
        assert (loads[0], found.records[0]["mean_probability"][0]) == (1.0, 0.0)
        assert sum(loads) == pytest.approx(3)


def test_a_router_without_opinion_is_balanced():
    (found,), *_ = run([made_up(3, 4)], mixture(), zero_router=True)
    assert found.metrics["routing_balance"] == pytest.approx(1, rel=1e-12)
    assert found.metrics["routing_entropy_nats"] == pytest.approx(math.log(8))
    assert found.metrics["routing_top1_margin"] == 0
    assert found.metrics["routing_max_load"] == 1, "all tokens go the same way, and only the load says so"


@pytest.mark.parametrize("worth", [1, 400, passes.WORTH])
def test_a_pack_equals_its_members_alone(worth: int, monkeypatch: pytest.MonkeyPatch):
    """Beside a longer row (padding), more experts of a higher k, and a method without experts; in passes of any
    size."""
    monkeypatch.setattr(passes, "WORTH", worth)
    short, long = made_up(4, 2), made_up(5, 9)
    small, large = mixture(4, 1), mixture(8, 3)
    together, _, adapted = run([long, short, long], method("lora"), small, large)
    assert together[0] is None
    assert not adapted.state.per_token
    assert adapted.state.real is None
    for member, items, chosen in ((1, short, small), (2, long, large)):
        (alone,), *_ = run([items], chosen)
        found = together[member]
        assert found.metrics == pytest.approx(alone.metrics, rel=1e-9)
        for a, b in zip(alone.records, found.records, strict=True):
            assert a.keys() == b.keys()
            assert all(alike(a[k], b[k]) for k in a)


def test_without_experts_nothing_is_computed(monkeypatch):
    monkeypatch.setattr(module, "passes_of", None)
    found, *_ = run([made_up(6, 2)] * 2, method("lora"), method("pissa"))
    assert found == [None, None]


def test_per_token_reports_are_for_evaluations_alone():
    _, base, adapted = run([made_up(7, 2)], mixture())
    base.model(input_ids=torch.ones(1, 4, dtype=torch.long), use_cache=False)
    assert all(set(stats) == {"balance", "load"} for stats in adapted.stats(0).values())


def test_mutual_information():
    assert mutual_information(torch.tensor([[3.0, 6.0], [1.0, 2.0]]).double()) == pytest.approx(0, abs=1e-12)
    assert mutual_information(torch.tensor([[5.0, 0.0], [0.0, 5.0]]).double()) == pytest.approx(math.log(2))


def test_frequency_bins_are_logarithms_of_ranks():
    items = (Encoded((7, 7, 7, 3, 3, 9, 5, 2), 1, "0"), Encoded((9, 5), 1, "1"))
    assert frequency_bins(items) == {7: 0, 3: 1, 5: 1, 9: 2, 2: 2}
