"""Run folders of ours, a study of them, and what becomes of a bad one."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from measure_made import write_run, write_study
from safetensors.torch import load_file, save_file

from ablora import cli
from ablora.spec import BadInput
from ablora.store import lines
from ablora.store.roots import Roots
from ablora_analysis.measure import main
from ablora_analysis.measure.adapters import EXPECTED, WHOLE
from ablora_analysis.measure.from_run import open_run
from ablora_analysis.measure.update import decompose
from presets import method
from train.small import save_base, small_spec

EXACT = Path("adapter/ablora_adapter.safetensors")
PRESETS = ("lora", "rslora", "pissa", "milora", "goat")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("preset", ["lora", "rslora", "pissa", "milora"])
def test_a_pairs_update_is_what_merging_adds(base, roots, preset):
    folder, dense = write_run(roots, small_spec(base, preset))
    adapter = open_run(folder)
    assert adapter.ranks.keys() == dense.keys()
    for module, wanted in dense.items():
        (part,) = adapter.parts(module).values()
        np.testing.assert_allclose((part.update.B @ part.update.A).numpy(), wanted.numpy(), atol=2e-6)
        assert len(decompose(part.update).sigma) == (8 if preset in ("lora", "rslora") else 16)


@pytest.mark.parametrize("init", ["gaussian_both", "zero_b", "svd_minor"])
def test_an_update_of_weighed_triplets_is_what_merging_adds(base, roots, init):
    """AdaLoRA, two of whose directions were pruned everywhere: its numerical rank is what stayed."""
    spec = small_spec(base, "lora")
    spec = replace(spec, method=method("adalora", f"init={init}"))
    folder, dense = write_run(roots, spec)
    path = folder.path / EXACT
    tensors = load_file(path)
    for module in dense:
        tensors[f"{module}.E"][:2] = -1.0 if init == "zero_b" else 0.0
    save_file(tensors, path, metadata={"format": "pt"})
    adapter = open_run(folder)
    for module, before in dense.items():
        (part,) = adapter.parts(module).values()
        assert len(decompose(part.update).sigma) == 6
        rest = before - (part.update.B @ part.update.A)
        assert torch.linalg.matrix_rank(rest, rtol=1e-3) == 2


def test_modules_of_unequal_ranks_are_measured_and_those_of_none_have_no_row(base, roots):
    """EVA beside LoRA at rank 1: what one of them does not adapt is compared nowhere."""
    eva, lora = (replace(small_spec(base, preset), rank=1) for preset in ("eva", "lora"))
    folder, dense = write_run(roots, eva)
    other, everywhere = write_run(roots, lora)
    records = json.loads((folder.path / EXACT).with_suffix(".json").read_text())["modules"]
    assert {record["rank"] for record in records.values()} == {0, 1, 2}
    adapter = open_run(folder)
    assert adapter.ranks == {module: record["rank"] for module, record in records.items() if record["rank"]}
    assert set(adapter.ranks) == set(dense) < set(everywhere)
    frames = main.measure_adapters([folder.path, other.path], roots=roots)
    for name in ("subspace", "projection", "spectrum"):
        found = frames[name].groupby("id").module.agg(set)
        assert found[folder.id] == set(dense)
        assert found[other.id] == set(everywhere)
    assert set(frames["phi"].module) == set(dense)
    norms = frames["spectrum"].query("id == @folder.id and measure == 'frobenius'").set_index("module").value
    for module, update in dense.items():
        assert norms[module] == pytest.approx(update.norm().item(), rel=1e-3)
    tops = frames["subspace"].query("id == @folder.id and side == 'left' and against == 'top'").set_index("module").i
    assert tops.to_dict() == adapter.ranks


def test_an_update_of_gated_ranks_is_of_those_that_live(base, roots):
    """ALoRA, whose first module gave all its ranks to the second."""
    folder, dense = write_run(roots, replace(small_spec(base, "lora"), method=method("alora")))
    path = folder.path / EXACT
    tensors, records = load_file(path), json.loads(path.with_suffix(".json").read_text())
    first, second = list(dense)[:2]
    for module, gate, rank in ((first, 0.0, 0), (second, 1.0, 16)):
        tensors[f"{module}.gate"][:] = gate
        records["modules"][module]["rank"] = rank
    save_file(tensors, path, metadata={"format": "pt"})
    path.with_suffix(".json").write_text(json.dumps(records))
    adapter = open_run(folder)
    assert set(adapter.ranks) == set(dense) - {first}
    for module in adapter.ranks:
        (part,) = adapter.parts(module).values()
        rank = 16 if module == second else 8
        assert part.rank == rank == len(decompose(part.update).sigma)
        A, B = (tensors[f"{module}.{role}"][:rank].double() for role in "AB")
        np.testing.assert_allclose((part.update.B @ part.update.A).numpy(), (2 * B.mT @ A).numpy(), atol=1e-12)


def test_doras_update_is_what_merging_adds(base, roots):
    folder, dense = write_run(roots, replace(small_spec(base, "lora"), method=method("dora")))
    adapter = open_run(folder)
    for module, wanted in dense.items():
        (part,) = adapter.parts(module).values()
        assert part.rank == 8
        np.testing.assert_allclose((part.update.B @ part.update.A).numpy(), wanted.numpy(), atol=2e-6)


def test_a_mixtures_parts_and_gates(base, roots):
    spec = small_spec(base, "goat")
    folder, _ = write_run(roots, spec)
    num = spec.method.structure.experts
    module = next(iter(open_run(folder).ranks))
    parts = open_run(folder).parts(module)
    assert list(parts) == [EXPECTED, *(f"expert {e}" for e in range(num))]
    assert (parts[EXPECTED].gates, parts[EXPECTED].rank, parts["expert 0"].rank) == ("uniform", 8, 8 // num)
    uniform = sum(part.update.B @ part.update.A for name, part in parts.items() if name != EXPECTED) / num
    np.testing.assert_allclose(
        (parts[EXPECTED].update.B @ parts[EXPECTED].update.A).numpy(), uniform.numpy(), atol=1e-12
    )

    before = open_run(folder).content
    gates = np.arange(1, num + 1) / (num * (num + 1) / 2)
    records = [{"item": name, "step": 1, "mean_gate": gates.tolist()} for name in open_run(folder).ranks]
    folder.items("routing").parent.mkdir()
    lines.write(folder.items("routing"), records)
    adapter = open_run(folder)
    assert adapter.parts(module)[EXPECTED].gates == "measured"
    assert adapter.content != before
    f = {role: t.double().numpy() for role, t in load_file(folder.path / EXACT).items() if role.startswith(module)}
    A, B, A0, B0 = (f[f"{module}.{role}"] for role in ("A", "B", "A0", "B0"))
    s, g = f[f"{module}.scale"][:, None], gates.repeat(8 // num)[:, None]
    wanted = (s * g * B).T @ A - (s * B0).T @ A0 / num
    update = adapter.parts(module)[EXPECTED].update
    np.testing.assert_allclose((update.B @ update.A).numpy(), wanted, atol=1e-9)

    lines.write(folder.items("routing"), records[1:])
    with pytest.raises(BadInput, match=f"routing.jsonl: {module}"):
        open_run(folder)


@pytest.mark.parametrize("preset", ["lora", "goat", "goat_s", "molora_topk", "hydralora"])
def test_where_factors_started(base, roots, preset):
    """A0 is drawn again from the seed where it was not saved: an adapter that did not move shows it."""
    folder, _ = write_run(roots, small_spec(base, preset), size=0.0)
    adapter = open_run(folder)
    tensors = load_file(folder.path / EXACT)
    for module in adapter.ranks:
        assert torch.equal(adapter.start(module), tensors[f"{module}.A"])


def spoil(folder, change) -> None:
    tensors = load_file(folder.path / EXACT)
    change(tensors)
    save_file(tensors, folder.path / EXACT)


NAME = "model.layers.0.mlp.up_proj.A"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t[NAME].view(-1)[3].fill_(float("nan")), f"{NAME}.*1 of 256 not finite"),
        (lambda t: t.pop(NAME), f"{NAME}.*missing"),
        (lambda t: t.update(other=torch.ones(1)), "other.*not expected"),
        (lambda t: t.update({NAME: torch.ones(7, 32)}), rf"{NAME}.*\(8, 32\)"),
        (
            lambda t: t.update({NAME: torch.ones(8, 31), NAME + "0": torch.ones(8, 31)}),
            rf"{NAME}.*\(8, 31\).*\(8, 32\).*base",
        ),
    ],
)
def test_damage_is_named_by_file_and_tensor(base, roots, change, named):
    folder, _ = write_run(roots, small_spec(base, "pissa"))
    spoil(folder, change)
    with pytest.raises(BadInput, match=named) as caught:
        open_run(folder)
    assert EXACT.name in str(caught.value)


def test_a_cut_file_another_base_and_another_specification_are_refused(base, roots, tmp_path):
    folder, _ = write_run(roots, small_spec(base, "lora"))
    assert open_run(folder, base).id == folder.id
    other = save_base(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=f"{folder.id}: base"):
        open_run(folder, other)
    tree = json.loads(folder.spec.read_text())
    tree["spec"]["method"] = tree["spec"]["train"]
    folder.spec.write_text(json.dumps(tree))
    with pytest.raises(BadInput, match=r"spec\.json: method"):
        open_run(folder)


def test_a_cut_file_is_named(base, roots):
    folder, _ = write_run(roots, small_spec(base, "lora"))
    path = folder.path / EXACT
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadInput, match=f"{path.name}.*whole safetensors"):
        open_run(folder)
    path.unlink()
    with pytest.raises(BadInput, match=path.name):
        open_run(folder)


@pytest.fixture(scope="module")
def study(base, tmp_path_factory) -> tuple[Roots, dict]:
    """Five methods with two seeds each."""
    place = tmp_path_factory.mktemp("study")
    roots = Roots(place / "runs", place / "studies", place / "cache")
    runs = {}
    for preset in PRESETS:
        for seed in (0, 1):
            spec = small_spec(base, preset, seed=seed)
            runs[preset, seed] = (write_run(roots, spec)[0], spec)
    write_study(roots, "s", runs)
    return roots, runs


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_study_is_measured_once_and_repeats_byte_for_byte(study, tmp_path, monkeypatch):
    roots, runs = study
    folder = main.measure_study(roots, "s")
    first = contents(folder)
    assert sorted(first) == sorted(["measures.json", *(f"{name}.parquet" for name in main.NAMES)])
    monkeypatch.setattr(main, "measure", None)
    assert contents(main.measure_study(roots, "s")) == first
    monkeypatch.setattr(main, "REVISION", 999)
    with pytest.raises(TypeError):
        main.measure_study(roots, "s")
    monkeypatch.undo()
    elsewhere = replace(roots, studies=tmp_path / "studies", cache=tmp_path / "cache")
    write_study(elsewhere, "s", runs)
    assert contents(main.measure_study(elsewhere, "s")) == first


def test_every_run_module_and_part_has_its_rows(study):
    roots, runs = study
    frames = main.read(main.measure_study(roots, "s"))
    modules, parts = 14, 8 + 2 * (1 + runs["goat", 0][1].method.structure.experts)
    assert len(frames["subspace"]) == modules * parts * 2 * 3
    assert len(frames["projection"]) == modules * parts * 3
    assert not frames["spectrum"].duplicated(["id", "module", "part", "measure"]).any()
    assert (frames["spectrum"]["reason"] == "").all()
    assert set(frames["subspace"]["layer"]) == {0, 1}
    assert set(frames["subspace"]["kind"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    for name in ("subspace", "projection", "spectrum", "phi"):
        own = frames[name]
        assert own[["id", "module", "part"]].equals(own[["id", "module", "part"]].sort_values(["id", "module", "part"]))
    assert set(frames["subspace"].query("gates == 'uniform'")["part"]) == {EXPECTED}


def test_phi_between_all_runs_and_which_of_them_started_alike(study):
    roots, runs = study
    phi = main.read(main.measure_study(roots, "s"))["phi"]
    assert len(phi) == math.comb(10, 2) * 14 * 2 * 64
    assert set(phi["part"]) == {WHOLE, EXPECTED}
    starts = phi.groupby(["id", "id_b"])["shared_start"].agg(["min", "max"])
    assert (starts["min"] == starts["max"]).all()
    names = {folder.id: key for key, (folder, _) in runs.items()}
    alike = {frozenset((names[a], names[b])) for (a, b), row in starts.iterrows() if row["min"]}
    # A drawn start is that of the seed, whatever the scale; one from W0's spectrum is the same for every seed.
    drawn = {frozenset({("lora", seed), ("rslora", seed)}) for seed in (0, 1)}
    fixed = {frozenset({(preset, 0), (preset, 1)}) for preset in ("pissa", "milora", "goat")}
    assert alike == drawn | fixed


def test_experts_of_a_mixture_are_compared_with_each_other(study):
    roots, runs = study
    frame = main.read(main.measure_study(roots, "s"))["experts"]
    num = runs["goat", 0][1].method.structure.experts
    assert (frame["id"] == frame["id_b"]).all()
    assert set(frame["id"]) == {runs["goat", seed][0].id for seed in (0, 1)}
    assert len(frame) == 2 * 14 * 2 * math.comb(num, 2) * (8 // num) ** 2


def test_a_bad_run_is_named_and_the_others_are_measured(base, roots):
    specs = {seed: small_spec(base, "lora", seed=seed) for seed in range(3)}
    runs = {("lora", seed): (write_run(roots, spec)[0], spec) for seed, spec in specs.items()}
    write_study(roots, "s", runs)
    bad = runs["lora", 1][0]
    spoil(bad, lambda t: t[NAME].fill_(float("nan")))
    with pytest.raises(BadInput, match=f"{bad.id}.*{NAME}"):
        main.measure_study(roots, "s")
    folder = roots.studies / "s" / "measures"
    frames = main.read(folder)
    assert set(frames["subspace"]["id"]) == {runs["lora", seed][0].id for seed in (0, 2)}
    record = json.loads((folder / "measures.json").read_text())
    assert list(record["left_out"]) == [bad.id]
    assert NAME in record["left_out"][bad.id]
    for seed in (0, 2):
        spoil(runs["lora", seed][0], lambda t: t.clear())
    with pytest.raises(BadInput, match="missing"):
        main.measure_study(roots, "s")
    assert set(main.read(folder)["subspace"]["id"]) == {runs["lora", seed][0].id for seed in (0, 2)}


def test_the_command(study, base, monkeypatch, capsys, tmp_path):
    roots, runs = study
    for name, value in roots.environment().items():
        monkeypatch.setenv(name, value)
    assert cli.main(["analyse", "s"]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith(str(roots.studies / "s" / "measures"))
    assert "phi of lora and rslora, same start: left" in said
    assert "uniform gates" in said
    one, two = (runs["pissa", seed][0] for seed in (0, 1))
    arguments = [one.id, str(two.path / "adapter"), "--base", str(base), "--out", str(tmp_path / "out")]
    assert cli.main(["analyse", *arguments]) == 0
    assert f"phi of {one.id} and {two.id}" in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "out" / "phi.parquet")) == 14 * 2 * 64
    for wrong in (["nothing"], [one.id, one.id], ["s", "--base", "pico"], [one.id, "--base", "nowhere"]):
        assert cli.main(["analyse", *wrong]) == 2
        assert "is not legal" in capsys.readouterr().err


def test_the_export_for_peft_is_the_same_update(study, base):
    """Our own folder holds the adapter twice, exactly and in PEFT's layout; both say the same."""
    roots, runs = study
    folder, _ = runs["pissa", 0]
    copy = folder.path / "adapter"
    frames = main.measure_adapters([folder.path], base, roots)
    exported = main.open_peft(copy, base)
    for module in exported.ranks:
        (ours,), (theirs,) = (a.parts(module).values() for a in (main.open_run(folder), exported))
        a, b = ours.update, theirs.update
        np.testing.assert_allclose((a.B @ a.A).numpy(), (b.B @ b.A).numpy(), atol=1e-7)
    assert len(frames["spectrum"])
