"""The life of a run: from a specification to a result, through crashes, without a difference in a bit."""

import json
import signal
from dataclasses import replace

import pytest
from small import Interruption, Watcher, outcome, run, save_base, small_spec

from ablora.evals.answer_loss import AnswerLoss
from ablora.models.base import Local, load
from ablora.spec import EvalSpec
from ablora.store import lines
from ablora.store.atomic import Corrupted
from ablora.store.claims import Fenced
from ablora.store.roots import Roots
from ablora.store.run_folder import create
from ablora.train import checkpoint
from ablora.train.data import items_of, left_out
from ablora.train.stop import Stopped, stop_flag


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def roots(tmp_path):
    return Roots(tmp_path / "runs", tmp_path / "studies", tmp_path / "cache")


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (done,) = run(Roots(folder / "runs", folder / "studies", folder / "cache"), small_spec(base))
    return outcome(done)


def test_a_run_leaves_a_whole_folder(base, roots):
    watcher = Watcher()
    (folder,) = run(roots, small_spec(base, "goat"), watcher=watcher)
    result = folder.read_result()
    assert set(result["metrics"]) == {"train_loss_nats", "answer_loss_nats", "exact_match"}
    records = list(lines.read(folder.metrics))
    assert records == watcher.seen
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 9))
    assert [(r["step"], r["task"]) for r in records if r["kind"] == "eval"] == [
        (step, task) for step in (0, 4, 8) for task in ("answer_loss", "generation")
    ]
    train = [r for r in records if r["kind"] == "train"]
    assert train[-1]["loss_nats"] < train[0]["loss_nats"]
    assert all("balance" in r for r in train)
    items = list(lines.read(folder.items("answer_loss")))
    assert len(items) == 12
    mean = sum(i["loss_nats"] for i in items) / sum(i["answer_tokens"] for i in items)
    assert result["metrics"]["answer_loss_nats"] == pytest.approx(mean)
    module = result["modules"]["model.layers.0.self_attn.q_proj"]
    assert module == {"scaling": pytest.approx((3 * 32 / 1) ** 0.5), "rank": 8, "parameters": 8 * 64 + 8 * 32}
    assert not folder.checkpoint.exists()
    assert watcher.state == "done"
    assert [e["state"] for e in lines.read(folder.events)] == ["running", "done"]
    env = json.loads(folder.env.read_text())
    assert len(env["starts"]) == 1
    assert env["starts"][0]["threads"] == 1


@pytest.mark.parametrize("crash_after", [2, 3, 5, 8])
def test_a_crash_and_a_resume_change_no_bit(base, roots, undisturbed, crash_after):
    """With dropout on; after step 2 there is no checkpoint yet, after 5 the last one is of step 4."""
    spec = small_spec(base)
    with pytest.raises(Interruption):
        run(roots, spec, watcher=Watcher(crash_after))
    watcher = Watcher()
    # What a SIGKILL between writing aside and renaming leaves.
    left = next(roots.runs.iterdir()) / "evals" / ".answer_loss.jsonl.x.aside"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    (folder,) = run(roots, spec, watcher=watcher)
    assert watcher.started_at == {2: 0, 3: 0, 5: 4, 8: 6}[crash_after]
    assert outcome(folder) == undisturbed
    assert not left.exists()


def test_a_death_between_the_last_evaluation_and_the_result_changes_no_bit(base, roots, undisturbed, monkeypatch):
    """Nothing is left to be evaluated then, and the result tells what was left out all the same."""

    def die(*_):
        raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr("ablora.train.execute._Job._result", die)
        with pytest.raises(Interruption):
            run(roots, small_spec(base))
    watcher = Watcher()
    (folder,) = run(roots, small_spec(base), watcher=watcher)
    assert watcher.started_at == 8
    assert not watcher.seen
    assert outcome(folder) == undisturbed


def test_what_is_left_out_is_that_of_all_that_a_run_asks_for(base, roots):
    loaded = load(Local(name="small", path=str(base), dtype="float32"))
    spec = small_spec(base, max_tokens=110)
    few, many = AnswerLoss(split="test", max_items=3), AnswerLoss(split="test", max_items=60)
    spec = replace(spec, eval=EvalSpec(tasks={"many": many, "few": few}, every=0))
    counts = [len(items_of(spec, loaded, "test", task.max_items)[1]) for task in (few, many)]
    assert counts[0] < counts[1]
    assert left_out(spec, loaded) == {"train": len(items_of(spec, loaded, "train", None)[1]), "test": counts[1]}


