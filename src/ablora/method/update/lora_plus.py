"""LoRA+: B learns faster than A."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.nn import Parameter
from torch.optim import Optimizer

from ablora.method.structure._base import Factors
from ablora.spec import check


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraPlus:
    """Give B, and whatever has one dimension, `ratio` times the learning rate of A and of all others.

    lr(A) = lr,   lr(B) = ratio * lr;   ratio 1 is plain.

    Factors of an embedding (roles embedding_A, embedding_B) have `embedding_lr` instead, whatever lr is; `attach`
    makes none today.

    Source: arXiv:2402.12354; huggingface/peft 0.21.2 optimizers/loraplus.py; nikhil-ghosh-berkeley/loraplus@a0c44bf
        lora_plus.py. The ratio has no default there (an example has 20); the preset's 16 is what LoRA-GA's code
        compares with (Outsider565/LoRA-GA@89af7de).
    Differs: from PEFT, whose LoRA+ ignores `weight_decay` for a `loraplus_weight_decay` of its own and spares biases
        and LayerNorms: here `train.weight_decay` (default 0) decays all, and neither kind is ever trained. As in PEFT
        a mixture's router (two dimensions) has A's rate, DoRA's magnitude (one) has B's. The schedule scales
        `embedding_lr` too.
    """

    revision: ClassVar[int] = 1
    ratio: float
    embedding_lr: float = 1e-6

    def __post_init__(self) -> None:
        check(self.ratio > 0, "ratio", self.ratio, "a positive number: lr of B over lr of A")
        check(self.embedding_lr > 0, "embedding_lr", self.embedding_lr, "a positive number")

    def trains(self, role: str) -> bool:
        return True

    def groups(self, roles: Mapping[str, Sequence[Parameter]], lr: float) -> list[dict[str, Any]]:
        by_rate: dict[float, list[Parameter]] = {}
        for role, parameters in roles.items():
            for parameter in parameters:
                by_rate.setdefault(self._rate(role, parameter, lr), []).append(parameter)
        return [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]

    def _rate(self, role: str, parameter: Parameter, lr: float) -> float:
        if role in ("embedding_A", "embedding_B"):
            return self.embedding_lr
        return lr * self.ratio if role == "B" or parameter.dim() == 1 else lr

    def step(self, optimizer: Optimizer, modules: Mapping[str, Factors], experts: int) -> dict[str, float]:
        optimizer.step()
        return {}
