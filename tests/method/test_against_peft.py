"""Every method that PEFT can hold, trained beside PEFT 0.21.2 in float64: outputs, gradients, factors of each step.
PEFT gets the start from here, its base W0 - s B0 A0, and its own optimizer. WHERE has the evidence of the rest."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import peft
import pytest
import torch
import torch.nn.functional as F
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, create_riemannian_optimizer
from peft.tuners.lora import eva
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.incremental_pca import IncrementalPCA
from test_targets import gpt2
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ablora.method.attach import Adapted
from ablora.method.factors import expert_products, residual_weight
from ablora.method.layer import turned
from ablora.models.rows import label_losses, lay_out
from ablora.models.segments import packed_logits
from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
from ablora.train.calibration import choose
from ablora.train.member import RunState
from presets import method, names
from tiny import adapt, ids, llama, made_up

ROOT, RANK, LR = Path(__file__).parents[1], 8, 1e-2
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Optimizer = torch.optim.Optimizer


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


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """transformers' norm rounds to float32 on its way; torch's does not."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=module.weight.dtype)
            norm.weight.data.copy_(module.weight)
            model.set_submodule(name, norm.requires_grad_(False))
    return model


def loss_of(logits: Tensor) -> Tensor:
    """The next token's, in the logits' own dtype."""
    return F.cross_entropy(logits[0, :-1], ids()[0, 1:])


Base = Callable[[torch.dtype], PreTrainedModel]


def conv1d(dtype: torch.dtype) -> PreTrainedModel:
    """GPT-2, whose biases are drawn in float32 for any dtype."""
    return gpt2().to(dtype)


class Ours:
    """One run by the trainer's own state: its optimizer, update and after-step."""

    def __init__(self, preset: str, *overrides: str, steps: int, base: Base = llama, **train: Any):
        chosen = method(preset, *overrides)
        self.model = in_float64(base(torch.float64))
        self.adapted: Adapted = adapt(self.model, chosen, rank=RANK, compute_dtype="float64")
        recipe = {"lr": LR, "max_steps": steps, "batch_size": 1, "schedule": "constant", "clip_norm": None} | train
        spec = RunSpec(method=chosen, model=None, dataset=None, train=TrainSpec(**recipe), eval=EvalSpec(tasks={}),
                       adapter=AdapterSpec(compute_dtype="float64"), rank=RANK, seed=0)  # fmt: skip
        nothing = cast(Any, None)
        self.run = RunState(0, nothing, nothing, spec, nothing, self.adapted)

    def backward(self) -> tuple[Tensor, Tensor]:
        """(logits, loss), gradients handed out."""
        self.adapted.clear_gradients()
        logits = packed_logits(self.model, ids(), [[64]])
        loss = loss_of(logits) + (self.adapted.penalty(0) or 0)
        loss.backward()
        self.adapted.hand_out_gradients()
        return logits.detach(), loss.detach()

    def factors(self) -> Iterator[tuple[str, str, Tensor]]:
        """(module, role, the tensor as it is stored: rank first), held ones too."""
        for name, (params, _) in self.adapted.factors(0).items():
            for role, tensor in params.items():
                yield name, role, tensor


class Theirs:
    """A model of PEFT, whose tensors go by the names of ours."""

    def __init__(self, config: Any, optimizer: Callable[[Any], Optimizer] | None, base: PreTrainedModel | None = None):
        self.model: Any = peft.get_peft_model(base or llama(), config).double()
        in_float64(self.model.get_base_model())
        self.model.get_base_model().loss_function = lambda logits, *_, **__: loss_of(logits)
        if optimizer is None:
            trainable = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer: Optimizer = torch.optim.AdamW(trainable, lr=LR, weight_decay=0.0)
        else:
            self.optimizer = optimizer(self.model)

    def layer(self, name: str) -> Any:
        return self.model.get_base_model().get_submodule(name)

    def tensor(self, name: str, role: str) -> nn.Parameter:
        layer = self.layer(name)
        own = layer.lora_magnitude_vector if role == "magnitude" else getattr(layer, f"lora_{role}")
        held = own["default"]
        return held if isinstance(held, nn.Parameter) else held.weight

    def start(self, ours: Ours) -> None:
        """Take over the other's factors, and the residual weight where its start is not zero."""
        with torch.no_grad():
            for name, role, tensor in ours.factors():
                self.tensor(name, role).copy_(as_theirs(role, tensor))
            for name in ours.adapted.modules:
                if "E" not in ours.adapted.factors(0)[name].params:  # AdaLoRA's start is zero by E
                    base = self.layer(name).base_layer
                    base.weight.copy_(turned(base, residual_weight(ours.adapted, 0, name)))

    def backward(self) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad()
        out = self.model(input_ids=ids(), labels=ids())
        out.loss.backward()
        return out.logits.detach(), out.loss.detach()


def as_theirs(role: str, tensor: Tensor) -> Tensor:
    return tensor.detach().mT if role == "B" else tensor.detach()


def close(found: Tensor, expected: Tensor, what: str) -> None:
    """To 1e-8 of the largest number."""
    size = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 * size + 1e-13, msg=lambda m: f"{what}: {m}")


def train_both(ours: Ours, theirs: Theirs, steps: int, after: Callable[[int], None] | None = None) -> None:
    """Compare before, in and after every step."""
    for step in range(1, steps + 1):
        for found, expected, what in zip(ours.backward(), theirs.backward(), ("logits", "loss")):
            close(found, expected, f"{what} of step {step}")
        trained = ours.adapted.roles(0)
        for name, role, tensor in ours.factors():
            expected = theirs.tensor(name, role).grad
            if role in trained:
                assert tensor.grad is not None
                assert expected is not None
                close(as_theirs(role, tensor.grad), expected, f"gradient of {name}.{role} in step {step}")
            else:
                assert expected is None, (name, role)
        ours.run.update()
        theirs.optimizer.step()
        if after is not None:
            after(step)
        for name, role, tensor in ours.factors():
            close(as_theirs(role, tensor), theirs.tensor(name, role).detach(), f"{name}.{role} after step {step}")
    assert sum(p.numel() for p in theirs.model.parameters() if p.requires_grad) == sum(
        r.parameters for r in ours.adapted.records[0].values()
    )


def lora_config(case: Case, **more: Any) -> Any:
    own = {"r": RANK, "lora_alpha": case.alpha, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**{**own, **case.config, **more})


@pytest.mark.parametrize(
    ("preset", "case"),
    [*CASES.items(), *(pytest.param(*crossed, id=name) for name, crossed in CROSSED.items())],
)
def test_three_steps_are_pefts(preset, case):
    ours = Ours(preset, *case.overrides, steps=3, **case.train)
    theirs = Theirs(lora_config(case), case.optimizer)
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
    theirs = Theirs(config, case.optimizer, gpt2())
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
    theirs = Theirs(config, None)
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
    theirs = Theirs(config, None, base)
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
