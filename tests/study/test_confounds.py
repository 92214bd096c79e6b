"""What compared cells differ in beside the method, and that --strict refuses it before anything is written."""

import pytest

from ablora.cli import main
from ablora.config import ask
from ablora.study.confounds import confounds
from ablora.study.plan import make


def found(*arguments: str) -> dict[str, dict[str, tuple[str, ...]]]:
    plan = make(ask(["train=quick", *arguments], multirun=True).cells)
    return {one.field: dict(one.methods) for one in confounds(plan)}


def test_one_recipe_and_one_scale_have_no_confound():
    assert found("method=lora,lora_plus", "rank=4,8", "train.lr=1e-3,1e-4", "seed=0,1") == {}


def test_one_method_is_compared_with_nobody():
    assert found("method=goat", "seed=0,1", "train.lr=1e-3,1e-4") == {}


def test_scaling_conventions():
    scaling = found("method=lora,rslora", "seed=0")["method.scaling"]
    assert scaling == {"AlphaOverR(alpha=16.0)": ("lora",), "AlphaOverSqrtR(alpha=16.0)": ("rslora",)}
    assert "method.scaling" not in found("method=lora,pissa", "method/scaling=alpha_over_r,constant")


def test_a_preset_that_brings_its_own_optimizer():
    optimizer = found("method=lora,riemannian_lora_sgd")["train.optimizer"]
    assert optimizer == {'"adamw"': ("lora",), '"sgd"': ("riemannian_lora_sgd",)}


def test_parameter_budgets():
    unequal = found("method=lora,goat")
    assert set(unequal["trainable parameters"].values()) == {("lora",), ("goat",)}
    assert "trainable parameters" not in found("method=lora,goat", "budget.like=lora:20")


def test_a_method_tried_at_more_rates():
    """Two blocks of a grid, as a sweep file has them."""
    plan = make([*ask(["train=quick", "method=lora", "train.lr=1e-3,1e-4"], multirun=True).cells,
                 *ask(["train=quick", "method=pissa,lora", "train.lr=1e-3"], multirun=True).cells])  # fmt: skip
    told = {one.field: dict(one.methods) for one in confounds(plan)}
    assert told["settings tried"] == {"2": ("lora",), "1": ("pissa",)}


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("seeds (data order, dropout, start)", "seed=0", "seed=1"),
        ("train.max_tokens", "train.max_tokens=256", "train.max_tokens=128"),
        ("adapter.dropout", "adapter.dropout=0", "adapter.dropout=0.1"),
        ("eval.tasks", "eval.tasks.answer_loss.max_items=9", "eval.tasks.answer_loss.max_items=8"),
    ],
)
def test_two_commands_in_one_study(field, one, other):
    cells = [cell for method, own in (("lora", one), ("pissa", other))
             for cell in ask(["train=quick", f"method={method},olora", own], multirun=True).cells[:1]]  # fmt: skip
    told = [found.field for found in confounds(make(cells))]
    assert any(name.startswith(field) for name in told), told


@pytest.mark.usefixtures("fake")
def test_strict_refuses_and_writes_nothing(roots, capsys):
    study = ["-m", "train=quick", "tracker=off", "method=lora,goat", "study=s"]
    assert main(["plan", *study]) == 0
    assert "compared cells differ beside the method" in capsys.readouterr().out
    assert main(["plan", "--strict", *study]) == 2
    assert main(["run", "--strict", *study]) == 2
    assert "one value for all compared methods" in capsys.readouterr().err
    assert not roots.runs.exists()
    assert main(["run", "--strict", "-m", "train=quick", "tracker=off", "method=lora,lora_plus", "study=s"]) == 0
