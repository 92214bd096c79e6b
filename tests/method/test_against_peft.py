"""Every method that PEFT can hold, trained beside PEFT 0.21.2 in float64: outputs, gradients, factors of each step.
PEFT gets the start from here, its base W0 - s B0 A0, and its own optimizer. WHERE has the evidence of the rest."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from beside_peft import LR, RANK, Optimizer, Ours, Theirs, conv1d, train_both, tuned
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, create_riemannian_optimizer
from peft.tuners.lora import eva
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.incremental_pca import IncrementalPCA
from test_targets import gpt2
from transformers import PreTrainedModel

from ablora.method.factors import expert_products, residual_weight
from ablora.models.rows import label_losses, lay_out
from ablora.train.calibration import choose
from presets import method, names
from tiny import adapt, llama, made_up

ROOT = Path(__file__).parents[1]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Case(NamedTuple):
    """How PEFT is told of a preset."""

    config: Mapping[str, Any] = {}
    """Of its LoraConfig, beside rank, alpha and targets."""
    alpha: float = 16.0
    optimizer: Callable[[Any], Optimizer] | None = None
    """None: AdamW over what is trainable."""
    overrides: tuple[str, ...] = ()
    """Of the preset, where its default is not PEFT's."""
    train: Mapping[str, Any] = {}
    """Of the run's recipe."""


def riemannian(optimizer: type[Optimizer]) -> Callable[[Any], Optimizer]:
    """PEFT's optimizer over AdamW or SGD, at PEFT's own damping."""
    return lambda m: create_riemannian_optimizer(m, optimizer, lr=LR, reg=1e-2, weight_decay=0.0)


PLUS = Case(optimizer=lambda m: create_loraplus_optimizer(m, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=16))
FROZEN_A = Case(
    optimizer=lambda m: create_lorafa_optimizer(m, r=RANK, lora_alpha=16, lr=LR),
    train={"optimizer": "adamw_hf", "eps": 1e-6},
)
ONE = Case(alpha=RANK)
"""s = 1."""
CASES = {
    "lora": Case(),
    "rslora": Case({"use_rslora": True}),
    "lora_plus": PLUS,
    "lora_fa": FROZEN_A,
    "dora": Case({"use_dora": True}),
    "eva": Case(overrides=("init.rho=1.0",)),
    "orthogonal": Case(),
    "pissa": ONE,
    "milora": ONE,
    "middle_svd": ONE,
    "random_svd": ONE,
    "olora": ONE,
    "corda_ipm": ONE,
    "corda_kpm": ONE,
    "lora_ga": Case({"use_rslora": True}),
    "riemannian_lora": Case(optimizer=riemannian(torch.optim.AdamW), overrides=("update.delta=1e-2",)),
    "riemannian_lora_sgd": Case(
        optimizer=riemannian(torch.optim.SGD), overrides=("update.delta=1e-2",), train={"optimizer": "sgd"}
    ),
}
CROSSED = {
    "dora of pissa": ("dora", Case({"use_dora": True}, RANK, None, ("init=svd_principal", "scaling=constant"))),
    "dora with lora_plus": ("dora", PLUS._replace(config={"use_dora": True}, overrides=("update=lora_plus",))),
    "pissa with lora_plus": ("pissa", PLUS._replace(alpha=RANK, overrides=("update=lora_plus",))),
    "rslora with lora_fa": (
        "rslora",
        FROZEN_A._replace(config={"use_rslora": True}, overrides=("update=freeze_a",)),
    ),
}
WHERE = {
    "adalora": "here",
    "alora": "test_alora.py",
    "adamole": "adamole_layer",
    "goat": "goat_svd_init",
    "goat_minor": "test_contract.py",
    "goat_no_scaling": "goat_svd_init",
    "goat_principal": "test_contract.py",
    "goat_random": "test_contract.py",
    "goat_s": "test_mixtures.py",
    "goat_shared_expert": "test_mixtures.py",
    "goat_top_p": "test_mixtures.py",
    "hydralora": "hydralora_layer",
    "moe_riemannian": "moe_riemannian_layer",
    "moe_riemannian_control": "test_router_gradient.py",
    "moe_riemannian_sgd": "moe_riemannian_optimizer",
    "molora": "test_mixtures.py",
    "molora_topk": "molora_topk",
    "riemannian_molora": "moe_riemannian_optimizer",
    "riemannian_molora_sgd": "moe_riemannian_optimizer",
}
"""Presets that no LoraConfig expresses: the official numbers (tests/vectors) or the test that stands for them."""


