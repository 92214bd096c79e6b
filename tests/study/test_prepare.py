"""Caches that are filled ahead of runs are all that the runs look for, and are filled once."""

import os
from pathlib import Path

import pytest

from ablora.cli import main
from ablora.config import ask
from ablora.spec import RunSpec
from ablora.store.cache import fetch, watched
from ablora.study.plan import make
from ablora.train.needs import decomposes, missing, needs_of

SHORT = [
    "train=quick",
    "train.max_steps=0",
    "tracker=off",
    "pack=1",
    "eval.tasks.answer_loss.max_items=4",
    "eval.tasks.validation_answer_loss=null",
    "eval.tasks.generation=null",
    "eval.tasks.forgetting=null",
    "eval.tasks.routing.max_items=2",
]
METHODS = "method=lora,pissa,milora,random_svd,goat_s,olora,eva,corda_kpm,lora_ga,full,ia3,molora_topk"


def cached(cache: Path) -> dict[str, int]:
    """Files of the cache that runs read, with the time at which they were written."""
    files = (path for folder in ("tokens", "statistics", "spectra") for path in (cache / folder).glob("*.safetensors"))
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in files}


def specs(*arguments: str) -> list[RunSpec]:
    return [*make(ask(list(arguments), multirun=True).cells).specs.values()]


def test_runs_find_all_that_they_look_for(roots, capsys):
    study = [*SHORT, METHODS, "rank=8,16", "seed=0,1", "eval.at_start=false"]
    assert main(["prepare", "-m", *study]) == 0
    said = capsys.readouterr().out
    assert "start of random_svd at rank 8: " not in said, "it is in the one decomposition of each weight"
    assert "files of tokens: 3 made, 0 there already" in said
    before = cached(roots.cache)
    assert {name.partition("/")[0] for name in before} == {"tokens", "statistics", "spectra"}
    assert main(["run", "-m", *study, "study=s"]) == 0
    assert cached(roots.cache) == before, "a run had to make something"
    capsys.readouterr()
    for again in (["-m", *study], ["s"]):
        assert main(["prepare", *again]) == 0
        said = capsys.readouterr().out
        assert "files of tokens: 0 made, 3 there already" in said
        assert " 1 made" not in said
    assert cached(roots.cache) == before


def test_what_was_deleted_is_made_again_and_nothing_else(roots, capsys):
    study = [*SHORT, "method=pissa,lora"]
    assert main(["prepare", "-m", *study]) == 0
    before = cached(roots.cache)
    gone = [next(name for name in before if name.startswith(kind)) for kind in ("tokens", "spectra")]
    for name in gone:
        (roots.cache / name).unlink()
    capsys.readouterr()
    assert main(["prepare", "-m", *study]) == 0
    after = cached(roots.cache)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == set(gone)
    assert "decompositions: 1 made, 27 there already" in capsys.readouterr().out


def test_a_need_is_named_by_what_decides_it():
    def keys(*arguments: str) -> set[str]:
        return {*needs_of(specs(*SHORT, *arguments))}

    assert keys("method=pissa,eva") == keys("method=pissa,eva", "seed=0,1,2", "train.lr=1e-3,1e-4")
    assert len(keys("method=random_svd", "seed=0,1")) == len(keys("method=random_svd")) + 1
    assert keys("method=pissa") < keys("method=pissa", "rank=8,16")
    assert keys("method=eva").isdisjoint(keys("method=eva", "train.max_tokens=64"))
    assert keys("method=pissa") & keys("method=pissa", "train.max_tokens=64"), "weights are no matter of data"
    assert keys("method=alora") > keys("method=lora"), "its probe is another split"


@pytest.mark.parametrize(("method", "does"), [("lora", False), ("olora", False), ("full", False), ("pissa", True),
                                              ("goat", True), ("eva", True)])  # fmt: skip
def test_which_starts_decompose(method, does):
    assert decomposes(specs(*SHORT, f"method={method}")[0]) is does


def test_nothing_is_noted_of_what_could_not_be_made(roots, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    needs = needs_of(specs(*SHORT, "method=pissa"))
    assert len(missing(needs.values(), roots.cache)) == 4
    with monkeypatch.context() as patch:
        patch.setattr("ablora.spectra.library._write", broken)
        with pytest.raises(OSError, match="No space"):
            main(["prepare", *SHORT, "method=pissa"])
    assert [str(need) for need in missing(needs.values(), roots.cache)] == ["start of pissa at rank 8"]
    assert main(["prepare", *SHORT, "method=pissa"]) == 0
    assert missing(needs.values(), roots.cache) == []


def test_a_study_that_is_not_there_is_named(roots, capsys):
    assert main(["prepare", "nope"]) == 2
    assert "STUDY='nope'" in capsys.readouterr().err
    assert not roots.cache.exists()


def test_what_is_fetched_is_seen_only_by_who_watches(tmp_path):
    def make():
        return lambda aside: aside.write_text("x")

    with watched() as outer:
        fetch(tmp_path / "a", Path.read_text, make)
        with watched() as inner:
            fetch(tmp_path / "a", Path.read_text, make)
    assert (outer, inner) == ({tmp_path / "a": True}, {tmp_path / "a": False})
    os.unlink(tmp_path / "a")
    assert fetch(tmp_path / "a", Path.read_text, make) == "x"
    assert len(outer) == 1
