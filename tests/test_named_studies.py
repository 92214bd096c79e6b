"""The studies of sweeps/: what their headers say of them is so, each can be planned, and the twins run."""

import csv
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig

from ablora.cli import main
from ablora.config import ask
from ablora.config.loader import conf_dir
from ablora.config.question import Question
from ablora.models.base import Embedded, Local
from ablora.spec import RunSpec
from ablora.store import lines
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora.study.confirm import CONFIRM, Arm
from ablora.study.confounds import confounds
from ablora.study.plan import Plan, make

FOLDER = conf_dir() / "sweeps"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TWINS = [name for name in NAMES if name.endswith("_pico")]
FULL = [name.removesuffix("_pico") for name in TWINS]
PAGE = Path(__file__).parents[1] / "docs/studies.md"
RULES = ("schedule", "optimizer", "correct_bias", "betas", "eps", "weight_decay", "clip_norm")
"""Of a recipe: what is no matter of size."""
TWO_STEPS = [
    *("train.max_steps=2", "train.warmup_steps=0", "train.batch_size=2", "train.lr=1e-3", "seed=0", "tracker=off"),
    *("eval.tasks.answer_loss.max_items=2", "eval.tasks.validation_answer_loss.max_items=2", "eval.at_start=false"),
    *("eval.tasks.generation.max_items=1", "eval.tasks.generation.max_new_tokens=2", "eval.tasks.routing.max_items=2"),
    *("eval.tasks.forgetting.max_chunks=1", "eval.tasks.forgetting.chunk_tokens=32"),
]


@cache
def header(name: str) -> Mapping[str, str]:
    """The comment above a study, by its words before a colon."""
    comment = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines()[1:] if line.startswith("#")]
    text = "\n".join(line.removeprefix("#") for line in comment)
    parts = re.split(r"^ ([A-Z][a-z]+): +", text, flags=re.M)
    return {key: " ".join(part.split()) for key, part in zip(parts[1::2], parts[2::2])}


@pytest.fixture(scope="session")
def places(tmp_path_factory, shared) -> Mapping[str, str]:
    """What a header's command calls FOLDER, DIR and FILE; the base has the shapes of a model of 7B, two layers of them,
    and no weights, which a plan does not read."""
    base, data = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("data")
    LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=2).save_pretrained(base)
    AutoTokenizer.from_pretrained(Embedded(name="pico", dtype="float32").folder).save_pretrained(base)
    save_file({"none": torch.zeros(1)}, base / "model.safetensors")
    for there in [*(shared / "data/math").iterdir(), *(shared / "data/commonsense").iterdir()]:
        (data / there.name).symlink_to(there)
    return {"FOLDER": str(base), "DIR": str(data), "FILE": str(shared / "data/text/wikitext2_test.txt")}


class Study(NamedTuple):
    """A named study, composed and planned."""

    name: str
    question: Question
    plan: Plan

    @property
    def specs(self) -> Collection[RunSpec]:
        return self.plan.specs.values()


def planned(name: str, *arguments: str) -> Study:
    question = ask([f"+sweeps={name}", *arguments], multirun=True)
    return Study(name, question, make(question.cells))


def as_commanded(name: str, places: Mapping[str, str]) -> Study:
    """By the command that a study's header gives."""
    words = re.search(rf"ablora run -m \+sweeps={name}((?: [a-z._]+=[A-Z]+)+)", header(name)["Command"])
    assert words is not None
    return planned(name, *(f"{key}={places[value]}" for key, value in re.findall(r"(\S+)=([A-Z]+)", words[1])))


def require_counts(study: Study) -> None:
    """Cells, and packs where they do not depend on the machine, are as many as the header says."""
    said = re.match(r"(\d+)(?: that tune, (\d+) that confirm)?\b", header(study.name)["Cells"])
    assert said is not None
    rows, confirm = [row for row in study.plan.rows if row.why != CONFIRM], study.question.confirm
    search = study.question.search
    assert int(said[1]) == (len(rows) if search is None else (search.tuner.trials or 0) * len(search.arms))
    assert (confirm is None) == (said[2] is None)
    if confirm is not None:
        assert len({Arm.of(row, confirm.axis) for row in rows}) * len(confirm.seeds) == int(said[2])
    packs = re.search(r"in (\d+) packs", header(study.name)["Cells"])
    if packs is not None:
        runs = list(dict.fromkeys(row.id for row in rows))
        assert len(study.question.execution.pack(study.plan.specs)(runs)) == int(packs[1])


