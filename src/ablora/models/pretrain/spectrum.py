"""The singular spectrum that training made, against that of the random start."""

import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
START, TRAINED = "#8c8c8c", "#0b6fa4"


class Shape(NamedTuple):
    """Three numbers of one spectrum: stable rank, share of the first direction, entropy rank."""

    stable_rank: float
    top1_share: float
    effective_rank: float


def singular_values(model: nn.Module) -> dict[str, list[Float[Tensor, " rank"]]]:
    """Module type -> the singular values of each layer's matrix, float32, falling."""
    found: dict[str, list[Tensor]] = {name: [] for name in MODULES}
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        if kind in found:
            found[kind].append(torch.linalg.svdvals(parameter.detach().float()))
    return found


def shape(sigma: Float[Tensor, " rank"]) -> Shape:
    """Stable rank sum s^2 / s_1^2; top-1 share s_1^2 / sum s^2; effective rank exp(-sum p ln p), p = s / sum s.

    Roy and Vetterli 2007 (The effective rank), definition 1, for the last.
    """
    energy, p = sigma.double() ** 2, sigma.double() / sigma.double().sum()
    stable = (energy.sum() / energy[0]).item()
    entropy = -(p * torch.log(p.clamp_min(1e-300))).sum()
    return Shape(stable, 1 / stable, torch.exp(entropy).item())


def table(model: nn.Module) -> dict[str, Shape]:
    """Module type -> the three numbers, each the mean over layers."""
    rows = {}
    for kind, layers in singular_values(model).items():
        shapes = [shape(sigma) for sigma in layers]
        rows[kind] = Shape(*(statistics.fmean(column) for column in zip(*shapes, strict=True)))
    return rows


class Move(NamedTuple):
    """How far training took a matrix: Frobenius norm over the start's, cosine between the two."""

    norm_ratio: float
    cosine: float


def moves(trained: nn.Module, start: nn.Module) -> dict[str, Move]:
    """Module type -> mean over layers of ||W|| / ||W0|| and <W, W0> / (||W|| ||W0||)."""
    before, found = dict(start.named_parameters()), {kind: [] for kind in MODULES}
    for name, parameter in trained.named_parameters():
        kind = name.split(".")[-2]
        if kind in found:
            w, w0 = parameter.detach().float(), before[name].detach().float()
            cosine = (w * w0).sum() / (w.norm() * w0.norm())
            found[kind].append(((w.norm() / w0.norm()).item(), cosine.item()))
    return {kind: Move(*(statistics.fmean(column) for column in zip(*rows))) for kind, rows in found.items()}


class Curves(NamedTuple):
    """What the figure shows: per module type, layers x rank singular values over their root mean square."""

    trained: dict[str, np.ndarray]
    start: dict[str, np.ndarray]


def curves(trained: nn.Module, start: nn.Module) -> Curves:
    """The figure's points."""

    def scaled(model: nn.Module) -> dict[str, np.ndarray]:
        stacked = {kind: torch.stack(layers) for kind, layers in singular_values(model).items()}
        return {kind: (s / s.square().mean(1, keepdim=True).sqrt()).numpy() for kind, s in stacked.items()}

    return Curves(scaled(trained), scaled(start))


def draw(points: Curves, paths: list[Path]) -> None:
    """One panel per module type: a line per layer, trained over the random start, log scale; written to each path."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "ablora"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(11, 5), sharey=True, layout="constrained")
    for ax, kind in zip(axes.flat, MODULES):
        for values, colour in ((points.start[kind], START), (points.trained[kind], TRAINED)):
            for layer in values:
                ax.plot(np.arange(1, len(layer) + 1), layer, color=colour, lw=1.0, alpha=0.8)
        ax.set(xscale="log", yscale="log", ylim=(0.1, 10))  # square random matrices end at 1e-4
        ax.set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
        ax.set_yticks([], minor=True)
        ax.set_title(kind, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[1, 3].axis("off")
    axes[1, 3].plot([], [], color=TRAINED, label="trained, one line per layer")
    axes[1, 3].plot([], [], color=START, label="random start")
    axes[1, 3].legend(loc="center", frameon=False)
    figure.supxlabel("index of the singular value", fontsize=10)
    figure.supylabel("singular value / root mean square", fontsize=10)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=130, metadata=metadata)
    plt.close(figure)
