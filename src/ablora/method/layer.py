"""Linear layers as y = W x + b, whichever way round a class stores W."""

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Layer = nn.Linear | Conv1D
"""What can be adapted. Conv1D is GPT-2's, y = x M + b; its M (in, out) is W^T."""


def out_in(layer: Layer) -> tuple[int, int]:
    """(out, in)."""
    return (layer.nf, layer.nx) if isinstance(layer, Conv1D) else (layer.out_features, layer.in_features)


def weight_of(layer: Layer) -> Float[Tensor, "out in"]:
    """W: the stored tensor, or a view of it."""
    return turned(layer, layer.weight)


def turned(layer: Layer, matrix: Tensor) -> Tensor:
    """A matrix like W as the layer stores it, and one like the stored tensor as W: a view."""
    return matrix.mT if isinstance(layer, Conv1D) else matrix
