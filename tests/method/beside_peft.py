"""A run of the trainer's own beside a model of PEFT, in float64, compared before, in and after every step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import peft
import torch
import torch.nn.functional as F
from test_targets import gpt2
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ablora.method.attach import Adapted, attach
from ablora.method.factors import residual_weight
from ablora.method.layer import turned
from ablora.method.member import Member
from ablora.models.segments import packed_logits
from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
from ablora.spectra.library import Library
from ablora.train.member import RunState
from presets import method
from tiny import calibrated, ids, llama, made_up

RANK, LR = 8, 1e-2
Optimizer = torch.optim.Optimizer


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
    return cast(Any, gpt2()).to(dtype)


class Ours:
    """One run by the trainer's own state: its optimizer, update and after-step."""

    def __init__(
        self, preset: str, *overrides: str, steps: int, base: Base = llama, rank: int = RANK,
        targets: Sequence[str] | None = None, **train: Any,
    ):  # fmt: skip
        """A rank of 0 is the one that the start brings."""
        chosen = method(preset, *overrides)
        self.model = in_float64(base(torch.float64))
        adapter = AdapterSpec(compute_dtype="float64")
        if targets is not None:
            adapter = replace(adapter, targets=tuple(targets))
        member = Member(chosen, rank, adapter, 0, calibrated(self.model, chosen, adapter, made_up(0)))
        self.adapted: Adapted = attach(self.model, [member], Library(None))
        recipe = {"lr": LR, "max_steps": steps, "batch_size": 1, "schedule": "constant", "clip_norm": None} | train
        spec = RunSpec(method=chosen, model=None, dataset=None, train=TrainSpec(**recipe), eval=EvalSpec(tasks={}),
                       adapter=adapter, rank=rank or None, seed=0)  # fmt: skip
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

    def __init__(self, model: Any, optimizer: Callable[[Any], Optimizer] | None = None):
        self.model = model.double()
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
                    self.stand_on(ours, name)

    def stand_on(self, ours: Ours, name: str) -> None:
        """Take over the residual weight of one module."""
        base = self.layer(name).base_layer
        with torch.no_grad():
            base.weight.copy_(turned(base, residual_weight(ours.adapted, 0, name)))

    def backward(self) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad()
        out = self.model(input_ids=ids(), labels=ids())
        out.loss.backward()
        return out.logits.detach(), out.loss.detach()


def tuned(config: Any, base: PreTrainedModel | None = None) -> Any:
    """PEFT's model of a base in float32, which its starts decompose."""
    return peft.get_peft_model(base or llama(), config)


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
