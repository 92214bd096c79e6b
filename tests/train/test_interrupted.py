"""A stop inside an evaluation or a step: what was found is kept, and going on changes no bit."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import Interruption, Watcher, outcome, run, save_base, small_spec

from ablora.evals import answer_loss, generation
from ablora.evals._kept import Kept
from ablora.evals.generation import Generation
from ablora.models import passes
from ablora.spec import BadInput
from ablora.store import lines
from ablora.store.roots import Roots
from ablora.store.run_folder import create
from ablora.train import checkpoint, loop
from ablora.train import execute as execution
from ablora.train.stop import Stopped


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Five items are three batches of generation; twelve are four passes of the loss, or so."""
    monkeypatch.setattr(generation, "BATCH", 2)
    monkeypatch.setattr(answer_loss, "ROW_TOKENS", 200)


@pytest.fixture
def roots(tmp_path):
    return Roots(tmp_path / "runs", tmp_path / "studies", tmp_path / "cache")


def elsewhere(folder: Path) -> Roots:
    return Roots(folder / "calm" / "runs", folder / "calm" / "studies", folder / "calm" / "cache")


def at_batch(monkeypatch, number: int, act) -> None:
    """Do something at the end of an evaluation's batch, counted from 1 over all evaluations."""
    seen, real = [0], Kept.add

    def add(self, values):
        seen[0] += 1
        if seen[0] == number:
            act()
        real(self, values)

    monkeypatch.setattr(Kept, "add", add)


def crash() -> None:
    raise Interruption


@pytest.mark.parametrize("end", [lambda: signal.raise_signal(signal.SIGUSR2), crash], ids=["SIGUSR2", "crash"])
@pytest.mark.parametrize("batch", [2, 5, 7, 9, 12, 16, 21])
def test_a_stopped_evaluation_goes_on_at_its_item(base, roots, tmp_path, monkeypatch, batch, end):
    """In the loss and in the generation, before the first step, between steps and after the last; two runs packed."""
    specs = [small_spec(base, "pissa"), small_spec(base, "goat", seed=1)]
    undisturbed = run(elsewhere(tmp_path), *specs)
    with monkeypatch.context() as patch:
        at_batch(patch, batch, end)
        with pytest.raises((Stopped, Interruption)):
            run(roots, *specs)
    asked: list[int] = []
    real = Generation._generate

    def counted(self, base, adapted, prompts, pause):
        asked.append(max(map(len, prompts)))
        return real(self, base, adapted, prompts, pause)

    monkeypatch.setattr(Generation, "_generate", counted)
    folders = run(roots, *specs)
    assert [outcome(f) for f in folders] == [outcome(f) for f in undisturbed]
    assert not list(roots.runs.rglob("*.partial.jsonl"))


def test_items_that_were_found_are_not_asked_again(base, roots, monkeypatch):
    spec = small_spec(base)
    with monkeypatch.context() as patch:
        at_batch(patch, _passes(base, roots) + 2, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            run(roots, spec)
    partial = create(roots, spec).partial("generation")
    assert [record["place"] for record in lines.read(partial)] == [0, 1, 2, 3]
    batches: list[int] = []
    real = Generation._generate

    def counted(self, base, adapted, prompts, pause):
        batches.append(len(prompts[0]))
        return real(self, base, adapted, prompts, pause)

    monkeypatch.setattr(Generation, "_generate", counted)
    run(roots, spec)
    assert batches == [1, 2, 2, 1, 2, 2, 1], "the last item of the first evaluation; the others whole"


def _passes(base: Path, roots: Roots) -> int:
    """How many batches the loss takes, which comes before the generation."""
    spec = small_spec(base)
    from ablora.models.base import load
    from ablora.train.data import items_of

    items, _ = items_of(spec, load(spec.model), "test", 12)
    return len(list(answer_loss.chunks_of([items.encoded])))


def test_a_stop_between_two_tokens_needs_no_whole_batch(base, roots, tmp_path, monkeypatch):
    spec = small_spec(base)
    (calm,) = run(elsewhere(tmp_path), spec)
    real, tokens = generation._Pausing.__call__, [0]

    def heard(self, *args, **kwargs):
        tokens[0] += 1
        if tokens[0] == 3:
            signal.raise_signal(signal.SIGUSR2)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(generation._Pausing, "__call__", heard)
        with pytest.raises(Stopped, match="SIGUSR2"):
            run(roots, spec)
    assert tokens[0] == 3
    (folder,) = run(roots, spec)
    assert outcome(folder) == outcome(calm)


def test_a_stop_between_micro_batches_leaves_the_step_undone(base, roots, tmp_path, monkeypatch):
    spec = small_spec(base, micro_batch=1, checkpoint_every=100)
    (calm,) = run(elsewhere(tmp_path), spec)
    real, count = loop.label_losses_of, [0]

    def counted(*args):
        count[0] += 1
        if count[0] == 4 * 2 + 2:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "label_losses_of", counted)
        with pytest.raises(Stopped):
            run(roots, spec)
    assert count[0] == 10, "the second of the third step's four"
    watcher = Watcher()
    (folder,) = run(roots, spec, watcher=watcher)
    assert watcher.started_at == 2
    assert outcome(folder) == outcome(calm)


