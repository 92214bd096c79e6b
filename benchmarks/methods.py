"""Step time and peak memory of methods, side by side: ours as ratios to plain LoRA here and to PEFT's own.

    python benchmarks/methods.py [--base pico|wide] [--arms lora,dora,goat] [--steps 10] [--rounds 7]

Every arm is a process of its own that waits; in each round each takes some steps, one after another, so that a drift of
the machine's speed meets all. Equal tokens, one thread, no dropout, AdamW (fused), gradient norm clipped at 1, the loss
on the last quarter of each sequence. PEFT's arms get the same label-only logits and no Trainer: what is compared is the
adapters. `wide` is a Llama of 2 layers and width 2048 with random weights. Ranks are equal (all experts together), not
parameters; the table has both. The last line is one JSON object.
"""

import argparse
import json
import multiprocessing as mp
import resource
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

SIZES = {"pico": (8, 128, 8), "wide": (4, 128, 32)}
"""Sequences, tokens of each, rank."""
OURS = ("lora", "pissa", "dora", "goat")
PEFT = ("peft:lora", "peft:dora")


def base_model(name: str) -> torch.nn.Module:
    """The embedded base, or the wide one; attention by sequence is ours to switch on."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    import ablora.models.base as base

    if name == "pico":
        return AutoModelForCausalLM.from_pretrained(Path(base.__file__).parent / "pico", dtype=torch.float32)
    torch.manual_seed(0)
    sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 2, "num_attention_heads": 16}
    return LlamaForCausalLM(LlamaConfig(vocab_size=2048, **sizes)).eval()


def sequences(name: str) -> list[tuple[int, ...]]:
    count, tokens, _ = SIZES[name]
    ids = torch.randint(2, 2000, (count, tokens), generator=torch.Generator().manual_seed(1))
    return [tuple(row) for row in ids.tolist()]


def ours(name: str, method: str) -> tuple[Callable[[], None], int]:
    """(one optimizer step, trainable parameters) of a preset, through the trainer's own code."""
    from ablora.config.compose import Composer, resolve
    from ablora.config.loader import open_loader
    from ablora.data.encode import Encoded
    from ablora.method.attach import Member, attach
    from ablora.models.base import Base
    from ablora.models.segments import use_segments
    from ablora.spec import RunSpec
    from ablora.spectra.library import Library
    from ablora.train.data import TrainData
    from ablora.train.loop import train_step
    from ablora.train.member import RunState
    from ablora.tree import build

    keys = ("method", "model", "dataset", "train", "eval", "adapter", "rank", "seed")
    with open_loader() as loader:
        tree = resolve(Composer(loader).base([f"method={method}", f"rank={SIZES[name][2]}", "train.max_steps=100000"]))
    spec: Any = build({key: tree[key] for key in keys}, RunSpec)
    model: Any = base_model(name)
    use_segments(model)
    adapted = attach(model, [Member(spec.method, spec.rank, spec.adapter, 0)], Library(None))
    items = tuple(Encoded(ids, 3 * len(ids) // 4, str(i)) for i, ids in enumerate(sequences(name)))
    nothing: Any = None  # a run's folder and claim, which no step touches
    run = RunState(0, nothing, nothing, spec, TrainData(items, 0, len(items)), adapted)
    base = Base(model, nothing)
    return lambda: train_step(base, adapted, [run]) and None, sum(p.numel() for p in run.parameters.values())


def peft(name: str, method: str) -> tuple[Callable[[], None], int]:
    """The same of PEFT's LoRA, with the ordinary padded batch (all sequences are equally long)."""
    import peft

    *_, rank = SIZES[name]
    config = peft.LoraConfig(
        r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=method == "dora"
    )
    model: Any = peft.get_peft_model(base_model(name), config)  # pyright: ignore[reportArgumentType]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)
    ids = torch.tensor(sequences(name))
    first = 3 * ids.shape[1] // 4
    inner = model.base_model.model

    def step() -> None:
        hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state[:, first - 1 : -1]
        loss = torch.nn.functional.cross_entropy(inner.lm_head(hidden).flatten(0, 1), ids[:, first:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(p.numel() for p in trained)


def arm(name: str, which: str, steps: int, pipe: Connection) -> None:
    """A child: two steps to warm up, then `steps` steps whenever it is told to; answers with seconds a step."""
    torch.set_num_threads(1)
    kind, _, method = which.rpartition(":")
    step, count = (peft if kind else ours)(name, method)
    for _ in range(2):
        step()
    pipe.send(count)
    while pipe.recv():
        began = time.perf_counter()
        for _ in range(steps):
            step()
        pipe.send((time.perf_counter() - began) / steps)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def measure(name: str, arms: list[str], steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Per arm its median seconds a step, the median of its rounds' ratios to `lora`, parameters and peak GiB."""
    context = mp.get_context("spawn")
    pipes = {}
    for which in arms:
        mine, theirs = context.Pipe()
        context.Process(target=arm, args=(name, which, steps, theirs), daemon=True).start()
        pipes[which] = mine
    counts = {which: pipe.recv() for which, pipe in pipes.items()}
    taken: dict[str, list[float]] = {which: [] for which in arms}
    for _ in range(rounds):
        for which, pipe in pipes.items():
            pipe.send(True)
            taken[which].append(pipe.recv())
    peaks = {}
    for which, pipe in pipes.items():
        pipe.send(False)
        peaks[which] = pipe.recv()
    return {which: {"step_s": statistics.median(taken[which]), "peak_rss_gib": peaks[which],
                    "parameters": counts[which], **_ratios(taken, which)} for which in arms}  # fmt: skip


def _ratios(taken: dict[str, list[float]], which: str) -> dict[str, float]:
    """To plain LoRA, and to PEFT's own arm of the method where there is one: medians over rounds."""
    peers = {"ratio_to_lora": "lora", "ratio_to_peft": f"peft:{which}"}
    return {key: statistics.median(a / b for a, b in zip(taken[which], taken[peer]))
            for key, peer in peers.items() if peer in taken}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", choices=list(SIZES), default="pico")
    parser.add_argument("--arms", default=",".join((*OURS, *PEFT)))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    found = measure(given.base, given.arms.split(","), given.steps, given.rounds)
    print(f"{'arm':<22} {'ms/step':>8} {'to lora':>8} {'to PEFT':>8} {'parameters':>11} {'peak GiB':>9}")
    for which, row in found.items():
        to = [f"{row[key]:.2f}" if key in row else "" for key in ("ratio_to_lora", "ratio_to_peft")]
        print(f"{which:<22} {1e3 * row['step_s']:>8.1f} {to[0]:>8} {to[1]:>8} {row['parameters']:>11,.0f} "
              f"{row['peak_rss_gib']:>9.2f}")  # fmt: skip
    print(json.dumps({"base": given.base, "torch": torch.__version__, "arms": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
