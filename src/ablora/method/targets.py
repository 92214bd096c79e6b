"""Which modules are adapted."""

import re

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ablora.method.layer import Layer
from ablora.spec import BadInput

FIELD = "adapter.targets"
REGEX = "re:"


def find_targets(model: nn.Module, targets: str | tuple[str, ...]) -> dict[str, Layer]:
    """The linear layers that `targets` names, in the model's order.

    `all-linear` is every linear layer but output heads, layers whose weight is an embedding's too, and layers that
    torch's attention reads without calling. Otherwise each entry is the end of a module's dotted name (q_proj, or
    layers.0.q_proj), or `re:` and a regular expression for the whole of it (re:.*layers\\.[01]\\..*_proj).

    BadInput: an entry that names no linear layer, or also names a matrix that cannot be adapted (an embedding, the
    output head, a convolution); an expression that is none. Norms and containers that an entry names are passed over.
    """
    unfit = _unfit(model)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and n not in unfit}
    if targets == "all-linear":
        return linear
    named = {name for entry in _entries(targets) for name in _named(entry, linear, unfit)}
    return {name: m for name, m in linear.items() if name in named}


def _entries(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    return (targets,) if isinstance(targets, str) else targets


def _named(entry: str, linear: dict[str, Layer], unfit: dict[str, str]) -> list[str]:
    """The layers of one entry."""
    ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    legal = f"all-linear, the end of a module's name, or {REGEX} and an expression for the whole of it: {ends}"
    pattern = _pattern(entry)
    for name, reason in unfit.items():
        if pattern.fullmatch(name):
            raise BadInput(FIELD, entry, f"linear layers; {name} is {reason}. Legal: {legal}")
    found = [name for name in linear if pattern.fullmatch(name)]
    if not found:
        example = f" (the first is {next(iter(linear))})" if linear else ""
        raise BadInput(FIELD, entry, f"{legal}{example}")
    return found


def _pattern(entry: str) -> re.Pattern[str]:
    if not entry.startswith(REGEX):
        return re.compile(rf"(?:.*\.)?{re.escape(entry)}")
    try:
        return re.compile(entry.removeprefix(REGEX))
    except re.error as error:
        raise BadInput(FIELD, entry, f"{REGEX} and a regular expression ({error})") from error


def _unfit(model: nn.Module) -> dict[str, str]:
    """The modules that hold a matrix and cannot be adapted, with what each of them is."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    embedded = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    unread = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    out = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
            continue
        if isinstance(module, nn.Embedding):
            out[name] = "an embedding, looked up and not multiplied"
        elif module is head:
            tied = f", tied to {embedded[id(weight)]}" if id(weight) in embedded else ""
            out[name] = f"the output head{tied}"
        elif id(weight) in embedded:
            out[name] = f"tied to the embedding {embedded[id(weight)]}"
        elif id(module) in unread:
            out[name] = "a layer whose weight torch's attention reads without calling it"
        elif not isinstance(module, nn.Linear | Conv1D):
            out[name] = f"a {type(module).__name__}"
    return out