def test_every_preset_has_its_evidence():
    """A new preset belongs into CASES where PEFT can hold it, and into WHERE otherwise."""
    assert set(CASES).isdisjoint(WHERE)
    assert sorted([*CASES, *WHERE]) == names()
    for place in set(WHERE.values()) - {"here"}:
        folder = "method" if place.endswith(".py") else "vectors"
        assert (ROOT / folder / place).with_suffix(".py" if folder == "method" else ".safetensors").is_file(), place


def lora_config(case: Case, **more: Any) -> Any:
    own = {"r": RANK, "lora_alpha": case.alpha, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**{**own, **case.config, **more})


@pytest.mark.parametrize(
    ("preset", "case"),
    [*CASES.items(), *(pytest.param(*crossed, id=name) for name, crossed in CROSSED.items())],
)
def test_three_steps_are_pefts(preset, case):
    ours = Ours(preset, *case.overrides, steps=3, **case.train)
    theirs = Theirs(tuned(lora_config(case)), case.optimizer)
    for name, record in ours.adapted.records[0].items():
        assert record.scaling == theirs.layer(name).scaling["default"]
    before = [tensor.detach().clone() for _, _, tensor in ours.factors()]
    theirs.start(ours)
    train_both(ours, theirs, 3)
    for was, (name, role, tensor) in zip(before, ours.factors()):
        assert torch.equal(was, tensor) == (role not in ours.adapted.roles(0)), (name, role)


@pytest.mark.parametrize("preset", ["lora", "lora_fa", "dora", "pissa", "lora_ga"])
def test_three_steps_are_pefts_on_gpt2(preset):
    """Where weights are stored (in, out) and layers have biases."""
    case = CASES[preset]
    ours = Ours(preset, *case.overrides, steps=3, base=conv1d, **case.train)
    config = lora_config(case, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])
    theirs = Theirs(tuned(config, gpt2()), case.optimizer)
    theirs.start(ours)
    train_both(ours, theirs, 3)


def test_adalora_is_pefts_from_the_first_pruning_to_the_last_mask():
    """Twelve steps: warm-up to 2, pruning every second, settled from 8; half of the directions stay."""
    config = peft.AdaLoraConfig(
        init_r=RANK, target_r=4, tinit=2, tfinal=4, deltaT=2, total_step=12, lora_alpha=16, orth_reg_weight=0.5,
        target_modules=LINEAR, task_type="CAUSAL_LM",
    )  # fmt: skip
    schedule = {"warmup": 2 / 12, "settle": 4 / 12, "every": 2}
    ours = Ours(
        "adalora", "scaling=constant", f"scaling.value={16 / (RANK + 1e-5)}", "structure.target_rank=4",
        "structure.orthogonality.coefficient=0.5", "structure.orthogonality.convention=norm_mean",
        *(f"structure.schedule.{key}={value}" for key, value in schedule.items()), steps=12,
    )  # fmt: skip
    theirs = Theirs(tuned(config))
    theirs.start(ours)
    train_both(ours, theirs, 12, theirs.model.base_model.update_and_allocate)
    left = torch.cat([tensor.detach() != 0 for _, role, tensor in ours.factors() if role == "E"])
    assert int(left.sum()) == 4 * len(ours.adapted.modules) == len(left) // 2


def rows_of(preset: str, *overrides: str) -> list[Any]:
    """The items that a data-driven start looks at, as `tiny.adapt` gives them."""
    return choose(made_up(0), method(preset, *overrides).init.calibration)


def see_gradients(base: PreTrainedModel, config: Any) -> None:
    items, size = rows_of("lora_ga"), method("lora_ga").init.batch

    def step() -> None:
        for at in range(0, len(items), size):
            label_losses(base, lay_out([items[at : at + size]])).mean().backward()

    preprocess_loraga(base, config, step)


def see_inputs(base: PreTrainedModel, config: Any) -> None:
    def run() -> None:
        for item in rows_of("corda_ipm"):
            base(input_ids=torch.tensor([item.input_ids]))

    preprocess_corda(base, config, run)


STARTS: dict[str, tuple[str, dict[str, Any], Callable[[PreTrainedModel, Any], None] | None, tuple[str, ...]]] = {
    "pissa": ("pissa", {}, None, ()),
    "olora": ("olora", {}, None, ()),
    "corda_ipm": ("corda", {"corda_config": CordaConfig(corda_method="ipm")}, see_inputs, ()),
    "corda_kpm": ("corda", {"corda_config": CordaConfig(corda_method="kpm")}, see_inputs, ()),
    "lora_ga": ("lora_ga", {"lora_ga_config": LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=16)},
                see_gradients, ("init.form=peft",)),
}  # fmt: skip
"""PEFT's name, its own settings, what it asks to see of the base, and the preset's form that it has."""


