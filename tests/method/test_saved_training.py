"""Training that goes on from an adapter that PEFT saved, beside PEFT that goes on from it: in float64, loss, gradients
and tensors of three steps. PEFT decomposes in float32 to rid a base of its start, so that what is left of the weight
is compared to float32 and then the same for both."""

from pathlib import Path
from typing import Any

import pytest
import torch
from beside_peft import LR, RANK, Optimizer, Ours, Theirs, conv1d, train_both
from peft.optimizers import create_loraplus_optimizer
from test_targets import gpt2
from torch import Tensor

from ablora.method.export import save_adapter
from ablora.method.factors import residual_weight
from peft_made import MADE, loaded, make
from tiny import disturb

STEPS = 3
UNPRUNED = ("structure.schedule.warmup=0.6", "structure.orthogonality.convention=norm_mean")
"""AdaLoRA's three steps are before the first pruning: what an allocation has seen is in no file, so that PEFT's begins
anew as well."""
ORTHOGONALITY = {"adalora": 0.5, "adalora_pruned": 0.5 * 3 / 4}
"""PEFT's mean over modules counts the one of four that was pruned to no direction; here that is no module."""
A_ALONE_LEARNS = {"mica"}
"""PEFT holds B still; here both learn."""


def going_on(folder: Path, kind: str, *overrides: str, **settings: Any) -> Ours:
    own = UNPRUNED if kind == "adalora" else ()
    settings = {"targets": ("re:.*_proj",), "steps": 10} | settings
    return Ours(kind, "init=saved", f"init.path={folder}", *own, *overrides, rank=0, **settings)


def pefts(folder: Path, **settings: Any) -> Any:
    return loaded(folder, is_trainable=True, **settings)


def stand_on_one_weight(ours: Ours, theirs: Theirs) -> None:
    for name in ours.adapted.adapted(0):
        if "E" in ours.adapted.factors(0)[name].params:
            continue
        left = theirs.layer(name).base_layer.weight.detach()
        wanted = residual_weight(ours.adapted, 0, name)
        torch.testing.assert_close(left, wanted if left.shape == wanted.shape else wanted.mT, rtol=1e-4, atol=1e-5)
        theirs.stand_on(ours, name)


def roles_that_learn(model: Any) -> set[str]:
    return {name.split(".lora_")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


def moved_by_both(ours: Ours, theirs: Theirs) -> None:
    before = {(name, role): tensor.detach().clone() for name, role, tensor in ours.factors()}
    stand_on_one_weight(ours, theirs)
    train_both(ours, theirs, STEPS)
    assert all(not torch.equal(before[name, role], tensor) for name, role, tensor in ours.factors())


@pytest.mark.parametrize("name", MADE)
def test_three_steps_are_pefts(name, tmp_path):
    folder, kind = make(name, tmp_path), MADE[name].kind
    overrides = [f"structure.orthogonality.coefficient={ORTHOGONALITY[name]}"] if kind == "adalora" else []
    ours, theirs = going_on(folder, kind, *overrides), pefts(folder)
    if name in A_ALONE_LEARNS:
        assert roles_that_learn(theirs) == {"A"}
        for parameter in (p for n, p in theirs.named_parameters() if "lora_B" in n):
            parameter.requires_grad_()
    learn = {"lora": {"A", "B"}, "dora": {"A", "B", "magnitude_vector"}, "adalora": {"A", "B", "E"}}
    assert roles_that_learn(theirs) == learn[kind]
    moved_by_both(ours, Theirs(theirs))


def test_on_gpt2_too(tmp_path):
    """Where weights are stored (in, out) and layers have biases."""
    folder = make("dora", tmp_path, gpt2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    ours = going_on(folder, "dora", base=conv1d, targets=("c_attn", "c_fc"))
    moved_by_both(ours, Theirs(pefts(folder, base=gpt2)))


def test_under_another_update(tmp_path):
    folder = make("pissa", tmp_path)
    ours = going_on(folder, "lora", "update=lora_plus")

    def plus(model: Any) -> Optimizer:
        return create_loraplus_optimizer(model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=16)

    moved_by_both(ours, Theirs(pefts(folder), plus))


def gradients(ours: Ours) -> dict[str, Tensor]:
    ours.backward()
    return {name: p.grad.clone() for name, p in ours.adapted.parameters(0).items() if p.grad is not None}


def test_an_exported_start_away_from_zero_goes_on_as_pefts_and_not_as_its_run(tmp_path):
    """PiSSA leaves a run as the pair s [dB B0] [A; dA] of rank 2r, as PEFT converts its own. All 2r directions learn
    then, B0 and dA among them, in PEFT and here alike. The run itself had r, and its gradients are parts of the pair's:
    of B s dL/ds[dB B0] over the first r, of A = A0 + dA the sum over both halves."""
    run = Ours("pissa", steps=10)
    disturb(run.adapted)
    save_adapter(run.adapted, 0, tmp_path)
    ours, r = going_on(tmp_path, "lora"), RANK
    own, exported = gradients(run), gradients(ours)
    for name in run.adapted.modules:
        (s,) = run.adapted.factors(0)[name].frozen["scale"].unique()
        torch.testing.assert_close(own[f"{name}.B"], s * exported[f"{name}.B"][:r], rtol=1e-4, atol=1e-6)
        A = exported[f"{name}.A"]
        assert A.shape[0] == 2 * r
        torch.testing.assert_close(own[f"{name}.A"], A[:r] + A[r:], rtol=1e-4, atol=1e-6)
    moved_by_both(ours, Theirs(pefts(tmp_path)))
