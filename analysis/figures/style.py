"""How every figure looks: one colour and marker per method across all figures, and a paper column's size.

Colours are of Okabe and Ito (2008) and of Tol's muted scheme (2021), which stay apart under the common forms of colour
blindness; the marker carries the same information, for print without colour.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

COLUMN_IN = 3.3
"""Width of a column of a two-column paper, inches."""
FONT_PT = 7.5
SMALL_PT = 7.0

RC = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "font.size": FONT_PT, "axes.titlesize": FONT_PT, "axes.labelsize": FONT_PT, "legend.fontsize": SMALL_PT,
    "xtick.labelsize": SMALL_PT, "ytick.labelsize": SMALL_PT, "axes.linewidth": 0.6, "lines.linewidth": 1.1,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "lines.markersize": 4.0,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.handlelength": 1.6,
    "legend.columnspacing": 1.0, "legend.handletextpad": 0.4, "legend.borderaxespad": 0.1,
    "savefig.dpi": 300, "figure.dpi": 100, "pdf.fonttype": 42, "svg.hashsalt": "ablora", "svg.fonttype": "path",
    "path.simplify": False, "axes.formatter.useoffset": False,
}  # fmt: skip


class Look(NamedTuple):
    colour: str
    marker: str


BLUE, SKY, VERMILION, GREEN, ORANGE, PURPLE, BLACK, GREY = (
    "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000", "#7F7F7F",
)  # fmt: skip
INDIGO, WINE, OLIVE, TEAL, ROSE, SAND = "#332288", "#882255", "#999933", "#44AA99", "#CC6677", "#B8A44C"

KNOWN = {
    "lora": Look(BLUE, "o"), "rslora": Look(SKY, "s"), "pissa": Look(VERMILION, "^"), "milora": Look(GREEN, "D"),
    "random_svd": Look(GREY, "X"), "molora_topk": Look(ORANGE, "P"), "goat": Look(PURPLE, "*"),
    "dora": Look(INDIGO, "v"), "adalora": Look(WINE, "<"), "lora_ga": Look(OLIVE, ">"), "full": Look(BLACK, "h"),
    "alora": Look(WINE, "p"), "lora_plus": Look(TEAL, "o"), "lora_fa": Look(ROSE, "d"),
    "riemannian_lora": Look(INDIGO, "s"), "riemannian_lora_sgd": Look(INDIGO, "D"),
    "riemannian_molora": Look(SKY, "P"), "riemannian_molora_sgd": Look(SKY, "X"),
    "moe_riemannian": Look(VERMILION, "P"), "moe_riemannian_sgd": Look(VERMILION, "X"),
    "moe_riemannian_control": Look(GREY, "P"),
    "olora": Look(SAND, "s"), "eva": Look(TEAL, "^"), "corda_ipm": Look(ROSE, "^"), "corda_kpm": Look(ROSE, "v"),
    "orthogonal": Look(INDIGO, "X"), "adamole": Look(ORANGE, "X"),
    "hydralora": Look(SAND, "P"), "middle_svd": Look(OLIVE, "X"),
    "molora": Look(SKY, "P"), "goat_s": Look(INDIGO, "*"), "goat_principal": Look(VERMILION, "*"),
    "goat_minor": Look(GREEN, "*"), "goat_random": Look(GREY, "*"), "goat_no_scaling": Look(BLUE, "*"),
    "goat_top_p": Look(ORANGE, "*"), "goat_shared_expert": Look(TEAL, "*"),
}  # fmt: skip

_SAME_AS = {
    "zero_b": "lora", "svd_principal": "pissa", "svd_minor": "milora", "svd_random": "random_svd",
    "svd_middle": "middle_svd", "svd_segments": "goat", "gradient": "lora_ga", "qr": "olora", "activation": "eva",
    "context": "corda_ipm", "orthogonal": "orthogonal", "alpha_over_r": "lora", "alpha_over_sqrt_r": "rslora",
    "riemannian": "riemannian_lora",
    "lora_plus": "lora_plus", "freeze_a": "lora_fa", "dora": "dora", "adalora": "adalora", "alora": "alora",
}  # fmt: skip
"""An axis value that one named method is known for wears that method's colour."""

_FREE = [Look(c, m) for m in "os^Dvp" for c in (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INDIGO, WINE, OLIVE, TEAL)]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look per name: a known one keeps its own everywhere, any other has one by a hash of its name; where two would
    meet in one figure, the later in the alphabet takes the next free."""
    found: dict[str, Look] = {}
    names = sorted(set(names))
    for name in names:
        if (look := _own(name)) is not None and look not in found.values():
            found[name] = look
    for name in names:
        if name not in found:
            start = int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(_FREE)
            order = _FREE[start:] + _FREE[:start]
            worn = {look.colour for look in found.values()}
            free = [look for look in order if look not in found.values()]
            found[name] = next((look for look in free if look.colour not in worn), free[0] if free else order[0])
    return found


def _own(name: str) -> Look | None:
    """`lora` is known; so is `lora, init=svd_minor`, by its axis value."""
    if name in KNOWN:
        return KNOWN[name]
    values = [part.partition("=")[2] for part in name.split(", ")[1:]]
    known = [KNOWN[_SAME_AS[value]] for value in values if value in _SAME_AS]
    return known[0] if len(values) == 1 and known else None


UNITS = {
    "answer_loss_nats": "answer loss (nats per token)",
    "exact_match": "exact match (share)",
    "train_loss_nats": "training loss (nats per token)",
    "loss_nats": "training loss (nats per token)",
    "forgetting_nats": "forgetting loss (nats per token)",
    "forgetting_floor_nats": "forgetting floor (nats per token)",
    "forgetting_kl_nats": "forgetting KL (nats per token)",
    "text_loss_nats": "text loss (nats per token)",
    "base_text_loss_nats": "text loss of the base (nats per token)",
    "top1_agreement": "top-1 agreement (share)",
    "routing_balance": "balance loss (1: balanced)",
    "routing_entropy_nats": "router entropy (nats)",
    "routing_top1_margin": "router top-1 margin (probability)",
    "routing_max_load": "largest load (share of tokens)",
}

_LOWER = {"routing_balance", "routing_max_load"}


def axis_title(metric: str) -> str:
    """A metric in words, with its unit."""
    if metric in UNITS:
        return UNITS[metric]
    if metric.startswith("validation_"):
        return f"validation {axis_title(metric.removeprefix('validation_'))}"
    stem, _, unit = metric.rpartition("_")
    known = unit in ("nats", "bits", "s", "tokens", "bytes", "gib") and stem
    return f"{stem.replace('_', ' ')} ({unit})" if known else metric.replace("_", " ")


def lower_is_better(metric: str) -> bool:
    """Losses, divergences and costs are better low; shares of right answers and agreements are better high."""
    if metric in _LOWER:
        return True
    words = metric.lower().split("_")
    unit = words[-1] in ("nats", "bits", "s", "bytes", "gib")
    return unit or bool({"loss", "kl", "perplexity", "error"} & set(words))