def test_runs_that_have_ended_leave_the_pack(base, roots, tmp_path, monkeypatch):
    """One ends early, one diverges; the third is what it is alone, and the passes are narrower after each end."""
    specs = [
        small_spec(base, "pissa", max_steps=3),
        small_spec(base, "adalora", seed=1),
        small_spec(base, "milora", seed=2, lr=1e30, clip_norm=None),
        small_spec(base, "lora", seed=3),
    ]
    widths = []
    real = passes.lay_out

    def seen(rows, *where):
        widths.append(len(rows))
        return real(rows, *where)

    monkeypatch.setattr(passes, "WORTH", 10**6)  # all in one, as on a GPU
    monkeypatch.setattr(passes, "lay_out", seen)
    short, ranked, wild, whole = run(roots, *specs)
    monkeypatch.setattr(passes, "lay_out", real)
    assert widths[0] == 4
    assert widths[-1] == 2
    assert wild.read_failure()["class"] == "diverged"
    for i, folder in ((0, short), (1, ranked), (3, whole)):
        (alone,) = run(elsewhere(tmp_path), specs[i])
        mine, theirs = outcome(folder), outcome(alone)
        assert [r for r in mine["metrics"] if r["kind"] == "train"] == [
            r for r in theirs["metrics"] if r["kind"] == "train"
        ]
        a, b = (load_file(f.adapter / "ablora_adapter.safetensors") for f in (folder, alone))
        for name in a:  # AdaLoRA: one unit in the last place of one matrix, whether or not anybody leaves
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-8 if i == 1 else 0)


def test_a_base_that_changed_since_planning_is_refused(tmp_path, roots):
    base = save_base(tmp_path / "base")
    spec = small_spec(base)
    folder = create(roots, spec)
    weights = next(base.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadInput, match=f"{folder.id}, as it was when the run was planned"):
        _execute_in(folder, roots)


def _execute_in(folder, roots) -> None:
    from ablora.store import claims

    claim = claims.take(folder)
    assert claim is not None
    execution.execute([folder], [claim], roots, [])


def test_fewer_examples_at_a_time_are_no_other_run(base, roots, tmp_path):
    """What a run that does not fit falls back to: the same losses to rounding; where dropout is drawn per micro-batch
    the bound is not heeded."""
    from ablora.store import claims

    for dropout in (0.0, 0.1):
        spec = small_spec(base, dropout=dropout)
        (whole,) = run(elsewhere(tmp_path), spec)
        folder = create(roots, spec)
        claim = claims.take(folder)
        assert claim is not None
        execution.execute([folder], [claim], roots, [], most_examples=1)
        a, b = ([r["loss_nats"] for r in lines.read(f.metrics) if r["kind"] == "train"] for f in (whole, folder))
        if dropout:
            assert a == b
        else:
            assert a != b
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-5)


def test_a_run_that_was_taken_over_keeps_nobody_from_being_saved(base, roots):
    specs = [small_spec(base, checkpoint_every=100), small_spec(base, seed=1, checkpoint_every=100)]
    lost, saved = (create(roots, spec) for spec in specs)
    watcher = Watcher()
    seen = watcher.recorded

    def meanwhile(folder, record):
        seen(folder, record)
        if record["kind"] == "train" and record["step"] == 2 and folder.id == saved.id:
            (lost.path / "claim.1.json").write_text("{}")
            signal.raise_signal(signal.SIGTERM)

    watcher.recorded = meanwhile
    with pytest.raises(Stopped):
        run(roots, *specs, watcher=watcher)
    found = checkpoint.load(saved.checkpoint)
    assert found is not None
    assert found.counters["step"] == 2
