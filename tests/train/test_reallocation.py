"""Runs whose ranks move while they train: scores, records, resumed, packed, and what the optimizer forgets."""

import math
import signal
from dataclasses import replace

import pytest
import torch
from packs import Pack, made_up, pack, spec
from small import Interruption, Watcher, outcome, run, save_base, small_spec
from torch import Tensor

from ablora.data.encode import Encoded
from ablora.evals._kept import nothing
from ablora.method.adaptation import label_losses_of
from ablora.method.attach import Adapted
from ablora.method.structure._ablation import ablations, scores
from ablora.method.structure._reallocates import Probe
from ablora.models.rows import lay_out
from ablora.spec import BadInput
from ablora.store import lines
from ablora.store.roots import Roots
from ablora.store.run_folder import create
from ablora.train import reallocation
from ablora.train.data import choose_probe
from ablora.train.stop import Stopped
from presets import method

T = 12
FAST = ("structure.first=0.25", "structure.every=0.17", "structure.rounds=3")
"""Ranks move after steps 3, 5 and 7."""


def gates(trained: Pack, index: int = 0) -> dict[str, Tensor]:
    return {name: f.frozen["gate"].clone() for name, f in trained.adapted.factors(index).items()}


def total(trained: Pack) -> int:
    return sum(int(gate.sum()) for gate in gates(trained).values())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("tokens", [2**13, 100])
def test_scores_are_those_of_one_forward_pass_per_rank(tokens, monkeypatch):
    """Beside another run, in passes of any size: rows of variants against gates that are closed by hand."""
    monkeypatch.setattr(reallocation, "TOKENS", tokens)
    wanted = spec("alora", "structure.rounds=1", "structure.first=0.5", rank=2, seed=1, max_steps=T, lr=1e-2)
    together = pack(spec("lora", seed=2, rank=4), wanted)
    together.steps(6)
    run_, own = together.runs[1], gates(together, 1)
    assert sum(int((gate == 0).sum()) for gate in own.values()) == total_of(own)
    found = reallocation.losses_of(
        together.base, together.adapted, run_, {name: {"gate": g} for name, g in ablations(own).items()}, nothing(2)
    )

    def loss() -> float:
        rows = lay_out([[], list(run_.data.probe)])
        with torch.no_grad():
            return label_losses_of(together.adapted, rows).double().mean().item()

    def close(name: str, row: int, others: bool) -> float:
        now = together.adapted.factors(1)
        for module, factors in now.items():
            factors.frozen["gate"].copy_(torch.zeros_like(own[module]) if others else own[module])
        now[name].frozen["gate"][row] = float(others)
        value = loss()
        for module, factors in now.items():
            factors.frozen["gate"].copy_(own[module])
        return value

    assert found[0].item() == pytest.approx(loss(), rel=1e-6)
    for name, score in scores(found, own).items():
        for row, value in enumerate(score.tolist()):
            expected = -loss() + close(name, row, False) - close(name, row, True) if own[name][row] else math.nan
            assert value == pytest.approx(expected, abs=1e-6, nan_ok=True)


def total_of(own: dict[str, Tensor]) -> int:
    return sum(int(gate.sum()) for gate in own.values())


def test_ranks_move_on_schedule_and_their_number_stays():
    trained = pack(spec("alora", *FAST, "structure.moves=40", max_steps=T, lr=1e-2, dropout=0.1, weight_decay=0.1))
    modules, moved, before = len(trained.adapted.modules), [], gates(trained)
    for step in range(1, T + 1):
        trained.steps(1)
        now = gates(trained)
        if not same(now, before):
            moved.append(step)
            forgotten(trained, before, now)
        before = now
        assert total(trained) == 8 * modules
        for name, (params, frozen) in trained.adapted.factors(0).items():
            assert not torch.cat([params["A"], params["B"]], 1)[frozen["gate"] == 0].any(), name
    assert moved == [3, 5, 7]


