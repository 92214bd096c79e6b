"""The fair protocol: equal tuning, ranges wide enough, edges marked, fresh seeds; and going on at any point of it."""

import json
from pathlib import Path

import pytest

import fake_execute
from ablora.cli import main
from ablora.store import lines
from ablora.store.run_folder import folder_of
from ablora.tune.verdict import verdicts
from searches import results, starts

pytestmark = pytest.mark.usefixtures("fake")
FAIR = [
    "train=quick",
    "tracker=off",
    "cluster=inline",
    "study=s",
    "eval.every=1",
    "eval.at_start=false",
    "protocol=fair",
]


def fair(*more: str) -> int:
    return main(["run", "-m", *FAIR, *more])


def rows(study, why: str) -> list[dict]:
    return [row for row in lines.read(study.manifest) if row["why"] == why]


def test_each_method_is_confirmed_with_fresh_seeds_at_its_own_best(roots, study, capsys):
    assert fair("method=lora,pissa") == 0
    assert [(v.best, v.edge, v.extensions) for v in verdicts(study).values()] == [(0.01, False, 0)] * 2
    confirmed = [
        (row["labels"]["method"], row["labels"]["train.lr"], row["labels"]["seed"]) for row in rows(study, "confirm")
    ]
    assert confirmed == [(method, 0.01, seed) for method in ("lora", "pissa") for seed in (1, 2, 3)]
    assert all(folder_of(roots, row["id"]).result.exists() for row in rows(study, "confirm"))
    told = results(study).values()
    assert len(told) == 12
    assert {one["state"] for one in told} <= {"complete", "pruned"}
    assert set(starts(roots)) == {1}
    assert "best: method=lora: train.lr=0.01" in capsys.readouterr().out


def test_a_best_value_on_the_border_widens_the_range_until_it_is_inside(roots, study):
    assert fair("method=lora", "protocol.values=[1e-4,3e-4,1e-3]") == 0
    (one,) = verdicts(study).values()
    assert one.values == (0.003, 0.009), "0.003 is the border still, and 0.009 too"
    assert (one.best, one.edge) == (0.009, True)
    assert not rows(study, "confirm"), "not confirmed, and so not ranked"


def test_an_edge_is_said_and_the_other_arms_are_ranked(roots, study, capsys):
    assert fair("method=lora", "protocol.values=[1e-4,3e-4,1e-3]", "protocol.extensions=3") == 0
    (one,) = verdicts(study).values()
    assert (one.values, one.best, one.edge) == ((0.003, 0.009, 0.027), 0.009, False)
    assert len(rows(study, "confirm")) == 3
    assert "after 3 extensions" in capsys.readouterr().out


def test_the_lower_border_moves_down(roots, study):
    assert fair("method=lora", "protocol.values=[0.03,0.1]") == 0
    (one,) = verdicts(study).values()
    assert one.values == (0.01, 0.00333333)
    assert (one.best, one.edge) == (0.01, False)


def test_all_arms_have_the_same_trials(roots, study):
    assert fair("method=lora,goat", "protocol.tuning_seeds=[0,7]", "protocol.pruner=none") == 0
    by_method: dict[str, int] = {}
    for row in rows(study, "tune"):
        by_method[row["labels"]["method"]] = by_method.get(row["labels"]["method"], 0) + 1
    assert by_method == {"lora": 12, "goat": 12}
    assert {row["labels"]["seed"] for row in rows(study, "tune")} == {0, 7}


def test_a_diverging_rate_is_not_chosen(roots, study, monkeypatch):
    monkeypatch.setattr(fake_execute, "_go_wrong", _diverges_at_the_best)
    assert fair("method=lora", "protocol.pruner=none") == 0
    (one,) = verdicts(study).values()
    assert one.best == 0.03, "the nearest to 0.01 that is left"


def _diverges_at_the_best(folder, seed, begun) -> bool:
    if folder.read_spec().train.lr != 0.01:
        return False
    record = {"schema": 1, "id": folder.id, "class": "diverged", "message": "nan", "step": 2, "traceback": ""}
    folder.failure.write_text(json.dumps(record))
    return True