def require_confounds(study: Study) -> None:
    """Those that the linter finds, and no others, are named."""
    found, said = {one.field for one in confounds(study.plan)}, header(study.name)["Confounds"]
    assert ("`plan --strict` finds none" in said) == (not found)
    words = {"method.scaling": "scaling", "trainable parameters": "parameters"}
    assert all(words[field] in said for field in found)


def arms(study: Study) -> set[tuple[tuple[str, str], ...]]:
    """What is compared: the method and its parts, without a rate that follows from another field."""
    labels = [{k: str(v) for k, v in row.labels.items() if k.startswith("method")} for row in study.plan.rows]
    return {tuple(sorted((k, v) for k, v in own.items() if k != "method.update.lr_ratio")) for own in labels}


def require_twins(study: Study, twin: Study) -> None:
    """The twin compares what the study compares, on the embedded base and in few steps."""
    assert arms(study) == arms(twin)
    assert {type(spec.model) for spec in study.specs} == {Local}
    assert {type(spec.model) for spec in twin.specs} == {Embedded}
    assert max(spec.train.max_steps for spec in twin.specs) <= 64
    for of in (lambda s: (s.adapter.targets, s.adapter.dropout), lambda s: [getattr(s.train, f) for f in RULES]):
        assert {repr(of(spec)) for spec in study.specs} == {repr(of(spec)) for spec in twin.specs}


def test_there_is_something_to_test():
    assert len(TWINS) >= 8
    assert set(FULL) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_what_every_study_says(name):
    assert {"Question", "Paper", "Method", "Cells", "Says"} <= header(name).keys()
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# @package _global_\n")
    if name in FULL:
        assert {"Missing", "Confounds", "Command"} <= header(name).keys()
        assert f"+sweeps={name}_pico" in header(name)["Command"]


@pytest.mark.parametrize("name", sorted({*NAMES} - {*FULL, *TWINS}))
def test_a_study_of_the_embedded_base_is_what_its_header_says(name):
    require_counts(planned(name))


@pytest.mark.parametrize("name", FULL)
def test_a_published_study_and_its_twin_are_what_their_headers_say(name, places):
    study, twin = as_commanded(name, places), planned(f"{name}_pico")
    require_twins(study, twin)
    for one in (study, twin):
        require_counts(one)
        require_confounds(one)


@pytest.mark.parametrize("name", FULL)
def test_published_numbers_are_the_tables(name, shared):
    tables = shared / "spec/paper_tables.csv"
    if not tables.exists():
        pytest.skip("no table of published numbers: ABLORA_SHARED has no spec/paper_tables.csv")
    with tables.open() as file:
        numbers = {row["value"] for row in csv.DictReader(file)}
    paper = re.sub(r"arXiv:[\d.]+|[\d.e-]+:", "", header(name)["Paper"])
    quoted = re.findall(r"\d+\.\d+", paper)
    assert set(map(float, quoted)) <= {float(number) for number in numbers if re.fullmatch(r"\d+\.\d+", number)}
    assert quoted or name == "riemannian_adamw"


def test_the_page_lists_every_study_with_its_cells():
    said = re.findall(r"^\| `(\w+)`.*\| ([^|]*) \|$", PAGE.read_text(), re.M)
    assert dict(said) == {name: _cells(name) for name in NAMES if name not in TWINS}
    for name in FULL:
        assert _cells(f"{name}_pico") == _cells(name)


def _cells(name: str) -> str:
    """As the page says it."""
    return " + ".join(re.findall(r"\d+", re.match(r"\d+( that tune, \d+)?", header(name)["Cells"])[0]))


SLOW = {name: () for name in ("milora_t6_pico", "riemannian_sgd_pico")}
PARTS = [pytest.param(name, marks=SLOW.get(name, pytest.mark.slow)) for name in TWINS]


@pytest.mark.parametrize("name", PARTS)
def test_a_twin_trains(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ABLORA_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    second = ["sweep.confirm.seeds=[1]"] if "that confirm" in header(name)["Cells"] else []
    assert main(["run", "-m", f"+sweeps={name}", "study=s", *TWO_STEPS, *second]) == 0
    roots = Roots.from_environment()
    rows = list(lines.read(roots.studies / "s/manifest.jsonl"))
    assert {why for row in rows if (why := row["why"])} == ({"tune", "confirm"} if second else {"grid"})
    for row in rows:
        metrics = folder_of(roots, row["id"]).read_result()["metrics"]
        assert {"answer_loss_nats", "exact_match", "forgetting_kl_nats"} <= metrics.keys()