@pytest.mark.parametrize("preset", STARTS)
def test_starts_are_pefts(preset):
    """The product and the weight that is left, to float32: PEFT decomposes in it. Signs of single vectors are free,
    and in LoRA-GA's product, whose u and v come from different triplets: there A^T A and B B^T."""
    init, settings, look, overrides = STARTS[preset]
    base, config = llama(), lora_config(CASES[preset], init_lora_weights=init, **settings)
    if look is not None:
        look(base, config)
    theirs = Theirs(tuned(config, base))
    ours = Ours(preset, *overrides, steps=1)
    for name in ours.adapted.modules:
        layer = theirs.layer(name)
        A, B = theirs.tensor(name, "A").detach(), theirs.tensor(name, "B").detach()
        mine = ours.adapted.factors(0)[name].params
        rtol, atol = (1e-3, 1e-4) if preset.startswith("corda") else (1e-4, 1e-5)
        if preset == "lora_ga":
            torch.testing.assert_close(mine["A"].mT @ mine["A"], A.mT @ A, rtol=rtol, atol=atol)
            torch.testing.assert_close(mine["B"].mT @ mine["B"], B @ B.mT, rtol=rtol, atol=atol)
            continue
        product = layer.scaling["default"] * B @ A
        torch.testing.assert_close(expert_products(ours.adapted, 0, name)[0], product, rtol=rtol, atol=atol)
        torch.testing.assert_close(
            residual_weight(ours.adapted, 0, name), layer.base_layer.weight.detach(), rtol=rtol, atol=atol
        )


@pytest.mark.parametrize(("rank", "rho"), [(RANK, 1.0), (RANK, 2.0), (1, 2.0), (3, 1.5)])
def test_evas_start_is_pefts(monkeypatch, rank, rho):
    """Rows of A one by one, signs too, and ranks; of equal inputs (q, k, v; gate, up) the first has the most in both,
    the rest may be in another order. PEFT's decomposition is a random one, whose last row was off by
    0.01; here it is told to take the exact one."""
    exact = {"lowrank": False, "lowrank_seed": None}
    monkeypatch.setattr(eva, "IncrementalPCA", lambda **settings: IncrementalPCA(**{**settings, **exact}))
    items = rows_of("eva")
    width = max(len(item.input_ids) for item in items)
    batch = {key: torch.zeros(len(items), width, dtype=torch.long) for key in ("input_ids", "attention_mask", "labels")}
    batch["labels"].fill_(-100)
    for row, item in enumerate(items):
        n = len(item.input_ids)
        batch["input_ids"][row, :n] = torch.tensor(item.input_ids)
        batch["attention_mask"][row, :n] = 1
        batch["labels"][row, item.answer_start : n] = torch.tensor(item.input_ids[item.answer_start :])
    config = lora_config(CASES["eva"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=rho), r=rank)
    model: Any = peft.get_peft_model(llama(), config)
    peft.initialize_lora_eva_weights(model, [batch], show_progress_bar=False)  # pyright: ignore[reportArgumentType]
    ours = adapt(llama(), method("eva", f"init.rho={rho}"), rank=rank)
    given, wanted = {}, {}
    for name, record in ours.records[0].items():
        layer = model.get_base_model().get_submodule(name)
        theirs = layer.lora_A["default"].weight.detach() if hasattr(layer, "lora_A") else torch.zeros(0, 1)
        shared = re.sub("[kv]_proj", "q_proj", name).replace("up_proj", "gate_proj")
        given.setdefault(shared, []).append(record.rank)
        wanted.setdefault(shared, []).append(len(theirs))
        if both := min(len(theirs), record.rank or 0):
            A = ours.parameters(0)[f"{name}.A"].detach()
            torch.testing.assert_close(A[:both], theirs[:both], rtol=0, atol=1e-4)
            assert record.scaling == pytest.approx(layer.scaling["default"])
    assert {name: own[0] for name, own in given.items()} == {name: own[0] for name, own in wanted.items()}
    assert {name: sorted(own) for name, own in given.items()} == {name: sorted(own) for name, own in wanted.items()}
    assert rho == 1.0 or any(len(set(own)) > 1 or own[0] != rank for own in given.values())
