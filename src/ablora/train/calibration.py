"""The pass over a run's own training data that a data-driven start needs, before anything is attached."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ablora.data.encode import Encoded
from ablora.method.init._base import DataDriven
from ablora.method.layer import Layer, turned
from ablora.method.seeds import generator
from ablora.method.targets import find_targets
from ablora.models.base import Base
from ablora.models.rows import label_losses, lay_out
from ablora.models.segments import packed_inputs
from ablora.spec import RunSpec, canonical, check
from ablora.spectra.statistics import (
    REVISION,
    Calibration,
    Collected,
    Gradients,
    GradientSums,
    InputSums,
    OfInputs,
    kept,
)
from ablora.train.data import items_of


def calibrate(specs: Sequence[RunSpec], base: Base, folder: Path | None) -> list[Collected | None]:
    """What each run's start asks to know of the base on the run's training data; None: nothing.

    One pass per content of base and items, targets and what is asked: runs of a study that differ in seed, rank or
    recipe share its file in `folder`.
    """
    found: dict[str, Collected] = {}
    out: list[Collected | None] = []
    for spec in specs:
        init = getattr(spec.method, "init", None)
        if not isinstance(init, DataDriven):
            out.append(None)
            continue
        items, _ = items_of(spec, base, "train", None, folder)
        chosen = choose(items.encoded, init.calibration)
        statistic = init.statistic()
        key = _key(spec, statistic, chosen)
        if key not in found:
            layers = find_targets(base.model, spec.adapter.targets)
            found[key] = kept(
                folder, key, lambda s=statistic, c=chosen, at=layers: collect(base.model, at, s, c)
            )  # fmt: skip
        out.append(found[key])
    return out


def choose(items: Sequence[Encoded], calibration: Calibration) -> list[Encoded]:
    """The items that a calibration looks at, in its order; BadInput if its tokens do not reach over the first."""
    order = torch.randperm(len(items), generator=generator("calibration", calibration.seed)).tolist()
    chosen = [items[i] for i in order[: calibration.samples]]
    if calibration.tokens is not None:
        ends = torch.tensor([len(e.input_ids) for e in chosen]).cumsum(0)
        chosen = chosen[: int((ends <= calibration.tokens).sum())]
        legal = f"at least {ends[0]}, the tokens of the first item: items are not cut"
        check(bool(chosen), "method.init.calibration.tokens", calibration.tokens, legal)
    return chosen


def collect(
    model: PreTrainedModel, layers: Mapping[str, Layer], statistic: OfInputs | Gradients, items: Sequence[Encoded]
) -> Collected:
    """One pass over the items: single ones for sums of inputs, micro-batches for gradients."""
    model.requires_grad_(False).eval()
    if isinstance(statistic, Gradients):
        return _gradients(model, layers, statistic.batch, items)
    return _inputs(model, layers, statistic, items)


@torch.no_grad()
def _inputs(
    model: PreTrainedModel, layers: Mapping[str, Layer], statistic: OfInputs, items: Sequence[Encoded]
) -> Collected:
    sums = InputSums(layers, statistic)
    with sums.listening():
        for item in items:
            ids = torch.tensor([item.input_ids], device=model.device)
            sums.next_sample(torch.arange(ids.shape[1], device=model.device) >= item.answer_start)
            model.base_model(**packed_inputs(ids, [[ids.shape[1]]]))
    return sums.collected()


def _gradients(model: PreTrainedModel, layers: Mapping[str, Layer], batch: int, items: Sequence[Encoded]) -> Collected:
    sums = GradientSums(layers)
    with sums.listening(), torch.enable_grad():
        for at in range(0, len(items), batch):
            label_losses(model, lay_out([items[at : at + batch]], model.device)).mean().backward()
    found = sums.collected()
    upright = {name: turned(layers[name], own["gradient"]).contiguous() for name, own in found.sums.items()}
    return found._replace(sums={name: {**own, "gradient": upright[name]} for name, own in found.sums.items()})


def _key(spec: RunSpec, statistic: OfInputs | Gradients, items: Sequence[Encoded]) -> str:
    """The content of everything that decides the sums, but for the machine's rounding."""
    asked = {
        "revision": REVISION,
        "statistic": canonical(statistic),
        "model": canonical(spec.model),
        "targets": canonical(spec.adapter.targets),
        "items": [[*e.input_ids, -e.answer_start] for e in items],
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