def test_it_goes_on_from_wherever_it_was_stopped(roots, study, monkeypatch):
    """Stopped after every single write of its own in turn; what comes out is what comes out undisturbed."""
    real, left = fake_execute.execute, [0]

    def few(*arguments, **named) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*arguments, **named)

    monkeypatch.setattr("ablora.dispatch.job.execute", few)
    command = ["method=lora", "protocol.values=[1e-4,1e-3,3e-3]", "pack=1"]
    code, times = 130, 0
    while code == 130:
        left[0], times = 2, times + 1
        code = fair(*command)
        assert times < 20
    assert (code, times) == (0, 4), "5 that tune and 3 that confirm, two at a time"
    (one,) = verdicts(study).values()
    assert one.values == (0.009, 0.027)
    assert len(rows(study, "confirm")) == 3
    assert set(starts(roots)) == {1}
    monkeypatch.setattr("ablora.config.ask", lambda *_: 1 / 0)
    assert main(["resume", "s"]) == 0, "from its folder alone"


def test_a_failed_trial_keeps_its_arm_from_being_decided(roots, study, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(fake_execute, "_go_wrong", lambda folder, seed, begun: 1 / 0)
        assert fair("method=lora", "pack=1") == 3
    assert "not decided: all: not all of its trials are over" in capsys.readouterr().out
    assert not rows(study, "confirm")
    assert main(["retry", "s"]) == 0
    assert len(rows(study, "confirm")) == 3


def test_an_arm_that_waits_keeps_no_other_from_being_confirmed(roots, study, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(fake_execute, "_go_wrong", _breaks_for_pissa)
        assert fair("method=lora,pissa", "pack=1") == 3
    assert [row["labels"]["method"] for row in rows(study, "confirm")] == ["lora"] * 3
    assert all(folder_of(roots, row["id"]).result.exists() for row in rows(study, "confirm"))
    assert main(["retry", "s", "--only", "disk_full"]) == 2
    assert "the class of a failure of this study: bug" in capsys.readouterr().err
    assert main(["retry", "s", "--only", "bug"]) == 0
    assert [row["labels"]["method"] for row in rows(study, "confirm")] == ["lora"] * 3 + ["pissa"] * 3


def _breaks_for_pissa(folder, seed, begun) -> bool:
    return bool(1 / 0) if folder.read_spec().method.name == "pissa" else False


def test_only_the_failures_that_are_asked_for_are_tried_again(roots, study, monkeypatch, capsys):
    """Of the confirming runs one fails by a bug and one by a full disk."""
    with monkeypatch.context() as patch:
        patch.setattr(fake_execute, "_go_wrong", _confirming_break)
        assert fair("method=lora", "pack=1") == 3
    assert main(["retry", "s", "--only", "bug"]) == 3
    left = [folder_of(roots, row["id"]) for row in rows(study, "confirm")]
    assert [f.read_failure()["class"] for f in left if f.failure.exists()] == ["disk_full"]
    assert main(["retry", "s"]) == 0


def _confirming_break(folder, seed, begun) -> bool:
    if seed == 1:
        raise ZeroDivisionError("division by zero")
    if seed == 2:
        raise OSError(28, "No space left on device")
    return False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["protocol.seeds=[0,1]"], "seeds that tuning does not use"),
        (["tuner=optuna"], "which has a tuner of its own"),
        (["train.lr=1e-3,1e-2"], "cannot be given too"),
        (["train.lr=1e-3"], "cannot be given too"),
        (["seed=1"], "cannot be given too"),
        (["+sweeps=demo"], "protocol=fair confirms"),
        (["eval.every=0"], "eval.every"),
        (["train.lr=interval(1e-4,1e-2)"], "left out with protocol=fair"),
    ],
)
def test_what_is_not_fair_is_refused(roots, capsys, arguments, says):
    assert fair("method=lora", *arguments) == 2
    assert says in capsys.readouterr().err
    assert not Path(roots.runs).exists() or not list(roots.runs.iterdir())
