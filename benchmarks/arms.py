"""What is timed: one optimizer step of a method, ours through the trainer's own code, and PEFT's of the same method."""

import ctypes
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

STEPS = 1000
"""Length of the run that a timed step belongs to: what a schedule refers to."""


class Place(NamedTuple):
    """What all arms of a measurement share."""

    base: str
    """`pico`, or the folder of another model."""
    cache: str
    """Folder for decompositions and sums over data, so that a second arm does not make them again."""
    sequences: int
    tokens: int
    """Of each sequence; its last quarter are labels."""
    threads: int

    def model(self) -> list[str]:
        """The base as the command line says it."""
        return ["model=pico"] if self.base == "pico" else ["model=local", f"model.path={self.base}"]


class Arm(NamedTuple):
    """A method at a rank, ours or PEFT's."""

    method: str
    rank: int | None
    peft: bool = False


class Program(NamedTuple):
    """A method that is ready to train."""

    step: Callable[[], None]
    parameters: int


OVERRIDES = {"adalora": ["method.structure.schedule.warmup=0"]}
"""A run of AdaLoRA spends most steps pruning, and so do the timed ones (PEFT: tinit 0)."""
PEERS: Mapping[str, Mapping[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dora": {"use_dora": True},
    "lora_plus": {},
    "lora_fa": {},
    "riemannian_lora": {},
    "adalora": {"tinit": 0, "tfinal": 300, "deltaT": 1, "total_step": STEPS, "orth_reg_weight": 0.1},
}
"""What PEFT has under a preset's name: arguments of its configuration. Its CorDA, EVA and LoRA-GA train as its LoRA."""


def sequences(place: Place) -> list[tuple[int, ...]]:
    shape, rng = (place.sequences, place.tokens), torch.Generator().manual_seed(1)
    return [tuple(row) for row in torch.randint(2, 2000, shape, generator=rng).tolist()]


def ours(place: Place, arm: Arm, ready: Callable[[torch.nn.Module], None]) -> Program:
    """The preset through `train_step`, with all that it does beside: float64 sums, records, penalties.

    `ready` is told the base before anything is attached.
    """
    from ablora.config.compose import Composer, resolve
    from ablora.config.loader import open_loader
    from ablora.data.encode import Encoded
    from ablora.method.adapt import adapt
    from ablora.models.base import load
    from ablora.spec import RunSpec
    from ablora.train.calibration import calibrate
    from ablora.train.data import TrainData
    from ablora.train.loop import Trained, train_step
    from ablora.train.member import RunState
    from ablora.tree import build

    rank = [] if arm.rank is None else [f"rank={arm.rank}"]
    asked = [f"method={arm.method}", f"train.max_steps={STEPS}", *OVERRIDES.get(arm.method, []), *rank, *place.model()]
    with open_loader() as loader:
        tree = resolve(Composer(loader).base(asked))
    keys = ("method", "model", "dataset", "train", "eval", "adapter", "rank", "seed")
    spec: Any = build({key: tree[key] for key in keys}, RunSpec)
    base = load(spec.model)
    ready(base.model)
    cache = Path(place.cache)
    adapted = adapt(base.model, [spec], calibrate([spec], base, cache), cache)
    items = tuple(Encoded(ids, 3 * len(ids) // 4, str(i)) for i, ids in enumerate(sequences(place)))
    nothing: Any = None  # a run's folder and claim, which no step touches
    run = RunState(0, nothing, nothing, spec, TrainData(items, 0, len(items)), adapted)

    def step() -> None:
        trained = train_step(base, adapted, [run])[0]
        assert isinstance(trained, Trained), trained

    return Program(step, sum(p.numel() for p in run.parameters.values()))


def peft(place: Place, arm: Arm, ready: Callable[[torch.nn.Module], None]) -> Program:
    """PEFT's with the ordinary batch (all sequences are equally long, no padding, no mask) and no Trainer.

    It gets what speeds it up: logits at labels only (`logits_to_keep`), fused AdamW, sdpa.
    """
    import peft as package
    from transformers import AutoModelForCausalLM

    import ablora.models.base as models

    folder = Path(models.__file__).parent / "pico" if place.base == "pico" else Path(place.base)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    ready(base.requires_grad_(False).eval())
    adaptive = arm.method == "adalora"
    rank = {"init_r": arm.rank, "target_r": max(1, 2 * (arm.rank or 0) // 3)} if adaptive else {"r": arm.rank}
    kind: Any = package.AdaLoraConfig if adaptive else package.LoraConfig
    asked = {"lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **PEERS[arm.method]}
    model: Any = package.get_peft_model(base, kind(**rank, **asked)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(model, arm, trained)
    ids = torch.tensor(sequences(place))
    first = 3 * place.tokens // 4
    inputs = {"input_ids": ids, "labels": ids, "shift_labels": ids[:, first:].contiguous(), "use_cache": False}
    inputs["logits_to_keep"] = torch.arange(first - 1, place.tokens - 1)
    done = 0

    def step() -> None:
        nonlocal done
        loss: Tensor = model.base_model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], 1.0)
        optimizer.step()
        done += 1
        if adaptive:
            model.base_model.update_and_allocate(done)
        optimizer.zero_grad()
        assert torch.isfinite(loss)

    return Program(step, sum(p.numel() for p in trained if p.requires_grad))


def _optimizer(model: Any, arm: Arm, trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from peft import optimizers

    settings = {"lr": 1e-3, "weight_decay": 0.0, "fused": True}
    match arm.method:
        case "lora_plus":
            return optimizers.create_loraplus_optimizer(model, torch.optim.AdamW, loraplus_lr_ratio=16.0, **settings)
        case "lora_fa":  # an AdamW of its own, not fused
            return optimizers.create_lorafa_optimizer(model, r=cast(int, arm.rank), lora_alpha=16, lr=1e-3)
        case "riemannian_lora":
            return optimizers.create_riemannian_optimizer(model, torch.optim.AdamW, reg=1e-6, **settings)
    return torch.optim.AdamW(trained, **settings)


def solve(place: Place, methods: list[str], like: str) -> dict[str, int | None]:
    """The rank at which each method's trainable parameters are nearest to those of `like` (PRESET:RANK), by the
    project's own budgets; None for what has no rank."""
    from ablora.config.budget import solved
    from ablora.config.compose import Composer
    from ablora.config.loader import open_loader
    from ablora.spec import RunSpec
    from ablora.tree import build

    out: dict[str, int | None] = {}
    with open_loader() as loader:
        composer = Composer(loader)
        for method in methods:
            asked = [f"method={method}", *place.model()]
            plain, _ = solved(composer, composer.base(asked))
            keys = ("method", "model", "dataset", "train", "eval", "adapter", "rank", "seed")
            if not build({key: plain[key] for key in keys}, RunSpec).method.has_rank:
                out[method] = None
                continue
            # What steps of 8 and 10 directions miss is shown, not refused.
            asked += [f"budget.like={like}", "budget.tolerance=0.9"]
            out[method] = solved(composer, composer.base(asked))[0]["rank"]
    return out


def experts_of(place: Place, method: str) -> int:
    """Experts of a preset; 1 for what has none."""
    from ablora.config.compose import Composer, resolve
    from ablora.config.loader import open_loader
    from ablora.tree import build

    with open_loader() as loader:
        built: Any = build(resolve(Composer(loader).base([f"method={method}", *place.model()]))["method"])
    return getattr(getattr(built, "structure", None), "experts", 1)


def serve(place: Place, arm: Arm, warm_up: int, pipe: Connection) -> None:
    """A process: made ready on all cores, then so many steps whenever it is told a number; answers with seconds a step.

    First it sends what was measured on the way: parameters, and the peak of its memory over the loaded base, in MiB:
    resident at most during the warm-up steps, less resident after the base's own forward pass.
    """
    at_base = 0.0

    def ready(model: torch.nn.Module) -> None:
        nonlocal at_base
        with torch.no_grad():
            cast(PreTrainedModel, model)(torch.tensor(sequences(place)[:1]), use_cache=False)
        at_base = _memory("VmRSS")

    program = (peft if arm.peft else ours)(place, arm, ready)
    torch.set_num_threads(place.threads)
    clock = time.process_time if place.threads == 1 else time.perf_counter
    _forget_peak()
    for _ in range(warm_up):
        program.step()
    pipe.send({"parameters": program.parameters, "peak_mib": _memory("VmHWM") - at_base})
    while steps := pipe.recv():
        began = clock()
        for _ in range(steps):
            program.step()
        pipe.send((clock() - began) / steps)


def _memory(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    _trim()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def _forget_peak() -> None:
    """The peak counts from now on: decompositions at the start are no part of a step."""
    _trim()
    Path("/proc/self/clear_refs").write_text("5")


def _trim() -> None:
    """Give freed memory back, so that what is resident is what is held."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