def forgotten(trained: Pack, before: dict[str, Tensor], now: dict[str, Tensor]) -> None:
    """The optimizer's moments are zero where a gate has changed, and nowhere else where a rank has lived."""
    state = trained.runs[0].optimizer.state
    for name, gate in now.items():
        for role in "AB":
            moment = state[trained.runs[0].parameters[f"{name}.{role}"]]["exp_avg_sq"]
            assert not moment[gate != before[name]].any()
            assert moment[(gate == 1) & (before[name] == 1)].any(1).all()


@pytest.mark.parametrize("overrides", [(), ("update=freeze_a",), ("init=svd_principal", "update=lora_plus")])
@pytest.mark.parametrize("cut", [3, 6])
def test_a_resumed_run_goes_on_bit_for_bit(cut, overrides):
    wanted = spec("alora", *FAST, *overrides, max_steps=T, lr=1e-2, dropout=0.1)
    whole, first, second = pack(wanted), pack(wanted), pack(wanted)
    losses = whole.steps(T)[0]
    first.steps(cut)
    saved = {name: tensor.clone() for name, tensor in first.runs[0].state().items()}
    assert not same(gates(first), gates(second))
    second.runs[0].load(saved, first.runs[0].counters())
    assert second.steps(T - cut)[0] == losses[cut:]
    ends = [{**p.adapted.parameters(0), **p.adapted.constants(0)} for p in (whole, second)]
    assert same(*ends)


def test_in_a_pack_ranks_move_as_they_do_alone():
    wanted = spec("alora", *FAST, seed=1, max_steps=T, lr=1e-2, dropout=0.1)
    alone, together = pack(wanted), pack(spec("lora", seed=2, rank=16, batch_size=6), wanted)
    a, b = alone.steps(T)[0], together.steps(T)[1]
    assert a == b
    assert same(gates(alone), gates(together, 1))
    padded = pack(spec("alora", *FAST, seed=2, rank=16, max_steps=T, lr=1e-2), wanted)
    assert padded.steps(T)[1] == pytest.approx(a, rel=1e-5)
    assert same(gates(alone), gates(padded, 1))


def test_the_lowest_scores_of_the_step_are_pruned():
    """Against a run that has not moved any yet, scored as it stands."""
    overrides = ("structure.first=0.5", "structure.every=0.5", "structure.moves=9")
    moved = pack(spec("alora", *overrides, max_steps=T, lr=1e-2))
    still = pack(spec("alora", *overrides, "structure.rounds=0", max_steps=T, lr=1e-2))
    moved.steps(6)
    still.steps(6)
    own = gates(still)
    losses = reallocation.losses_of(
        still.base, still.adapted, still.runs[0], {name: {"gate": g} for name, g in ablations(own).items()}, nothing(1)
    )
    found = [(v, name, row) for name, s in scores(losses, own).items() for row, v in enumerate(s.tolist())]
    lowest = {(name, row) for v, name, row in sorted(f for f in found if not math.isnan(f[0]))[:9]}
    now = gates(moved)
    assert {(n, i) for n in now for i in range(len(own[n])) if own[n][i] and not now[n][i]} == lowest
    begun = {n for n in now if (now[n] > own[n]).any()}
    assert begun == {name for name in now if name not in {name for name, _ in lowest}}


def test_a_loss_that_is_no_number_ends_the_run_alone():
    calm, wild = spec("lora", seed=1), spec("alora", *FAST, seed=2, max_steps=T, lr=1e-2)
    alone, together = pack(calm), pack(calm, wild)
    together.steps(2)
    item = together.runs[1].data.probe[0]
    object.__setattr__(together.runs[1].data, "probe", (Encoded(item.input_ids, item.answer_start, item.item),))
    original = together.adapted.hidden_of_variants
    together.adapted.hidden_of_variants = lambda *a: original(*a) * math.inf  # type: ignore[method-assign]
    losses = together.steps(4)
    assert not together.runs[1].active
    assert math.isnan(losses[1][-1])
    assert losses[0] == alone.steps(6)[0][2:]


