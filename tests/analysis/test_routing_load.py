import itertools
import math

import numpy as np
import pandas as pd
import pytest
from synthetic import Made, id_of, stale, write_study

from ablora.store import lines
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora_analysis import table
from ablora_analysis.figures import arms, expert_load, routing_load
from ablora_analysis.figures.expert_load import Load
from ablora_analysis.figures.study import Study


def study_of(roots: Roots, runs: list[Made]) -> Study:
    write_study(roots, "s", runs)
    return read_again(roots)


def read_again(roots: Roots) -> Study:
    rows, _ = table.read_rows(roots, "s", stale)
    prepared = arms.prepare(table.cells(roots, "s", rows))
    folder = roots.studies / "s"
    return Study(roots, "s", folder / "figures", prepared, arms.choose(prepared), {}, folder / "measures")


def loads_of(study: Study) -> list[Load]:
    return expert_load.points(study.choices, study.prepared, expert_load.read(study))


def mixtures(num: int = 2, **fields: object) -> list[Made]:
    return [Made(method="goat", seed=s, experts=4, **fields) for s in range(num)]  # type: ignore[arg-type]


def test_loads_are_means_over_runs_one_when_balanced(roots: Roots) -> None:
    made = mixtures(init="SvdSegments")
    (load,) = loads_of(study_of(roots, [*made, Made(method="lora")]))
    assert (load.arm, load.experts, load.named, load.layers) == ("goat", 4, True, (0, 1, 2, 3))
    assert (load.per_token, load.gates) == (pytest.approx((2, 2)), False)
    assert load.kinds == ("q_proj", "v_proj", "up_proj", "down_proj")
    assert load.load.mean(-1) == pytest.approx(np.ones((4, 4)))  # k of E experts per token
    both = [{r["item"]: r for r in lines.read(folder_of(roots, id_of(m)).items("routing"))} for m in made]
    own = [np.array(run["model.layers.2.mlp.up_proj"]["load"]) * 4 / 2 for run in both]
    assert load.load[2, 2] == pytest.approx((own[0] + own[1]) / 2)
    assert load.least == pytest.approx(min(min(r["load"]) for run in both for r in run.values()) * 2)


def test_experts_without_a_name_stand_in_order_of_their_load(roots: Roots) -> None:
    (load,) = loads_of(study_of(roots, mixtures()))
    assert not load.named
    assert bool((np.diff(load.load, axis=-1) <= 0).all())
    assert any("Sorted by load" in note for note in routing_load.notes([load], []))


def test_a_permutation_of_experts_changes_nothing_where_they_have_no_name(roots: Roots) -> None:
    study = study_of(roots, mixtures(1))
    (one,) = loads_of(study)
    path = folder_of(roots, study.choices[0].ids[0]).items("routing")
    turned = []
    for number, record in enumerate(lines.read(path)):
        order = np.random.default_rng(number).permutation(4)
        pairs = np.array(record["coactivation"])[np.ix_(order, order)].tolist()
        turned.append(record | {"load": np.array(record["load"])[order].tolist(), "coactivation": pairs})
    lines.write(path, turned)
    (two,) = loads_of(study)
    assert two.load == pytest.approx(one.load)
    np.testing.assert_allclose(two.together, one.together)


def test_co_activation_is_one_for_pairs_at_random(roots: Roots) -> None:
    study = study_of(roots, mixtures(1))
    path = folder_of(roots, study.choices[0].ids[0]).items("routing")
    even = np.full((4, 4), 1 / 6) + np.eye(4) * (0.5 - 1 / 6)  # 2 of 4: six pairs, each expert in half of them
    lines.write(path, [r | {"load": [0.5] * 4, "coactivation": even.tolist()} for r in lines.read(path)])
    (load,) = loads_of(study)
    assert load.together[~np.eye(4, dtype=bool)] == pytest.approx(np.ones(12))
    assert bool(np.isnan(np.diag(load.together)).all())


def record_of(chosen: np.ndarray, p: np.ndarray, gate: np.ndarray) -> dict[str, list]:
    """A module's record by its definition; chosen, p and gate (tokens, experts)."""
    sums = {"load": chosen, "mean_gate": gate, "mean_probability": p}
    pairs = chosen.T @ chosen / len(chosen)
    return {key: value.mean(0).tolist() for key, value in sums.items()} | {"coactivation": pairs.tolist()}


