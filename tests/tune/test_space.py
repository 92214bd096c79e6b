"""The search space: what a sweep file may say, and what becomes of it."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablora.spec import BadInput
from ablora.tune.settings import Fair, Optuna
from ablora.tune.space import Dimension, combinations, dimensions


def test_every_kind_of_dimension_is_read():
    lr, rank, alpha, tops = dimensions({
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True, "points": 3},
        "rank": {"low": 2, "high": 8, "int": True},
        "method.scaling.alpha": {"choices": [8, 16], "when": {"method": "lora"}},
        "train.schedule": ["linear", "cosine"],
    })  # fmt: skip
    assert lr.grid() == (1e-4, 1e-3, 1e-2)
    assert rank.corners() == (2, 8)
    assert all(type(value) is int for value in rank.corners())
    assert alpha.holds({"method": "lora"})
    assert not alpha.holds({"method": "goat"})
    assert not alpha.holds({})
    assert tops.grid() == ("linear", "cosine")
    assert len(combinations([lr, tops])) == 6


def test_several_ranges_of_one_key_have_names_of_their_own():
    found = dimensions({"train.lr": [{"low": 1e-4, "high": 1e-3, "when": {"method": ["goat", "goat_s"]}},
                                     {"low": 1e-3, "high": 1e-2, "when": {"method": "lora"}}]})  # fmt: skip
    assert [one.key for one in found] == ["train.lr", "train.lr"]
    assert [one.name for one in found] == ["train.lr[method=goat|goat_s]", "train.lr[method=lora]"]


@given(st.floats(1e-6, 1e-1), st.floats(1.5, 1e4), st.integers(2, 30), st.booleans())
def test_a_grid_rises_from_end_to_end_by_equal_steps(low, ratio, points, log):
    one = Dimension(key="k", name="k", low=low, high=low * ratio, log=log, points=points)
    grid = one.grid()
    assert (grid[0], grid[-1]) == (low, low * ratio)
    assert len(grid) == points
    assert list(grid) == sorted(set(grid))
    steps = [math.log(b / a) if log else b - a for a, b in itertools.pairwise(grid)]
    assert max(steps) - min(steps) < 1e-3 * max(steps) + 2e-5 * max(map(abs, grid if not log else [1]))


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "sweep.search={}"),
        ({"train.lr": 1e-3}, "sweep.search.train.lr=0.001"),
        ({"train.lr": {"low": 1e-3}}, "a range"),
        ({"train.lr": {"low": 1e-2, "high": 1e-3}}, "low end is below"),
        ({"train.lr": {"low": 0, "high": 1e-3, "log": True}}, "above 0"),
        ({"train.lr": {"low": 1, "high": 2, "lgo": True}}, "sweep.search.train.lr.lgo"),
        ({"train.lr": {"low": 1, "high": 2, "choices": [1]}}, "not both"),
        ({"train.lr": {"choices": []}}, "choices=[]"),
        ({"rank": {"low": 1.5, "high": 2, "int": True}}, "whole numbers"),
        ({"rank": {"low": True, "high": 2}}, "a range"),
        ({"train.lr": {"low": 1, "high": 2, "points": 1}}, "at least 2"),
        ({"train.lr": {"low": 1, "high": 2, "when": "lora"}}, "a mapping such as"),
    ],
)
def test_a_space_that_says_nothing_is_refused_by_its_key(space, says):
    with pytest.raises(BadInput) as error:
        dimensions(space)
    assert says in str(error.value)


def test_a_grid_over_a_range_needs_points():
    (one,) = dimensions({"train.lr": {"low": 1e-4, "high": 1e-2}})
    with pytest.raises(BadInput, match="points"):
        one.grid()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"trials": 0}, "at least 1"),
        ({"trials": None}, "null for a grid only"),
        ({"sampler": "grid"}, "null with sampler=grid"),
        ({"metrics": ()}, "metrics of result.json"),
        ({"directions": ("least",)}, "minimize or maximize"),
        ({"metrics": ("a", "b")}, "for each of tuner.metrics"),
        ({"pruner": "asha", "metrics": ("a", "b"), "directions": ("minimize",) * 2}, "studies of one objective only"),
        ({"storage": "postgresql://me:hidden@host/db"}, "env:NAME"),
    ],
)
def test_a_tuner_says_what_is_wrong_and_no_secret(fields, says):
    with pytest.raises(BadInput) as error:
        Optuna(**fields)
    assert says in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_storage_in_the_environment_must_be_there(monkeypatch):
    monkeypatch.delenv("ABLORA_NO_SUCH", raising=False)
    with pytest.raises(BadInput, match="export ABLORA_NO_SUCH"):
        Optuna(storage="env:ABLORA_NO_SUCH").url()
    monkeypatch.setenv("ABLORA_NO_SUCH", "sqlite:///x.db")
    assert Optuna(storage="env:ABLORA_NO_SUCH").url() == "sqlite:///x.db"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seeds": (0, 1)}, "seeds that tuning does not use"),
        ({"values": (1e-3,)}, "two values"),
        ({"values": (1e-3, 1e-4)}, "rise"),
        ({"metric": "answer_loss_nats"}, "validation split"),
        ({"factor": 1.0}, "above 1"),
    ],
)
def test_a_protocol_that_would_not_be_fair_is_refused(fields, says):
    with pytest.raises(BadInput, match=says):
        Fair(**fields)
