"""The recipe on toy data: windows, schedule, resume, export."""

import csv

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ablora.models.pretrain import cli, corpus, export, train
from ablora.models.pretrain.recipe import Recipe, learning_rate_factor
from ablora.models.pretrain.windows import Windows

TOY = Recipe(
    steps=4,
    decay_steps=2,
    warmup_steps=1,
    window_tokens=32,
    batch_windows=4,
    micro_windows=2,
    dtype="float32",
    log_every_steps=1,
    checkpoint_every_steps=2,
)
KINDS = ["topic", "docstrings", "source"]


@pytest.fixture
def ids():
    random = np.random.default_rng(0)
    return [random.integers(2, 60, size=n).astype(np.int32) for n in (90, 200, 400)]


def run(out, recipe, ids):
    train.train(out, recipe, ids, KINDS, ids, workers=1)
    return torch.load(out / "checkpoint.pt", weights_only=True)


def test_an_epoch_holds_each_document_as_often_as_its_kind_says(ids):
    marked = [np.full(len(each), mark, dtype=np.int32) for mark, each in enumerate(ids, 2)]
    windows = Windows(marked, KINDS, TOY)
    packed = np.concatenate([windows.batch(step) for step in range(windows.epoch_windows // TOY.batch_windows)])
    for mark, expected in ((2, 3 * 90), (3, 2 * 200), (4, 400)):
        assert abs((packed == mark).sum() - expected) <= TOY.window_tokens * (TOY.batch_windows + 1)


def test_batches_depend_on_the_step_alone(ids):
    forward, backward = Windows(ids, KINDS, TOY), Windows(ids, KINDS, TOY)
    batches = [forward.batch(step) for step in range(12)]
    for step in reversed(range(12)):
        assert np.array_equal(backward.batch(step), batches[step])


def test_schedule_warms_up_holds_and_ends_near_zero():
    recipe = Recipe(steps=100, decay_steps=40, warmup_steps=10)
    factors = [learning_rate_factor(recipe, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10:60] == [1.0] * 50
    assert factors[-1] == pytest.approx(1 / 40)


def test_a_longer_run_shares_the_stable_part():
    short, long = Recipe(steps=100, decay_steps=40), Recipe(steps=900, decay_steps=40)
    assert [learning_rate_factor(short, s) for s in range(60)] == [learning_rate_factor(long, s) for s in range(60)]


def test_resumed_equals_uninterrupted(tmp_path, ids):
    whole = run(tmp_path / "whole", TOY, ids)
    stopped = train.Trainer(0, 1, tmp_path / "parts", TOY, Windows(ids, KINDS, TOY), ids)
    stopped.out.mkdir()
    for _ in range(2):
        stopped.train_step()
    stopped.save()
    parts = run(tmp_path / "parts", TOY, ids)
    assert parts["step"] == whole["step"] == 4
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name]), name


@pytest.mark.slow
def test_two_workers_agree_with_one(tmp_path, ids):
    """After one step, within rounding: later steps amplify it through AdamW's normalisation."""
    recipe = Recipe(**{**TOY.__dict__, "steps": 1})
    one = run(tmp_path / "one", recipe, ids)
    train.train(tmp_path / "two", recipe, ids, KINDS, ids, workers=2)
    two = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    for name, weight in one["model"].items():
        assert torch.allclose(weight, two["model"][name], atol=2e-3), name


def test_micro_batches_do_not_change_the_gradient(ids):
    def gradient(micro):
        recipe = Recipe(**{**TOY.__dict__, "micro_windows": micro, "adamw_lr": 0.0})
        trainer = train.Trainer(0, 1, None, recipe, Windows(ids, KINDS, recipe), ids)
        return trainer.train_step(), trainer.optimizer.state_dict()["state"][0]["exp_avg"]

    (one, g_one), (two, g_two) = gradient(4), gradient(2)
    assert one == pytest.approx(two, abs=1e-5)
    assert torch.allclose(g_one, g_two, atol=1e-6)


def test_the_log_has_one_line_a_step(tmp_path, ids):
    run(tmp_path / "a", TOY, ids)
    rows = list(csv.DictReader((tmp_path / "a" / "pretrain_log.csv").open()))
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4]
    assert [int(r["tokens"]) for r in rows] == [128, 256, 384, 512]


def test_every_parameter_is_in_one_group():
    model = train.random_start(0)
    held = [id(p) for g in train.make_optimizer(model, TOY).param_groups for p in g["params"]]
    assert sorted(held) == sorted({id(p) for p in model.parameters()})


def test_export_loads_and_is_rounded(tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(corpus.PICO_DIR / "tokenizer.json"))
    export.export(train.random_start(0), tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True)
    rounded = train.random_start(0).to(torch.bfloat16).float().state_dict()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, rounded[name]), name


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--dtype", "float16"], "dtype='float16'"), (["--steps", "0"], "steps=0"), (["--steps", "many"], "--steps")],
)
def test_a_wrong_flag_is_exit_code_2(flags, message, capsys):
    assert cli.main(flags) == 2
    assert message in capsys.readouterr().err