def test_where_all_get_every_token_the_gates_are_shown() -> None:
    gate = np.array([[0.6, 0.4], [0.8, 0.2]])
    record = record_of(np.ones((2, 2)), gate, gate)
    assert expert_load.gates_alone(record)
    assert expert_load.relative(record) == pytest.approx([1.4, 0.6])
    one = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    assert expert_load.relative(record_of(one, 0 * one + 0.5, one)) == pytest.approx([1.5, 0.5])
    assert np.isnan(expert_load.together(record_of(one, 0 * one + 0.5, one))).all()


@pytest.mark.parametrize("with_shared", [False, True])
def test_tokens_with_unequal_numbers_of_experts_at_random_are_balanced(with_shared: bool) -> None:
    """All sets of 1, 2 and 4 of 4 experts in equal parts per size: exactly balanced, and as if drawn at random."""
    sets = [c for k in (1, 2, 4) for c in itertools.combinations(range(4), k) for _ in range(12 // math.comb(4, k))]
    chosen = np.zeros((len(sets), 4))
    for row, own in enumerate(sets):
        chosen[row, list(own)] = 1
    gate, p = chosen / chosen.sum(1, keepdims=True), np.full_like(chosen, 0.25)
    if with_shared:
        ones = np.ones((len(sets), 1))
        chosen, gate, p = (np.hstack([a, b]) for a, b in ((ones, chosen), (ones, gate), (0 * ones, p)))
    record = record_of(chosen, p, gate)
    num = 4 + with_shared
    assert expert_load.shared(record).tolist() == [with_shared, *[False] * (num - 1)]
    assert expert_load.relative(record) == pytest.approx(np.ones(num))
    assert expert_load.together(record)[~np.eye(num, dtype=bool)] == pytest.approx(np.ones(num * (num - 1)))


def test_a_shared_expert_stands_first_and_hides_nothing() -> None:
    """Of two routed ones the second gets three quarters: 0.5 and 1.5, beside 1 for the shared expert."""
    chosen = np.array([[1.0, 1.0, 0.0]] + [[1.0, 0.0, 1.0]] * 3)
    record = record_of(chosen, np.array([[0.0, 0.5, 0.5]] * 4), chosen)
    assert expert_load.relative(record) == pytest.approx([1.0, 0.5, 1.5])
    found = expert_load.together(record)
    assert found[0, 1:] == pytest.approx([0.5, 1.5])
    assert found[1:, 0] == pytest.approx([0.5, 1.5])
    assert np.isnan(found[1, 2]), "one routed expert a token: no two meet"
    choice = arms.Choice("", "d", "a", "m", 1e-3, (1e-3,), "", False, (0,), ("r",), (), "0/1")
    runs = pd.DataFrame({"id": ["r"], "init": ["ZeroB"]})
    (load,) = expert_load.points([choice], runs, {"r": [{"item": "q", **record}]})
    assert load.load[0, 0] == pytest.approx([1.0, 1.5, 0.5]), "the shared one, then the busiest first"
    assert load.per_token == (2.0, 2.0)


@pytest.mark.parametrize(
    ("module", "place"),
    [("model.layers.3.mlp.up_proj", (3, "up_proj")), ("lm_head", (-1, "lm_head")), ("h.0.attn.1.q", (0, "q"))],
)
def test_place(module: str, place: tuple[int, str]) -> None:
    assert expert_load.place(module) == place


def test_every_load_is_in_the_csv(roots: Roots) -> None:
    study = study_of(roots, mixtures())
    records = expert_load.read(study)
    found = expert_load.frame(study.choices, records)
    assert len(found) == 2 * 16 * 4
    row = found[(found["seed"] == 1) & (found["module"] == "model.layers.0.mlp.down_proj")]
    told = next(r for r in records[id_of(mixtures()[1])] if r["item"] == "model.layers.0.mlp.down_proj")
    assert (row["load"].tolist(), row["expert"].tolist()) == (told["load"], [1, 2, 3, 4])


def test_without_mixtures_nothing_is_painted_and_a_record_without_loads_is_refused(roots: Roots) -> None:
    assert routing_load.paint(study_of(roots, [Made(method="lora")])) == []
    study = study_of(roots, mixtures(1))
    path = folder_of(roots, study.choices[0].ids[0]).items("routing")
    lines.write(path, [{"item": "q", "step": 1}])
    with pytest.raises(Corrupted, match=r"routing\.jsonl"):
        routing_load.paint(study)
