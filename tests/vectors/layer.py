"""A model of one linear layer, with a method attached."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ablora.method.attach import Adapted, attach
from ablora.method.lowrank import LowRank
from ablora.method.member import Member
from ablora.spec import AdapterSpec
from ablora.spectra.library import Library
from ablora.spectra.statistics import Collected

Tensors = Mapping[str, Tensor]
Case = dict[str, Any]


class Layer(nn.Module):
    """A model of one linear layer."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            if bias is not None:
                self.linear.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def adapt(inputs: Tensors, chosen: LowRank, rank: int, seen: Collected | None = None) -> tuple[Layer, Adapted]:
    """The case's layer with the method attached, in the dtype of its weight; `seen`: what its start asks of data."""
    layer = Layer(inputs["W"], inputs.get("bias"))
    dtype = "float64" if inputs["W"].dtype == torch.float64 else "float32"
    adapter = AdapterSpec(targets="linear", compute_dtype=dtype)
    return layer, attach(layer, [Member(chosen, rank, adapter, 0, seen)], Library(None))


def backward(layer: Layer, adapted: Adapted, inputs: Tensors) -> dict[str, Tensor]:
    """Output and gradients of sum(y * C)."""
    x = inputs["x"].clone().requires_grad_()
    y = layer(x)
    (y * inputs["C"]).sum().backward()
    adapted.hand_out_gradients()
    named = {"grad_x": x, **{f"grad_{name.rpartition('.')[2]}": p for name, p in adapted.parameters(0).items()}}
    return {"y": y, **{name: tensor.grad for name, tensor in named.items() if tensor.grad is not None}}
