"""Packed adapters on a GPU: tokens per second, memory, share of the measured matrix peak. One call, under 9 minutes.

    python benchmarks/gpu.py [--bases 1b,8b] [--adapters 1,2,4,8,16] [--tokens 128,512,2048,8192] [--budget-s 480]
    python benchmarks/gpu.py --tiny            # on a CPU: does it run at all?

Bases have random bfloat16 weights in the shape of Llama 3.2 1B and Llama 3 8B; adapters are LoRA of rank 16 on every
linear layer, computed in bfloat16. `tokens` are those of one adapter's micro-batch, in sequences of at most 512 whose
second half are labels. Arms: `pack` (`train_step` of all adapters), `alone` (the same adapters one after another, so
the time of one) and `peft` (PEFT's LoRA with a plain loop, logits at labels only, one adapter after another). Needs
torch, transformers, peft, safetensors and this source tree; jaxtyping is replaced where it is missing. What does not
fit the memory or the time is named, not left out. The last line is one JSON object.
"""

import argparse
import gc
import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))


def stand_in() -> None:
    """Where jaxtyping is missing its annotations mean nothing."""
    try:
        import jaxtyping  # noqa: F401
    except ImportError:
        names = ("Bool", "Float", "Int", "Float64", "Shaped")
        kinds = {name: type(name, (), {"__class_getitem__": classmethod(lambda _cls, _item: Any)}) for name in names}
        module = types.ModuleType("jaxtyping")
        module.__dict__.update(kinds)
        sys.modules["jaxtyping"] = module


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "vocab_size": 256},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
RANK, LONGEST = 16, 512


class Place(NamedTuple):
    """Where and in what."""

    device: torch.device
    dtype: torch.dtype
    deadline: float

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


class Timed(NamedTuple):
    """What a step of an arm took."""

    step_s: float
    peak_gib: float
    """Memory of the device at most, base included; 0 without one."""


def build(shape: str, place: Place) -> Any:
    """A Llama with random weights on the device, its attention cut by sequence."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ablora.models.segments import use_segments

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], attn_implementation="sdpa", tie_word_embeddings=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(place.dtype)
    try:
        with place.device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False).eval()
    use_segments(model)
    return model


def sequences(seed: int, tokens: int, vocab: int) -> list[Any]:
    """One micro-batch of random sequences."""
    from ablora.data.encode import Encoded

    length = min(tokens, LONGEST)
    ids = torch.randint(2, vocab, (tokens // length, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return [Encoded(tuple(row), length // 2, str(i)) for i, row in enumerate(ids)]


class Pack:
    """Adapters on a base, ready to step."""

    def __init__(self, model: Any, place: Place, seeds: Sequence[int], tokens: int):
        from ablora.method.adapt import adapt
        from ablora.method.init.zero_b import ZeroB
        from ablora.method.lowrank import LowRank
        from ablora.method.scaling.alpha_over_r import AlphaOverR
        from ablora.method.structure.pair import Pair
        from ablora.method.update.plain import Plain
        from ablora.models.base import Base
        from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
        from ablora.train.data import TrainData
        from ablora.train.member import RunState

        nothing: Any = None
        method = LowRank(name="lora", init=ZeroB(distribution="kaiming"), scaling=AlphaOverR(alpha=16.0),
                         structure=Pair(), update=Plain())  # fmt: skip
        items = [tuple(sequences(seed, tokens, model.config.vocab_size)) for seed in seeds]
        train = TrainSpec(lr=1e-4, max_steps=10_000, batch_size=len(items[0]))
        adapter = AdapterSpec(compute_dtype="bfloat16" if place.dtype == torch.bfloat16 else "float32")
        specs = [RunSpec(method=method, model=None, dataset=None, train=train, eval=EvalSpec(tasks={}),
                         adapter=adapter, rank=RANK, seed=seed) for seed in seeds]  # fmt: skip
        self.base = Base(model, nothing)
        self.adapted = adapt(model, specs, [None] * len(specs), None)
        self.runs = [RunState(i, nothing, nothing, spec, TrainData(own, spec.seed, len(own)), self.adapted)
                     for i, (spec, own) in enumerate(zip(specs, items))]  # fmt: skip

    def step(self) -> list[float]:
        """The runs' losses."""
        from ablora.train.loop import Trained, train_step

        done = train_step(self.base, self.adapted, self.runs)
        return [trained.loss_nats for trained in done.values() if isinstance(trained, Trained)]

    def end(self) -> None:
        self.adapted.detach()
        self.runs.clear()


