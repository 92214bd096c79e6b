"""Predicted against measured peak memory of packs, each in a process of its own.

    python benchmarks/memory.py [--only NAME,...] [--steps 2] [--threshold BYTES] [--save]

A case is a Llama with random weights, made on the spot, and a pack of runs on the arithmetic set, through the product's
own `execute` (two threads, float32): loading, steps, the adapters saved; evaluations in the cases that say so. Measured
is the greatest resident memory of the process (VmHWM) over the resident memory with everything imported and no base
loaded; predicted is `ablora.train.memory.predict` of the same specifications, less what it has for the process. The
goal is an error of at most 15 % of the measured increase in every case. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "memory.json"
GOAL = 0.15


class Case(NamedTuple):
    """A base and a pack."""

    name: str
    width: int
    layers: int
    vocabulary: int
    methods: tuple[str, ...]
    """One run each, PRESET or PRESET:RANK."""
    batch: int
    micro: int | None = None
    optimizer: str = "adamw"
    dropout: float = 0.0
    evaluate: bool = False
    dtype: str = "float32"


CASES = (
    Case("lora_256", 256, 4, 2048, ("lora",), 8),
    Case("lora_256_pack8", 256, 4, 2048, ("lora",) * 8, 8),
    Case("dora_256_pack4", 256, 8, 2048, ("dora",) * 4, 8),
    Case("goat_256_dropout_pack8", 256, 6, 2048, ("goat:32",) * 8, 8, dropout=0.1),
    Case("lora_512_vocabulary_32k", 512, 4, 32000, ("lora",) * 2, 16),
    Case("lora_512_dropout_vocabulary_128k", 512, 4, 128000, ("lora:16",), 16, dropout=0.05),
    Case("mixed_512_pack4", 512, 6, 8192, ("lora", "pissa:16", "dora", "goat:32"), 8),
    Case("lora_512_sgd_micro", 512, 8, 8192, ("lora:64",) * 2, 32, micro=8, optimizer="sgd"),
    Case("lora_512_evaluated", 512, 4, 32000, ("lora",) * 2, 4, evaluate=True),
    Case("dora_1024", 1024, 6, 8192, ("dora:16",), 8),
    Case("goat_1024_pack2", 1024, 4, 32000, ("goat:32",) * 2, 8),
    Case("lora_1024_dropout_pack4", 1024, 4, 2048, ("lora",) * 4, 8, dropout=0.1),
    Case("lora_1024_bfloat16", 1024, 6, 32000, ("lora:16",) * 2, 8, dtype="bfloat16"),
    Case("lora_2048", 2048, 3, 32000, ("lora:32",), 8),
    Case("pissa_2048_sgd", 2048, 2, 2048, ("pissa:16",) * 2, 8, optimizer="sgd"),
    Case("full_512", 512, 6, 8192, ("full",), 8),
)


def base_of(case: Case, folder: Path) -> Path:
    """A Llama with random weights, and pico's tokenizer beside it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import ablora.models.base as models

    out = folder / f"llama_{case.width}_{case.layers}_{case.vocabulary}"
    if not (out / "config.json").exists():
        torch.manual_seed(0)
        heads = max(4, case.width // 64)
        sizes = {"hidden_size": case.width, "intermediate_size": case.width * 11 // 4, "num_attention_heads": heads,
                 "num_key_value_heads": heads // 2, "num_hidden_layers": case.layers}  # fmt: skip
        LlamaForCausalLM(LlamaConfig(vocab_size=case.vocabulary, **sizes)).save_pretrained(out)
        for file in (Path(models.__file__).parent / "pico").glob("*token*"):
            (out / file.name).write_bytes(file.read_bytes())
    return out


def specs_of(case: Case, base: Path | None, steps: int) -> list[Any]:
    """The pack's runs, on a base or (None) on the embedded one."""
    from ablora.config import ask
    from ablora.spec import RunSpec
    from ablora.tree import build

    out = []
    for seed, method in enumerate(case.methods):
        preset, _, rank = method.partition(":")
        words = [f"method={preset}", f"seed={seed}", "dataset.max_train_items=256"]
        words += ["model=local", f"model.path={base}", f"model.dtype={case.dtype}"] if base else []
        words += [f"rank={rank or 8}", f"train.max_steps={steps}", "train.warmup_steps=0", "train.lr=1e-4"]
        words += [f"train.batch_size={case.batch}", f"train.micro_batch={case.micro or 'null'}"]
        words += [f"train.optimizer={case.optimizer}", f"adapter.dropout={case.dropout}"]
        (cell,) = ask(words, multirun=False).cells
        spec = build(cell.tree, RunSpec)
        tasks = {k: t for k, t in spec.eval.tasks.items() if case.evaluate and k in ("answer_loss", "generation")}
        out.append(replace(spec, eval=replace(spec.eval, tasks=tasks)))
    return out


def resident() -> dict[str, int]:
    """Bytes that the process holds (VmRSS), and held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def serve(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    """One case, in this process, behind a step of the embedded base."""
    import torch

    torch.set_num_threads(2)
    tiny = Case("tiny", 0, 0, 0, ("lora",), 1)
    execute_all(specs_of(tiny, None, 1), folder)
    specs = specs_of(case, base_of(case, folder), steps)
    Path("/proc/self/clear_refs").write_text("5")  # the greatest so far is forgotten
    before, began = resident()["VmRSS"], time.monotonic()
    execute_all(specs, folder)
    return {"before": before, "increase": resident()["VmHWM"] - before, "wall_s": time.monotonic() - began}


def execute_all(specs: Sequence[Any], folder: Path) -> None:
    """Runs as one pack, to their results."""
    from ablora.store import claims
    from ablora.store.roots import Roots
    from ablora.store.run_folder import create
    from ablora.train.execute import execute

    with tempfile.TemporaryDirectory(dir=folder) as place:
        roots = Roots(Path(place) / "runs", Path(place) / "studies", folder / "cache")
        folders = [create(roots, spec) for spec in specs]
        execute(folders, [claim for folder in folders if (claim := claims.take(folder)) is not None], roots, [], 2)


def measure(case: Case, folder: Path, steps: int, threshold: int) -> dict[str, Any]:
    """The prediction, made here, and then the case in a fresh process."""
    found = predicted(case, folder, steps)
    words = [sys.executable, __file__, "--one", case.name, "--folder", str(folder), "--steps", str(steps)]
    setting = {"MALLOC_MMAP_THRESHOLD_": str(threshold)} if threshold else {}
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **setting})
    if done.returncode:
        raise SystemExit(f"{case.name} failed\n{done.stderr[-3000:]}")
    return found | json.loads(done.stdout.splitlines()[-1])


def predicted(case: Case, folder: Path, steps: int) -> dict[str, Any]:
    from dataclasses import asdict

    from ablora.models.passes import WORTH
    from ablora.train.memory import predict

    specs, began = specs_of(case, base_of(case, folder), steps), time.monotonic()
    memory = predict(specs, WORTH)
    return {"predicted": memory.peak_bytes - memory.process, "parts": asdict(memory),
            "predict_s": time.monotonic() - began}  # fmt: skip


def row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    error = (found["predicted"] - found["increase"]) / found["increase"]
    return {"case": case._asdict(), **found, "error": error}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one")
    parser.add_argument("--threshold", type=int, default=2**17, help="bytes from which glibc maps; 0: its default")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.one:
        (case,) = [case for case in CASES if case.name == asked.one]
        print(json.dumps(serve(case, asked.folder, asked.steps)))
        return
    chosen = [case for case in CASES if not asked.only or case.name in asked.only.split(",")]
    rows: list[dict[str, Any]] = []
    print(f"{'case':<34}{'predicted MiB':>14}{'measured MiB':>14}{'error':>8}{'wall s':>8}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        for case in chosen:
            r = row(case, measure(case, folder, asked.steps, asked.threshold))
            rows.append(r)
            print(f"{case.name:<34}{r['predicted'] / 2**20:>14.0f}{r['increase'] / 2**20:>14.0f}"
                  f"{r['error']:>8.1%}{r['wall_s']:>8.1f}", flush=True)  # fmt: skip
            if asked.save:
                RESULTS.write_text(json.dumps(summary(rows, asked)) + "\n")
    print(json.dumps(summary(rows, asked)))


def summary(rows: Sequence[dict[str, Any]], asked: argparse.Namespace) -> dict[str, Any]:
    """What the last line says."""
    sizes = [r["predicted"] for r in rows]
    return {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "mmap_threshold": asked.threshold,
        "steps": asked.steps,
        "goal": GOAL,
        "worst": max(abs(r["error"]) for r in rows),
        "over_goal": [r["case"]["name"] for r in rows if abs(r["error"]) > GOAL],
        "spread": max(sizes) / min(sizes),
        "of_1_gib": sum(r["increase"] >= 2**30 for r in rows),
        "cases": rows,
    }


if __name__ == "__main__":
    main()
