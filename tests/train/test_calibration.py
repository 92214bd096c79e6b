"""The pass over training data: right sums, made once, and the same for all seeds."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from small import Interruption, Watcher, run, save_base, small_spec
from torch import Tensor

from ablora.method.export import EXACT
from ablora.method.targets import find_targets
from ablora.models.segments import packed_logits
from ablora.spec import BadInput, run_id
from ablora.spectra.statistics import Calibration, Gradients, Moments, Normalised, finished
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.train import calibration as module
from ablora.train.calibration import choose, collect
from presets import method
from tiny import llama, made_up

ITEMS = made_up(0, 7)


def inputs_of(model, items) -> dict[str, list[Tensor]]:
    """Every layer's inputs, item by item, by hooks of the test's own."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, args: tuple[Tensor, ...]) -> None:
        seen.setdefault(name, []).append(args[0][0].double())

    hooks = [
        layer.register_forward_hook(lambda _, args, __, name=name: keep(name, args))
        for name, layer in find_targets(model, "all-linear").items()
    ]
    with torch.no_grad():
        for item in items:
            packed_logits(model, torch.tensor([item.input_ids]), [[len(item.input_ids)]])
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_moments_are_those_of_all_inputs_at_once(positions):
    model = llama()
    found = collect(model, find_targets(model, "all-linear"), Moments(positions=positions), ITEMS)
    for name, samples in inputs_of(model, ITEMS).items():
        starts = [item.answer_start if positions == "answer" else 0 for item in ITEMS]
        x = torch.cat([sample[at:] for sample, at in zip(samples, starts)])
        sums = found.of(name)
        assert sums["count"] == len(x)
        torch.testing.assert_close(sums["total"], x.sum(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sums["square"], x.T @ x, rtol=1e-12, atol=1e-12)


def test_normalised_moments_are_sample_by_sample():
    model = llama()
    found = collect(model, find_targets(model, "all-linear"), Normalised(), ITEMS)
    for name, samples in inputs_of(model, ITEMS).items():
        expected = torch.stack([(x / x.max()).T @ (x / x.max()) for x in samples]).sum(0)
        assert found.of(name)["count"] == len(ITEMS)
        torch.testing.assert_close(found.of(name)["square"], expected, rtol=1e-12, atol=1e-12)


def test_layers_that_read_one_input_share_its_sums():
    model = llama()
    found = collect(model, find_targets(model, "all-linear"), Normalised(), ITEMS)
    assert len(found.owner) == 14
    assert len(found.sums) == 8, "q k v; o; gate up; down, in each of two layers"
    assert found.owner["model.layers.1.self_attn.v_proj"] == "model.layers.1.self_attn.q_proj"


def test_gradients_are_autograds_averaged_over_micro_batches():
    model = llama()
    layers = find_targets(model, "all-linear")
    found = collect(model, layers, Gradients(batch=3), ITEMS)
    assert not any(p.requires_grad for p in model.parameters()), "frozen again"
    weights = [layer.weight.requires_grad_(True) for layer in layers.values()]
    parts = []
    for first, last in pairwise([0, 3, 6, 7]):
        nats, count = torch.zeros(()), 0
        for item in ITEMS[first:last]:
            ids = torch.tensor([item.input_ids])
            logits = packed_logits(model, ids, [[ids.shape[1]]])[0, item.answer_start - 1 : -1]
            answer = ids[0, item.answer_start :]
            nats, count = nats - logits.log_softmax(-1).gather(1, answer[:, None]).sum(), count + len(answer)
        parts.append(torch.autograd.grad(nats / count, weights))
    for name, *grads in zip(layers, *parts):
        sums = found.of(name)
        assert sums["count"] == 3
        torch.testing.assert_close(sums["gradient"].float(), torch.stack(grads).sum(0), rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_items_are_whole_and_in_the_calibrations_own_order():
    first = choose(ITEMS, Calibration(samples=4, tokens=None, seed=0))
    assert choose(ITEMS, Calibration(samples=100, tokens=None, seed=0))[:4] == first
    assert sorted(e.item for e in choose(ITEMS, Calibration(samples=7, tokens=None, seed=0))) == list("0123456")
    assert choose(ITEMS, Calibration(samples=4, tokens=None, seed=1)) != first
    two = len(first[0].input_ids) + len(first[1].input_ids)
    assert choose(ITEMS, Calibration(samples=4, tokens=two, seed=0)) == first[:2]
    assert choose(ITEMS, Calibration(samples=4, tokens=two - 1, seed=0)) == first[:1]
    with pytest.raises(BadInput, match=r"calibration.tokens=5.*items are not cut"):
        choose(ITEMS, Calibration(samples=4, tokens=5, seed=0))
    for field, value in (("samples", 0), ("tokens", 0), ("seed", -1)):
        with pytest.raises(BadInput, match=field):
            replace(Calibration(samples=4, tokens=None, seed=0), **{field: value})


def test_what_is_no_number_or_was_not_reached_is_named():
    model = llama()
    layers = find_targets(model, "all-linear")
    with torch.no_grad():
        layers["model.layers.0.mlp.up_proj"].weight.fill_(float("nan"))
    with pytest.raises(BadInput, match=r"method.init.calibration='model.layers.0.mlp.down_proj'"):
        collect(model, layers, Moments(positions="all"), ITEMS)
    with pytest.raises(BadInput, match="q_proj"):
        finished({}, {}, layers)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def spec(base, preset: str, samples: int = 6, **more):
    made = small_spec(base, preset, dropout=0.0, **more)
    calibration = replace(made.method.init.calibration, samples=samples)
    chosen = replace(made.method, init=replace(made.method.init, calibration=calibration))
    return replace(made, method=chosen, train=replace(made.train, max_steps=2), eval=replace(made.eval, tasks={}))


def files(roots: Roots) -> list:
    return sorted((roots.cache / "statistics").glob("*.safetensors"))


@pytest.fixture
def roots(tmp_path) -> Roots:
    return Roots(tmp_path / "runs", tmp_path / "studies", tmp_path / "cache")


def test_runs_of_a_study_share_one_pass(base, roots, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(module, "collect", lambda *a: calls.append(len(a[3])) or collect(*a))
    run(roots, spec(base, "corda_ipm"))
    run(roots, spec(base, "corda_kpm", seed=1), spec(base, "corda_ipm", seed=2))
    assert calls == [6]
    assert len(files(roots)) == 1
    run(roots, spec(base, "corda_ipm", samples=5))
    run(roots, spec(base, "lora_ga"), spec(base, "lora_ga", seed=1))
    assert calls == [6, 5, 6]
    assert len(files(roots)) == 3


@pytest.mark.parametrize("preset", ["corda_kpm", "lora_ga", "eva"])
def test_equal_runs_are_equal_without_the_cache_and_after_a_crash(base, roots, tmp_path, preset):
    (first,) = run(roots, spec(base, preset, checkpoint_every=1))
    elsewhere = Roots(tmp_path / "other", tmp_path / "studies", tmp_path / "other_cache")
    with pytest.raises(Interruption):
        run(elsewhere, spec(base, preset, checkpoint_every=1), watcher=Watcher(crash_after=2))
    (again,) = run(elsewhere, spec(base, preset, checkpoint_every=1))
    assert (again.adapter / EXACT).read_bytes() == (first.adapter / EXACT).read_bytes()
    assert again.metrics.read_bytes() == first.metrics.read_bytes()
    (mine,), (theirs,) = files(roots), files(elsewhere)
    assert mine.name == theirs.name
    assert load_file(mine).keys() == load_file(theirs).keys()
    assert all(torch.equal(tensor, load_file(theirs)[name]) for name, tensor in load_file(mine).items())
    tensors = load_file(first.adapter / EXACT)
    assert any(name.endswith(".A0") for name in tensors) == (preset != "eva")
    result = first.read_result()
    assert sum(module["parameters"] for module in result["modules"].values()) == result["trainable_parameters"]
    own = {name: module["rank"] for name, module in result["modules"].items()}
    assert own == {name: len(tensors.get(f"{name}.A", ())) for name in own}
    assert sum(own.values()) == 8 * len(own)
    assert (len(set(own.values())) > 1) == (preset == "eva")


def test_a_damaged_file_is_named_and_not_replaced(base, roots):
    run(roots, spec(base, "eva"))
    (path,) = files(roots)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    broken = path.read_bytes()
    with pytest.raises(Corrupted, match=f"{path.name}.*delete this file"):
        run(roots, spec(base, "eva", seed=1))
    assert path.read_bytes() == broken


def test_the_calibration_is_part_of_the_id(base):
    ids = {run_id(spec(base, "eva", samples=n)) for n in (5, 6)}
    ids |= {run_id(spec(base, p)) for p in ("corda_ipm", "corda_kpm", "lora_ga")}
    assert len(ids) == 5
    assert method("eva").init.calibration == Calibration(samples=256, tokens=None, seed=0)
