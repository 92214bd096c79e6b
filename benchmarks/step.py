"""The packed training step against its lower bound: the frozen base's forward pass and input gradients, no adapters.

    python benchmarks/step.py [--widths 128,256,512] [--dropouts 0,0.05] [--runs 8] [--rounds 7] [--threads 1]
                              [--compile]

Per width a Llama of 4 layers with random weights; each run has LoRA of rank 8 on q, k, v, up and down, and 8 sequences
of 64 tokens whose second half are labels. Four arms in one process take a step each by turns, forwards and backwards:

    bound    base alone on the same rows, gradients flow to the embeddings' output, logits at labels only
    pack     `train_step` of all runs: gradients, norms, clipping, AdamW, float64 sums
    alone    `train_step` of one of the runs
    peft     PEFT's LoRA of one run with a plain loop: logits at labels only, fused AdamW, no padding

`--compile` adds the bound with torch.compile, which every step finds at one shape: what compiling could gain at most.

A ratio is the median over rounds of an arm's time per run over the bound's, with the least and the greatest; the clock
is the process's processor time with one thread, wall time with more. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from methods import folder_for, machine

TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
GOAL = {"width": 256, "dropout": 0.0, "pack": 1.2}
RANK = 8


class Sizes(NamedTuple):
    """What a step works on."""

    runs: int
    sequences: int
    tokens: int
    layers: int


def base_folder(folder: Path, width: int, layers: int) -> Path:
    """A Llama with random weights, and pico's tokenizer beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import ablora.models.base as models

    out = folder / f"llama_{width}"
    torch.manual_seed(0)
    heads = max(1, width // 64)
    sizes = {"hidden_size": width, "intermediate_size": 8 * width // 3 // 16 * 16, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": heads}
    LlamaForCausalLM(LlamaConfig(vocab_size=2048, **sizes, **heads_of)).save_pretrained(out)
    for file in (Path(models.__file__).parent / "pico").glob("*token*"):
        (out / file.name).write_bytes(file.read_bytes())
    return out


def ours(folder: Path, sizes: Sizes, dropout: float) -> Callable[[], None]:
    """`train_step` of a pack of LoRA runs, on tokens that differ by run."""
    from ablora.config.compose import SPEC_KEYS, Composer, resolve
    from ablora.config.loader import open_loader
    from ablora.method.adapt import adapt
    from ablora.models.base import load
    from ablora.spec import RunSpec
    from ablora.train.data import TrainData
    from ablora.train.loop import Trained, train_step
    from ablora.train.member import RunState
    from ablora.tree import build

    targets = f"adapter.targets=[{','.join(TARGETS)}]"
    asked = ["method=lora", f"rank={RANK}", "model=local", f"model.path={folder}", targets]
    asked += ["train.max_steps=1000", f"train.batch_size={sizes.sequences}", f"adapter.dropout={dropout}"]
    with open_loader() as loader:
        composer = Composer(loader)
        trees = [resolve(composer.base([*asked, f"seed={seed}"])) for seed in range(sizes.runs)]
    specs = [build({key: tree[key] for key in SPEC_KEYS}, RunSpec) for tree in trees]
    base = load(specs[0].model)
    adapted = adapt(base.model, specs, [None] * len(specs), None)
    nothing: Any = None  # a run's folder and claim, which no step touches
    items = [tuple(items_of(seed, sizes)) for seed in range(sizes.runs)]
    runs = [RunState(i, nothing, nothing, spec, TrainData(own, i, sizes.sequences), adapted)
            for i, (spec, own) in enumerate(zip(specs, items))]  # fmt: skip

    def step() -> None:
        assert all(isinstance(trained, Trained) for trained in train_step(base, adapted, runs).values())

    return step


def items_of(seed: int, sizes: Sizes) -> list[Any]:
    """Random sequences; the second half of each are labels."""
    from ablora.data.encode import Encoded

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 2000, (sizes.sequences, sizes.tokens), generator=generator).tolist()
    return [Encoded(tuple(row), sizes.tokens // 2, str(i)) for i, row in enumerate(ids)]


def bound(folder: Path, sizes: Sizes, compiled: bool = False) -> Callable[[], None]:
    """The base on the pack's rows, forward and backward to the first layer's input."""
    from transformers import AutoModelForCausalLM

    from ablora.models.rows import label_losses, lay_out
    from ablora.models.segments import use_segments

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.requires_grad_(False).eval()
    use_segments(model)
    if compiled:
        model.base_model.compile(dynamic=False)
    model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, out: out.requires_grad_())
    items = [items_of(seed, sizes) for seed in range(sizes.runs)]

    def step() -> None:
        label_losses(model, lay_out(items)).sum().backward()

    return step


def peft(folder: Path, sizes: Sizes, dropout: float) -> Callable[[], None]:
    """PEFT's LoRA on one run's sequences as an ordinary batch."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    asked: dict[str, Any] = {"r": RANK, "lora_alpha": 16, "target_modules": list(TARGETS), "lora_dropout": dropout}
    model: Any = get_peft_model(cast(Any, base), LoraConfig(task_type="CAUSAL_LM", **asked)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0, fused=True)
    ids = torch.tensor([item.input_ids for item in items_of(0, sizes)])
    first = sizes.tokens // 2
    inputs = {"input_ids": ids, "labels": ids, "shift_labels": ids[:, first:].contiguous(), "use_cache": False}
    inputs["logits_to_keep"] = torch.arange(first - 1, sizes.tokens - 1)

    def step() -> None:
        loss = model.base_model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def compare(
    folder: Path, sizes: Sizes, dropout: float, rounds: int, clock: Callable[[], float], compiled: bool
) -> dict[str, Any]:
    """One row of the table."""
    one = sizes._replace(runs=1)
    arms = {"bound": (bound(folder, sizes), sizes.runs), "pack": (ours(folder, sizes, dropout), sizes.runs),
            "alone": (ours(folder, one, dropout), 1), "peft": (peft(folder, one, dropout), 1)}  # fmt: skip
    if compiled:
        arms["compiled"] = (bound(folder, sizes, compiled=True), sizes.runs)
    taken: dict[str, list[float]] = {name: [] for name in arms}
    first: dict[str, float] = {}
    for name, (step, _) in arms.items():
        began = time.perf_counter()
        step()
        first[name] = time.perf_counter() - began
    for turn in range(rounds):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            step, count = arms[name]
            # An arm of one run takes as many steps as a pack has runs, so that all are timed over equal work.
            began = clock()
            for _ in range(sizes.runs // count):
                step()
            taken[name].append((clock() - began) / sizes.runs)
    row: dict[str, Any] = {name: {"ms_per_run": 1e3 * statistics.median(own)} for name, own in taken.items()}
    for name in (name for name in arms if name != "bound"):
        row[name]["to_bound"] = spread([a / b for a, b in zip(taken[name], taken["bound"])])
    if compiled:
        row["compiled"]["first_s"] = first["compiled"]
    row["peft_to_pack"] = spread([a / b for a, b in zip(taken["peft"], taken["pack"])])
    return row


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


HEAD = f"{'width':>6}{'dropout':>8}{'bound ms/run':>14}{'pack':>20}{'alone':>20}{'PEFT':>20}{'PEFT to pack':>20}"


def line(width: int, dropout: float, row: dict[str, Any]) -> str:
    ratios = [*(row[name]["to_bound"] for name in ("pack", "alone", "peft")), row["peft_to_pack"]]
    cells = ["{median:.2f} ({least:.2f}-{greatest:.2f})".format(**r) for r in ratios]
    if compiled := row.get("compiled"):
        cells.append("{median:.2f} ({least:.2f}-{greatest:.2f})".format(**compiled["to_bound"]))
        cells.append(f"first {compiled['first_s']:.0f} s")
    return f"{width:>6}{dropout:>8}{row['bound']['ms_per_run']:>14.1f}" + "".join(f"{cell:>20}" for cell in cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", default="128,256,512")
    parser.add_argument("--dropouts", default="0,0.05")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    sizes = Sizes(given.runs, given.sequences, given.tokens, given.layers)
    print(HEAD + (f"{'bound, compiled':>20}" if given.compile else ""), flush=True)
    rows = []
    with folder_for(None) as folder:
        for width in map(int, given.widths.split(",")):
            base = base_folder(folder, width, given.layers)
            for dropout in map(float, given.dropouts.split(",")):
                row = compare(base, sizes, dropout, given.rounds, clock, given.compile)
                print(line(width, dropout, row), flush=True)
                rows.append({"width": width, "dropout": dropout, **row})
    setting = {**sizes._asdict(), "rank": RANK, "targets": TARGETS, "rounds": given.rounds, "clock": clock.__name__}
    print(json.dumps({"machine": machine(given.threads), "setting": setting, "goal": GOAL, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
