"""A user's mistake: exit code 2, one message that names field, value and legal values, and nothing left behind."""

import errno
import json
import os
from pathlib import Path

import pytest

from ablora.cli import main
from ablora.config.loader import conf_dir
from ablora.store.roots import Roots
from ablora.study.manifest import Row, StudyFolder

CONF = conf_dir()

GSM8K = "dataset=gsm8k dataset.validation_items=1"

MISTAKES = {
    "an unknown key": ("run trian.lr=1", ["trian.lr=1", "did you mean train.lr?", "model, dataset, train"]),
    "an unknown field": ("run train.lrr=1", ["train.lrr=1", "train has lr, max_steps"]),
    "a new key": ("run +flavour=1", ["flavour=1", "the configuration has method, model"]),
    "an unknown method": ("run method=lorra", ["method='lorra'", "did you mean method=lora?", "middle_svd, milora"]),
    "a key by its last name": ("run lr=1e-3", ["lr=0.001", "did you mean train.lr?"]),
    "a space for a comma": ("run -m method=lora milora", ["'milora'", "commas and no spaces", "method=lora,milora"]),
    "a space after a comma": (
        "run -m method=lora, milora",
        ["'method=lora,'", "commas and no spaces", "method=lora,milora"],
    ),
    "a comma at the end": ("run -m method=lora,milora,", ["on either side of each comma: method=lora,milora"]),
    "a key without a value": ("run -m method", ["key=value", "method=..."]),
    "an unknown axis value": ("run method/init=none", ["method/init='none'", "svd_minor", "zero_b"]),
    "an unknown axis": ("run method/start=zero_b", ["method/start='zero_b'", "method/init"]),
    "a dot for a slash": (
        "run method.init=svd_minor",
        ["method.init='svd_minor'", "did you mean method/init=svd_minor"],
    ),
    "rank zero": ("run rank=0", ["rank=0", "at least 1"]),
    "a rank over a weight": ("run rank=4000", ["rank=4000", "1 to ", "the smaller side of"]),
    "experts that do not divide": ("run method=goat rank=9", ["rank=9", "a multiple of method.structure.experts"]),
    "no rank": ("run rank=null", ["rank=None", "this method has a rank"]),
    "no data path": (f"run {GSM8K}", ["dataset='gsm8k'", "'path' is not set", "dataset.path=FOLDER"]),
    "a missing data path": (f"run {GSM8K} dataset.path=nowhere", ["'nowhere' does not exist", "gsm8k_train.jsonl"]),
    "a row without its field": (f"run {GSM8K} dataset.path=../rows", ["train.jsonl:2", "'answer' is missing"]),
    "a learning rate of zero": ("run train.lr=0", ["train.lr=0.0", "a positive number"]),
    "a negative learning rate": ("run train.lr=-1e-3", ["train.lr=-0.001", "a positive number"]),
    "one bad cell of a grid": (
        "run -m rank=4,8 train.lr=1e-3,abc",
        ["train.lr='abc'", "in the cell rank=4 train.lr=abc", "1 more"],
    ),
    "a cell that does not parse": ("run -m train.lr=1e-3,,", ["train.lr=1e-3,,", "Hydra's grammar"]),
    "a reference to nothing": ("run -m rank=4,${nope}", ["rank='${nope}'", "in the cell rank=${nope}"]),
    "a reference to itself": ("run rank=${seed} seed=${rank}", ["Recursive interpolation"]),
    "several values without -m": ("run rank=4,8", ["rank='4,8'", "ablora run -m rank=4,8"]),
    "an unknown sweep": ("run -m +sweeps=nope", ["sweeps='nope'", "demo"]),
    "a sweep without plus": ("run -m sweeps=demo", ["+sweeps=demo"]),
    "a sweep with the wrong name": ("run -m +sweep=demo", ["sweep='demo'", "+sweeps=demo"]),
    "several studies": ("run -m study=a,b", ["study='a,b'", "one value for the whole study"]),
    "a study's name": ("run study=a/b", ["study='a/b'", "letters, digits"]),
    "an unknown cluster": ("run cluster=moon", ["cluster='moon'", "inline, local"]),
    "a field of another cluster": ("run cluster.workers=2", ["cluster.workers=2", "threads"]),
    "no workers": ("run cluster=local cluster.workers=0", ["cluster.workers=0", "at least 1"]),
    "an unknown tracker": ("run tracker=paper", ["tracker='paper'", "off, wandb"]),
    "a tracker's mode": ("run tracker=wandb tracker.mode=loud", ["tracker.mode='loud'", "auto, online, offline"]),
    "no model": ("run model=local", ["model.path=None", "save_pretrained"]),
    "targets that match nothing": ("run adapter.targets=[nope]", ["adapter.targets", "nope"]),
    "an unknown flag": ("run --fast", ["flag='--fast'", "--retry"]),
    "an unknown command": ("frobnicate", ["COMMAND='frobnicate'", "run, plan, prepare, status"]),
    "a misspelt command": ("statsu", ["did you mean status?"]),
    "an unknown study": ("status nope", ["STUDY='nope'", "there is none yet", "study=NAME", "ABLORA_RUNS="]),
    "no study at all": ("status", ["STUDY=''", "there is none yet", "study=NAME"]),
    "no study to draw": ("figures", ["STUDY=''", "there is none yet", "study=NAME"]),
    "an unknown study to watch": ("watch nope", ["STUDY='nope'"]),
    "an unknown study to clean": ("clean nope", ["STUDY='nope'"]),
    "an unknown study to resume": ("resume nope", ["STUDY='nope'"]),
    "an unknown study to retry": ("retry nope", ["STUDY='nope'"]),
    "an unknown study to collect": ("collect nope", ["STUDY='nope'"]),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, beside a data set with a broken row."""
    (tmp_path / "rows").mkdir()
    good, broken = {"question": "1+1?", "answer": "2 #### 2"}, {"question": "2+2?"}
    (tmp_path / "rows/train.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(broken)}\n")
    (tmp_path / "rows/test.jsonl").write_text(json.dumps({"question": "3+3?", "answer": "6 #### 6"}))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("ABLORA_RUNS", raising=False)
    monkeypatch.setenv("ABLORA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_message_and_leaves_nothing(case, capsys):
    command, wanted = MISTAKES[case]
    assert main(command.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    for words in wanted:
        assert words in said.err
    if command.startswith("run") and "--" not in command:
        assert main(["plan", *command.split()[1:]]) == 2
        assert capsys.readouterr() == said
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("variable", ["ABLORA_RUNS", "ABLORA_CACHE"])
def test_a_place_that_cannot_be_written_to(variable, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file/under"))
    assert main(["run", "-m", "seed=0,1"]) == 2
    said = capsys.readouterr().err
    assert variable in said
    assert "a folder that can be written to" in said
    assert f"export {variable}=FOLDER" in said
    assert not list(Path.cwd().glob("*/*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("variable", ["ABLORA_RUNS", "ABLORA_CACHE"])
def test_a_disk_that_is_full_or_read_only_is_found_before_anything_is_written(
    variable, number, tmp_path, monkeypatch, capsys
):
    real, place = Path.write_bytes, tmp_path / "disk" / "place"

    def on_such_a_disk(path, data):
        if place in path.parents:
            raise OSError(number, os.strerror(number))
        return real(path, data)

    monkeypatch.setenv(variable, str(place))
    monkeypatch.setattr(Path, "write_bytes", on_such_a_disk)
    assert main(["run", "-m", "seed=0,1", "study=s"]) == 2
    said = capsys.readouterr().err
    assert f"{variable}='{place}' is not legal: a folder that can be written to ({os.strerror(number)})" in said
    assert not [path for what in ("spec.json", "manifest.jsonl", ".probe*") for path in tmp_path.rglob(what)]


def test_a_typo_inside_a_sweep_file(tmp_path, monkeypatch, capsys):
    conf = conf_with_sweep(tmp_path, "# @package _global_\ntrain:\n  lrr: 1\nsweep:\n  grid:\n    seed: [0, 1]\n")
    monkeypatch.setattr("ablora.config.loader.conf_dir", lambda: conf)
    assert main(["run", "-m", "+sweeps=own"]) == 2
    assert "train.lrr=1" in capsys.readouterr().err
    assert not list(Path.cwd().iterdir())


def test_an_axis_with_a_dot_is_no_key_below_the_grid(capsys):
    assert main(["plan", "+sweeps=search_curves", "sweep.grid.train.lr=[1.0]"]) == 2
    assert "an axis by itself: train.lr=... takes the place" in capsys.readouterr().err


def test_a_grid_that_cannot_replace_the_one_it_inherits(tmp_path, monkeypatch, capsys):
    head = "# @package _global_\n"
    conf = conf_with_sweep(tmp_path, f"{head}defaults: [list]\nsweep:\n  grid: {{seed: [0]}}\n")
    (conf / "sweeps/list.yaml").write_text(f"{head}sweep:\n  grid: [{{seed: 1}}]\n")
    monkeypatch.setattr("ablora.config.loader.conf_dir", lambda: conf)
    assert main(["run", "-m", "+sweeps=own"]) == 2
    assert "'sweeps/own'" in (said := capsys.readouterr().err)
    assert "as of sweep.grid: write a list as well" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sweep:\n  grid:\n    seed: [0]\n", "`# @package _global_`"),
        ("# @package _global_\nrank: 4\n", "a mapping with `grid`"),
        ("# @package _global_\nsweep:\n  gird: {seed: [0]}\n", "sweep.gird"),
        ("# @package _global_\nsweep:\n  grid: {seed: []}\n", "at least one value"),
        ("# @package _global_\nsweep:\n  grid: {method: [lorra]}\n", "middle_svd, milora"),
        ("# @package _global_\nsweep:\n  grid: {method/inti: [zero_b]}\n", "method/inti"),
        ("# @package _global_\nsweep:\n  grid: {tracker: [wandb]}\n", "an axis of the runs"),
        ("# @package _global_\nsweep:\n  grid: {trian.lr: [1]}\n", "did you mean train.lr?"),
        ("# @package _global_\nsweep:\n  grid: {train: [{lr: 1}]}\n", "a number, a text, a list"),
    ],
)
def test_a_sweep_file_that_cannot_be_read(text, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ablora.config.loader.conf_dir", lambda: conf_with_sweep(tmp_path, text))
    assert main(["run", "-m", "+sweeps=own"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def conf_with_sweep(folder: Path, text: str) -> Path:
    """A copy of conf/ whose sweeps are one file, `own`."""
    conf = folder / "conf"
    if not conf.exists():
        conf.mkdir()
        for path in CONF.iterdir():
            if path.name != "sweeps":
                (conf / path.name).symlink_to(path)
        (conf / "sweeps").mkdir()
    (conf / "sweeps/own.yaml").write_text(text)
    return conf


def test_a_study_that_is_misspelt_or_not_finished_or_not_named_says_what_to_type(capsys):
    StudyFolder(Roots.from_environment().studies / "first").write([Row("0" * 12, {}, "lora", 0)], [], {})
    assert main(["watch", "frist"]) == 2
    assert "did you mean first?" in capsys.readouterr().err
    assert main(["figures", "first"]) == 2
    said = capsys.readouterr().err
    assert "1 runs (1 planned)" in said
    assert "`ablora resume first`" in said
    with pytest.raises(SystemExit, match="2"):
        main(["retry"])
    assert "required: STUDY; studies here: first" in capsys.readouterr().err
