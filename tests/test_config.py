"""Composition: the fast way gives the ids of Hydra's own; sweep files; what the command line means."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ablora.config import ask
from ablora.config.axes import BUDGET, EXECUTION
from ablora.config.loader import conf_dir
from ablora.data._base import DataError
from ablora.spec import BadInput, RunSpec, run_id
from ablora.tree import build
from test_bad_input import conf_with_sweep

GROUPS = {
    "method": ["lora", "pissa", "milora", "rslora", "goat", "molora_topk", "random_svd"],
    "method/init": ["zero_b", "svd_principal", "svd_minor", "svd_middle"],
    "method/scaling": ["alpha_over_r", "alpha_over_sqrt_r"],
    "method/structure": ["pair", "experts"],
    "train": ["default", "quick"],
    "dataset": ["arithmetic", "gsm8k"],
}
PLAIN = {
    "rank": ["4", "8", "16", "${train.batch_size}"],
    "seed": ["0", "1", "17"],
    "train.lr": ["1e-3", "0.003", "2E-4", "1"],
    "train.warmup_steps": ["0", "2", "${rank}"],
    "train.micro_batch": ["null", "2"],
    "train.schedule": ["cosine", "'linear'"],
    "train.betas": ["[0.9,0.95]", "[0,0.5]"],
    "adapter.targets": ["all-linear", "[q_proj,v_proj]"],
    "adapter.dropout": ["0", "0.1"],
    "eval.at_start": ["true", "false"],
    "eval.every": ["0", "5"],
    "dataset.max_train_items": ["null", "4"],
    "++train.clip_norm": ["0.5", "null"],
}
RICH = ["eval.tasks.generation=null", "train.eps=${oc.decode:'1e-7'}", "method.name=${dataset.name}-${rank}"]
"""The last two are more than one reference, and are left to OmegaConf."""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"question": "1+1?", "answer": "2 #### 2"}
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")


def as_hydra_does(overrides: Sequence[str]) -> str:
    """The id of one cell by Hydra's own composition, nothing shared with any other cell."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        tree: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    return identity({key: tree[key] for key in tree if key not in (*EXECUTION, BUDGET)})


def identity(tree: Any) -> str:
    """The id, or what a specification is refused for."""
    try:
        return run_id(build(tree, RunSpec))
    except (BadInput, DataError) as error:
        return str(error)


def random_question(draw: random.Random) -> tuple[list[str], list[str]]:
    """A command line, fixed and swept: some 60 cells, of some 8 combinations of groups, keys in random order."""
    groups = {key: draw.sample(GROUPS[key], 2) for key in draw.sample(list(GROUPS), 3)}
    plain = {key: draw.sample(values, min(2, len(values))) for key, values in draw.sample(list(PLAIN.items()), 4)}
    swept = [f"{key}={','.join(values)}" for key, values in {**groups, **plain}.items()]
    draw.shuffle(swept)
    # Where both data sets are swept there is no path, and both ways must complain alike.
    fixed = [] if "dataset" in groups else ["dataset=gsm8k", "dataset.path=."]
    return [*fixed, *draw.sample(RICH, 1)], swept


SHARDS = [pytest.param(shard, 125, marks=pytest.mark.slow) for shard in range(4)]


@pytest.mark.parametrize(("shard", "wanted"), [(4, 60), *SHARDS])
def test_ids_are_those_of_plain_composition(shard, wanted):
    """60 random ids, and 500 in four slow parts; Hydra's composition is most of the time."""
    draw, compared = random.Random(shard), 0
    while compared < wanted:
        fixed, swept = random_question(draw)
        question = ask([*fixed, *swept], multirun=True)
        for cell in draw.sample(question.cells, min(32, len(question.cells), wanted - compared)):
            found = identity(cell.tree)
            assert found == as_hydra_does([*fixed, *cell.overrides]), cell.overrides
            compared += len(found) == 12  # a refused cell is compared too, and does not count


def cells(*arguments: str) -> list[dict[str, Any]]:
    return [dict(cell.labels) for cell in ask(arguments, multirun=True).cells]


def test_cells_come_in_the_order_written_the_last_axis_fastest():
    assert cells("seed=1,0", "method=pissa,lora", "rank=8") == [
        {"seed": seed, "method": method} for seed in (1, 0) for method in ("pissa", "lora")
    ]


def test_ranges_and_globs_are_axes():
    assert [c["rank"] for c in cells("rank=range(4,13,4)")] == [4, 8, 12]
    assert {c["method"] for c in cells("method=glob(*lora*)")} >= {"lora", "milora", "rslora"}


def test_the_last_value_of_a_key_counts():
    (cell,) = ask(["rank=4", "rank=16"], multirun=False).cells
    assert cell.tree["rank"] == 16


LOCAL = ["cluster=local", "cluster.workers=3"]


def test_execution_settings_are_no_part_of_a_run():
    plain, other = (ask(a, False) for a in (["tracker=off"], ["study=s", *LOCAL, "tracker=wandb"]))
    assert plain.cells[0].tree == other.cells[0].tree
    assert (other.execution.study, other.execution.tracker.kind) == ("s", "wandb")
    assert other.execution.cluster.workers == 3
    assert plain.execution.tracker.kind == "off"


SWEEP = """# @package _global_
# Question: does it?
defaults:
  - override /method: milora
  - override /method/scaling: constant
train:
  max_steps: 7
sweep:
  grid:
    - method: [lora, pissa]
      rank: [4, 8]
    - method: goat
      rank: 16
      adapter.targets: [all-linear, [q_proj, v_proj]]
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    conf = conf_with_sweep(tmp_path, SWEEP)
    monkeypatch.setattr("ablora.config.loader.conf_dir", lambda: conf)


@pytest.mark.usefixtures("sweep")
def test_a_sweeps_blocks_are_products_and_their_union_the_study():
    assert cells("+sweeps=own") == [
        {"method": "lora", "rank": 4},
        {"method": "lora", "rank": 8},
        {"method": "pissa", "rank": 4},
        {"method": "pissa", "rank": 8},
        {"method": "goat", "rank": 16, "adapter.targets": "all-linear"},
        {"method": "goat", "rank": 16, "adapter.targets": ["q_proj", "v_proj"]},
    ]


@pytest.mark.usefixtures("sweep")
def test_the_command_line_replaces_a_blocks_values_and_adds_axes():
    assert cells("+sweeps=own", "rank=2", "adapter.targets=all-linear", "seed=0,1")[:2] == [
        {"seed": 0, "method": "lora", "rank": 2},
        {"seed": 0, "method": "pissa", "rank": 2},
    ]
    (first, *_) = ask(["+sweeps=own", "train.max_steps=9", "rank=2"], multirun=True).cells
    assert (first.tree["train"]["max_steps"], first.tree["rank"]) == (9, 2)
    assert first.tree["method"]["scaling"]["_target_"].endswith(".Constant")


@pytest.mark.usefixtures("sweep")
def test_a_sweep_is_a_study_without_the_flag():
    question = ask(["+sweeps=own"], multirun=False)
    assert question.sweeping
    assert len(question.cells) == 6