def test_the_probe_is_the_seed_s_and_never_silently_smaller():
    items = made_up(0, 20)
    chosen = [choose_probe(items, Probe(split="validation", items=8), seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 8
    with pytest.raises(BadInput, match=r"probe.items=32 .*1 to 20, the items of the validation split"):
        choose_probe(items, Probe(split="validation", items=32), 0)


def test_a_run_records_its_ranks_and_its_cost_and_survives_a_crash(tmp_path):
    base = save_base(tmp_path / "base")
    parts = ("structure.first=0.4", "structure.every=0.3", "structure.rounds=2", "structure.probe.items=3")
    wanted = replace(small_spec(base), method=method("alora", *parts))
    roots = [Roots(tmp_path / n / "runs", tmp_path / n / "studies", tmp_path / "cache") for n in ("a", "b")]
    (folder,) = run(roots[0], wanted)
    records = list(lines.read(folder.metrics))
    moves = [r for r in records if r["kind"] == "ranks"]
    assert [r["step"] for r in moves] == [3, 5]
    result = folder.read_result()
    ranks = {name: record["rank"] for name, record in result["modules"].items()}
    assert {name: moves[-1][name] for name in ranks} == ranks
    assert [r["moved"] for r in moves] == [14, 14]
    assert all(sum(r[name] for name in ranks) == 8 * 14 for r in moves)
    assert len(set(ranks.values())) > 1
    q = result["modules"]["model.layers.0.self_attn.q_proj"]
    assert q["parameters"] == 64 * q["rank"]
    assert result["trainable_parameters"] == sum(r["parameters"] for r in result["modules"].values())
    assert set(result["metrics"]) == {"train_loss_nats", "answer_loss_nats", "exact_match"}
    timing = list(lines.read(folder.timing))
    assert "probe_s" not in timing[2]
    assert 0 < timing[3]["probe_s"] < timing[-1]["probe_s"] < timing[-1]["wall_s"]
    assert timing[-1]["probe_tokens"] == 2 * timing[3]["probe_tokens"] > 2 * 225 * 3 * 10
    with pytest.raises(Interruption):
        run(roots[1], wanted, watcher=Watcher(6))
    (again,) = run(roots[1], wanted)
    assert outcome(again) == outcome(folder)


@pytest.mark.parametrize("end", ["SIGUSR2", "crash"])
def test_a_round_that_was_stopped_goes_on_at_its_variant(tmp_path, monkeypatch, end):
    """Beside another run, one variant in a pass; in the second round, after 20 of its variants are on disk."""
    base = save_base(tmp_path / "base")
    parts = ("structure.first=0.4", "structure.every=0.3", "structure.rounds=2", "structure.probe.items=3")
    specs = small_spec(base, seed=1), replace(small_spec(base), method=method("alora", *parts), rank=2)
    roots = [Roots(tmp_path / n / "runs", tmp_path / n / "studies", tmp_path / "cache") for n in ("a", "b")]
    monkeypatch.setattr(reallocation, "TOKENS", 1)
    calm, variants = run(roots[0], *specs), 1 + 2 * 2 * 14
    real, asked = Adapted.hidden_of_variants, [0]

    def counted(self, *args):
        asked[0] += 1
        if asked[0] == variants + 20 and end == "SIGUSR2":
            signal.raise_signal(signal.SIGUSR2)
        if asked[0] == variants + 21 and end == "crash":
            raise Interruption
        return real(self, *args)

    monkeypatch.setattr(Adapted, "hidden_of_variants", counted)
    with pytest.raises((Stopped, Interruption)):
        run(roots[1], *specs)
    partial = create(roots[1], specs[1]).partial("ranks")
    assert [record["place"] for record in lines.read(partial)] == list(range(20))
    before, asked[0] = asked[0], -(10**9)
    again = run(roots[1], *specs)
    assert before + asked[0] + 10**9 == 2 * variants + (end == "crash")
    assert [outcome(folder) for folder in again] == [outcome(folder) for folder in calm]
    assert not partial.exists()