class Peft:
    """PEFT's LoRA of one adapter with a plain loop."""

    def __init__(self, model: Any, place: Place, tokens: int):
        import peft

        model.set_attn_implementation("sdpa")
        asked: dict[str, Any] = {"r": RANK, "lora_alpha": 16, "target_modules": "all-linear"}
        self.model: Any = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **asked)).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)
        rows = sequences(0, tokens, model.config.vocab_size)
        ids, first = torch.tensor([row.input_ids for row in rows], device=place.device), rows[0].answer_start
        self.inputs = {"input_ids": ids, "labels": ids, "shift_labels": ids[:, first:].contiguous(),
                       "logits_to_keep": torch.arange(first - 1, ids.shape[1] - 1, device=place.device),
                       "use_cache": False}  # fmt: skip

    def step(self) -> None:
        loss = self.model.base_model(**self.inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def end(self) -> None:
        from ablora.models.segments import NAME

        self.model.unload().set_attn_implementation(NAME)


def timed(make: Callable[[], Any], place: Place, warm: int = 2, steps: int = 3) -> Timed | str:
    """Seconds of a step and peak memory, or what was in the way. What was made is undone."""
    if time.monotonic() > place.deadline:
        return "no time left"
    gc.collect()
    if place.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    made = None
    try:
        made = make()
        for _ in range(warm):
            made.step()
        place.wait()
        began = time.perf_counter()
        for _ in range(steps):
            made.step()
        place.wait()
        taken = (time.perf_counter() - began) / steps
        return Timed(taken, torch.cuda.max_memory_allocated() / 2**30 if place.cuda else 0.0)
    except torch.OutOfMemoryError:
        return "out of memory"
    finally:
        if made is not None:
            made.end()


def matrix_peak(place: Place, size: int) -> float:
    """Multiplications and additions per second of a large square product."""
    a, b = (torch.randn(size, size, device=place.device, dtype=place.dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    place.wait()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    place.wait()
    return 20 * 2 * size**3 / (time.perf_counter() - began)


def work_per_token(model: Any) -> float:
    """Operations of the base's linear layers: forward and input gradients, 4 per weight; the head at half the tokens.
    Attention, adapters and element-wise work are not counted, so a share of the peak is a lower bound."""
    head = model.get_output_embeddings().weight.numel()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)) - head
    return 4.0 * linear + 2.0 * head


def agreement(model: Any, place: Place, adapters: int, steps: int) -> dict[str, Any]:
    """The first adapter's loss at the last of some steps, alone and in a pack."""
    losses = []
    for seeds in ([0], list(range(adapters))):
        pack = Pack(model, place, seeds, 128)
        losses.append([pack.step()[0] for _ in range(steps)][-1])
        pack.end()
    alone, packed = losses
    return {"steps": steps, "adapters": adapters, "alone_nats": alone, "packed_nats": packed,
            "relative_difference": abs(packed - alone) / abs(alone)}  # fmt: skip


HEAD = f"{'base':>5}{'tokens':>8}{'adapters':>10}{'pack tokens/s':>15}{'of peak':>9}{'GiB':>7}"
HEAD += f"{'to alone':>10}{'to PEFT':>10}"


def measure(shape: str, place: Place, adapters: Sequence[int], tokens: Sequence[int], peak: float) -> list[dict]:
    """Every row of a base."""
    model = build(shape, place)
    work, rows = work_per_token(model), []
    for count in tokens:
        alone = timed(lambda count=count: Pack(model, place, [0], count), place)
        peft = timed(lambda count=count: Peft(model, place, count), place)
        for n in adapters:
            pack = timed(lambda n=n, count=count: Pack(model, place, list(range(n)), count), place)
            row = {"base": shape, "tokens": count, "adapters": n, "pack": _plain(pack), "alone": _plain(alone),
                   "peft": _plain(peft)}  # fmt: skip
            if isinstance(pack, Timed):
                speed = n * count / pack.step_s
                row |= {"tokens_per_s": speed, "share_of_peak": speed * work / peak}
                others = {"to_alone": alone, "to_peft": peft}
                row |= {key: n * arm.step_s / pack.step_s for key, arm in others.items() if isinstance(arm, Timed)}
            rows.append(row)
            print(line(row), flush=True)
    return rows


def _plain(found: Timed | str) -> Any:
    return found._asdict() if isinstance(found, Timed) else found


def line(row: dict[str, Any]) -> str:
    head = f"{row['base']:>5}{row['tokens']:>8}{row['adapters']:>10}"
    if isinstance(row["pack"], str):
        return f"{head}{row['pack']:>15}"
    ratios = "".join(f"{row[key]:>10.2f}" if key in row else f"{'':>10}" for key in ("to_alone", "to_peft"))
    peak = row["pack"]["peak_gib"]
    return f"{head}{row['tokens_per_s']:>15,.0f}{row['share_of_peak']:>9.1%}{peak:>7.1f}{ratios}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bases", default="1b,8b")
    parser.add_argument("--adapters", default="1,2,4,8,16")
    parser.add_argument("--tokens", default="128,512,2048,8192")
    parser.add_argument("--budget-s", type=float, default=480.0)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    stand_in()
    if not given.tiny and not torch.cuda.is_available():
        parser.error("no GPU: --tiny runs on a CPU, to see that all works")
    bases, adapters, tokens = given.bases.split(","), _numbers(given.adapters), _numbers(given.tokens)
    device, dtype, steps = torch.device("cpu" if given.tiny else "cuda"), torch.bfloat16, 100
    if given.tiny:
        bases, adapters, tokens, dtype, steps = ["tiny"], [1, 2], [64], torch.float32, 5
    place = Place(device, dtype, time.monotonic() + given.budget_s)
    peak = matrix_peak(place, 256 if given.tiny else 8192)
    print(f"matrix peak {peak / 1e12:.3f} T/s\n{HEAD}", flush=True)
    agreed = agreement(build(bases[0], place), place, 4 if not given.tiny else 2, steps)
    rows = [row for base in bases for row in measure(base, place, adapters, tokens, peak)]
    name = torch.cuda.get_device_name() if place.cuda else "cpu"
    setting = {"device": name, "torch": torch.__version__, "dtype": str(dtype), "rank": RANK, "peak": peak}
    print(json.dumps({"setting": setting, "agreement": agreed, "rows": rows}))
    return 0


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
