"""Every tuner of PEFT on the embedded base: two steps, saved, loaded by PEFT. Writes docs/peft_tuners.md.

python tests/method/try_tuners.py > docs/peft_tuners.md
"""

import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "train")]

from packs import TRAIN  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

from ablora.data.encode import Encoded  # noqa: E402
from ablora.method.adapt import adapt  # noqa: E402
from ablora.method.adaptation import Adaptation  # noqa: E402
from ablora.method.peft_tuner import PLACES_OF_ITS_OWN, REFUSED, Peft, fields_of, tuners  # noqa: E402
from ablora.models.base import Base, Embedded, load  # noqa: E402
from ablora.models.rows import lay_out  # noqa: E402
from ablora.spec import AdapterSpec, BadInput, EvalSpec, RunSpec  # noqa: E402
from ablora.train.data import TrainData  # noqa: E402
from ablora.train.loop import train_step  # noqa: E402
from ablora.train.member import RunState  # noqa: E402
from tiny import made_up  # noqa: E402

NEEDED: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "C3A": {"block_size": 16},  # a divisor of every side
    "FROD": {"progressbar": False},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3]},
    "VBLORA": {"vector_length": 16},  # a divisor of every side
}
"""Fields without which a tuner does not start on small models."""
HEAD = """\
# PEFT's tuners as methods

A method of this kind is three lines: `_target_: ablora.method.peft_tuner.Peft`, `tuner:` by PEFT's name, `config:` with
PEFT's own fields (`conf/method/ia3.yaml`). Fields that are left out have PEFT's defaults; a number may be `${rank}`.
What a run saves loads in PEFT. The tuner works on a copy of the model's modules, so the base stays what it is.

Made by `python tests/method/try_tuners.py` with PEFT %s: each tuner on `model=pico` with the fields shown, two steps
of training, saved, loaded by `PeftModel.from_pretrained` into a fresh base. *Difference*: the largest between its
logits and ours over four sequences of 70 to 203 tokens, ours in one row back to back, PEFT's one by one (logits reach
24; 0 is the same to the bit). *Trained*: numbers. *bfloat16*: whether it trains on the base in bfloat16.

| tuner | fields | places | trained | difference | bfloat16 |
|---|---|---|---:|---:|---|
"""


def tried() -> list[str]:
    """The tuners that a run may have as its method."""
    return sorted(tuners().keys() - REFUSED.keys())


def method(tuner: str, **more: Any) -> Peft:
    virtual = {"num_virtual_tokens": 4} if "num_virtual_tokens" in fields_of(tuners()[tuner]) else {}
    return Peft(name=tuner.lower(), tuner=tuner, config={**NEEDED.get(tuner, {}), **virtual, **more})


class Run(NamedTuple):
    adapted: Adaptation
    state: RunState
    losses: list[float]


Saved = tuple[Mapping[str, torch.Tensor], Mapping[str, int]]


def train(chosen: Peft, model: PreTrainedModel, steps: int, saved: Saved | None = None) -> Run:
    """A run on made-up data, from a saved state if there is one."""
    nothing: Any = None
    spec = RunSpec(
        method=chosen, model=None, dataset=None, train=TRAIN, eval=EvalSpec(tasks={}), adapter=AdapterSpec(), rank=None,
        seed=0,
    )  # fmt: skip
    adapted = adapt(model, [spec], [None], None)
    run = RunState(0, nothing, nothing, spec, TrainData(made_up(0), 0, 4), adapted)
    if saved is not None:
        run.load(*saved)
    losses = [cast(Any, train_step(Base(model, nothing), adapted, [run])[0]).loss_nats for _ in range(steps)]
    return Run(adapted, run, losses)


@torch.no_grad()
def packed(adapted: Adaptation, items: Sequence[Encoded]) -> torch.Tensor:
    """Our logits of sequences in one row, (tokens, vocabulary)."""
    return adapted.logits(adapted.hidden(lay_out([items])))[0]


@torch.no_grad()
def one_by_one(peft_model: Any, items: Sequence[Encoded]) -> torch.Tensor:
    """PEFT's of each alone, without those of virtual tokens."""
    own = [peft_model(input_ids=torch.tensor([e.input_ids])).logits[0, -len(e.input_ids) :] for e in items]
    return torch.cat(own)


def fresh(dtype: Literal["float32", "bfloat16"] = "float32") -> PreTrainedModel:
    return load(Embedded(name="pico", dtype=dtype)).model


def texts() -> list[Encoded]:
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 2048, (n,), generator=draw).tolist() for n in (70, 131, 203, 97)]
    return [Encoded(tuple(own), 1, str(i)) for i, own in enumerate(ids)]


def trains_in_half_precision(chosen: Peft) -> str:
    try:
        return "yes" if all(map(math.isfinite, train(chosen, fresh("bfloat16"), 2).losses)) else "no"
    except BadInput:
        return "refused"


def rows() -> Iterator[str]:
    from peft import PeftModel

    for name in tried():
        try:
            chosen = method(name)
        except BadInput as error:
            yield f"| `{name}` | | | refused here: {str(error.__cause__).splitlines()[0]} | | |"
            continue
        adapted, run, _ = train(chosen, fresh(), 2)
        with tempfile.TemporaryDirectory() as folder:
            adapted.save(0, Path(folder))
            loaded = PeftModel.from_pretrained(fresh(), folder).eval()
        items = texts()
        error = (packed(adapted, items) - one_by_one(loaded, items)).abs().max().item()
        given = ", ".join(f"{key}={value}" for key, value in chosen.config.items())
        count = sum(p.numel() for p in run.parameters.values())
        place = "before every sequence" if chosen.configured().is_prompt_learning else (
            "its own" if name in PLACES_OF_ITS_OWN else "adapter.targets")  # fmt: skip
        yield f"| `{name}` | {given} | {place} | {count:,} | {error:.1g} | {trains_in_half_precision(chosen)} |"


def refusals() -> str:
    own = "\n".join(f"| `{name}` | {REFUSED[name]} |" for name in sorted(REFUSED))
    return f"\nRefused, each before anything is queued:\n\n| tuner | because it |\n|---|---|\n{own}\n"


if __name__ == "__main__":
    import peft

    torch.set_num_threads(1)
    sys.stdout.write(HEAD % peft.__version__ + "\n".join(rows()) + "\n" + refusals())