def test_a_stop_signal_saves_at_the_next_step(base, roots, undisturbed):
    spec = small_spec(base, checkpoint_every=100)
    watcher = Watcher()
    seen = watcher.recorded

    def interrupt(folder, record):
        seen(folder, record)
        if record["kind"] == "train" and record["step"] == 2:
            signal.raise_signal(signal.SIGTERM)

    watcher.recorded = interrupt
    with pytest.raises(Stopped, match="SIGTERM"):
        run(roots, spec, watcher=watcher)
    second = Watcher()
    (folder,) = run(roots, spec, watcher=second)
    assert second.started_at == 2
    assert outcome(folder) == undisturbed


def test_a_damaged_slot_falls_back_to_the_other(base, roots, undisturbed):
    spec = small_spec(base)
    with pytest.raises(Interruption):
        run(roots, spec, watcher=Watcher(7))
    slots = sorted((create(roots, spec).checkpoint).iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert len(slots) == 2
    slots[-1].write_bytes(slots[-1].read_bytes()[:-5] + b"xxxxx")
    watcher = Watcher()
    with pytest.warns(UserWarning, match="damaged.*going on from the other slot"):
        (folder,) = run(roots, spec, watcher=watcher)
    assert watcher.started_at == 4
    assert outcome(folder) == undisturbed


def test_two_damaged_slots_are_named_and_kept(base, roots):
    spec = small_spec(base)
    with pytest.raises(Interruption):
        run(roots, spec, watcher=Watcher(7))
    folder = create(roots, spec)
    for slot in folder.checkpoint.iterdir():
        slot.write_bytes(b"rubbish")
    with pytest.raises(Corrupted, match=r"safetensors.*delete the checkpoint folder"):
        run(roots, spec)
    assert {slot.read_bytes() for slot in folder.checkpoint.iterdir()} == {b"rubbish"}
    assert not folder.result.exists()


def test_divergence_is_data(base, roots):
    calm, wild = small_spec(base, seed=1), small_spec(base, lr=1e30, clip_norm=None)
    quiet, failed = run(roots, calm, wild)
    assert quiet.result.exists()
    assert not failed.result.exists()
    failure = failed.read_failure()
    assert failure["class"] == "diverged"
    assert failure["step"] >= 1
    assert [e["state"] for e in lines.read(failed.events)] == ["running", "failed"]
    assert len(list(lines.read(failed.metrics))) >= 2


def test_packed_runs_equal_solo_runs_in_their_folders(base, tmp_path):
    def in_(name):
        return Roots(tmp_path / name / "runs", tmp_path / name / "studies", tmp_path / name / "cache")

    specs = [small_spec(base, "lora"), small_spec(base, "milora", seed=1)]
    packed = run(in_("packed"), *specs)
    for spec, folder in zip(specs, packed):
        (solo,) = run(in_("solo"), spec)
        a, b = outcome(solo), outcome(folder)
        losses = [[r["loss_nats"] for r in x["metrics"] if r["kind"] == "train"] for x in (a, b)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert a["result"]["metrics"] == pytest.approx(b["result"]["metrics"], rel=1e-5)


def test_an_owner_that_was_replaced_stops_writing(base, roots):
    spec = small_spec(base)
    folder = create(roots, spec)
    watcher = Watcher()
    seen = watcher.recorded

    def replaced(f, record):
        seen(f, record)
        if record["step"] == 2:
            (folder.path / "claim.1.json").write_text("{}")

    watcher.recorded = replaced
    with pytest.raises(Fenced):
        run(roots, spec, watcher=watcher)
    saved = checkpoint.load(folder.checkpoint)
    assert saved is not None
    assert saved.counters["step"] == 0
    assert not folder.result.exists()


def test_a_changed_dataset_makes_the_result_stale(base, roots, monkeypatch):
    spec = small_spec(base, max_steps=1)
    (folder,) = run(roots, replace(spec, eval=replace(spec.eval, tasks={}, every=0)))
    assert not folder.is_stale()
    monkeypatch.setattr(type(spec.dataset), "revision", 99)
    assert folder.is_stale()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_stop_handlers_are_given_back_and_the_first_word_counts(number):
    before = signal.getsignal(number)
    with stop_flag() as flag:
        signal.raise_signal(number)
        assert flag.reason == number
        signal.raise_signal(signal.SIGTERM)  # SLURM's own, after SIGUSR2
        assert flag.reason == number
    assert signal.getsignal(number) is before
