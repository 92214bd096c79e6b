"""Step time and peak memory of methods at equal trainable parameters: as ratios to plain LoRA and to PEFT's own.

    python benchmarks/methods.py [--width pico|2048] [--methods lora,dora,goat|all] [--rounds 7] [--steps N]

A step is forward, backward, clipping and AdamW (fused), in float32 and without dropout, on equal tokens: sequences of
one length, so that padding plays no part; the loss is on the last quarter of each. With one thread the clock is the
process's processor time, with more it is wall time. Width 2048 is a Llama of 2 layers with random weights. Every arm is
a process of its own that waits. In each round each takes some steps, one after another, forwards and backwards by
turns, so that a drift of the machine's speed meets all; a ratio is the median of the rounds' ratios, with the least and
the greatest. Ranks are solved for the parameters of GOAT at rank 16 (pico) or 32; mixtures are also compared with a
LoRA of their rank. Memory is what a process holds at most during steps over what it held with the loaded base (Linux).
The last line is one JSON object.
"""

import argparse
import importlib.metadata
import json
import multiprocessing as mp
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from arms import PEERS, Arm, Place, experts_of, serve, solve

DEFAULT = ("lora", "pissa", "dora", "adalora", "lora_plus", "lora_fa", "riemannian_lora", "goat", "molora_topk")


class Size(NamedTuple):
    """How much is trained on."""

    sequences: int
    tokens: int
    like: str
    """The preset and rank whose parameters all have."""
    steps: int
    """In a round."""


IMPORTED = ["arms", "peft", "transformers.models.llama.modeling_llama", "ablora.config.compose", "ablora.train.loop"]
SIZES = {"pico": Size(8, 128, "goat:16", 5), "2048": Size(4, 128, "goat:32", 1)}


class Process:
    """An arm at work."""

    def __init__(self, place: Place, arm: Arm, warm_up: int):
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)  # once for all arms: with imports of its own an arm took 25 s to begin
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(place, arm, warm_up, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that a death ends the waiting

    def ready(self) -> dict[str, float]:
        return self._pipe.recv()

    def time(self, steps: int) -> float:
        self._pipe.send(steps)
        return self._pipe.recv()

    def end(self) -> None:
        self._pipe.send(0)
        self._process.join()


def wide(folder: Path) -> Path:
    """A Llama of 2 layers and width 2048 with random weights, and pico's tokenizer beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import ablora.models.base as models

    out = folder / "llama_2048"
    if not (out / "config.json").exists():
        torch.manual_seed(0)
        sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 2, "num_attention_heads": 16}
        LlamaForCausalLM(LlamaConfig(vocab_size=2048, **sizes)).save_pretrained(out)
        for file in (Path(models.__file__).parent / "pico").glob("*token*"):
            (out / file.name).write_bytes(file.read_bytes())
    return out


def compare(place: Place, method: str, ranks: Mapping[str, int | None], rounds: int, steps: int) -> dict[str, Any]:
    """One method's row: its arms in interleaved rounds, and only they are alive."""
    own = Arm(method, ranks[method])
    arms = {"own": own, "lora": Arm("lora", ranks["lora"])}
    if method in PEERS:
        arms["peft"] = own._replace(peft=True)
    if experts_of(place, method) > 1:
        arms["lora_of_rank"] = Arm("lora", own.rank)
    distinct = {arm: Process(place, arm, 2) for arm in dict.fromkeys(arms.values())}
    found = {arm: process.ready() for arm, process in distinct.items()}
    taken: dict[Arm, list[float]] = {arm: [] for arm in distinct}
    for turn in range(rounds):
        for arm in list(distinct)[:: -1 if turn % 2 else 1]:
            taken[arm].append(distinct[arm].time(steps))
    for process in distinct.values():
        process.end()
    row: dict[str, Any] = {"rank": own.rank, "parameters": int(found[own]["parameters"]), "step_s": spread(taken[own]),
                           "peak_mib": found[own]["peak_mib"]}  # fmt: skip
    for name, arm in arms.items():
        if name != "own":
            row[f"to_{name}"] = {
                "rank": arm.rank,
                "parameters": int(found[arm]["parameters"]),
                "step": spread([a / b for a, b in zip(taken[own], taken[arm])]),
                "peak": found[own]["peak_mib"] / found[arm]["peak_mib"],
            }
    return row


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def machine(threads: int) -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", "ablora")
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"date": date.today().isoformat(), "cpu": cpu, "cores": os.cpu_count(), "threads": threads,
            "python": platform.python_version(), **versions}  # fmt: skip


HEAD = f"{'method':<22}{'rank':>5}{'parameters':>12}{'ms/step':>9}{'to LoRA':>20}{'to PEFT':>20}"
HEAD += f"{'to LoRA of its rank':>21}{'MiB':>8}{'to LoRA':>9}{'to PEFT':>9}"


def line(method: str, row: Mapping[str, Any]) -> str:
    """A method's row of the table; ratios as median (least-greatest)."""
    found = [row.get(f"to_{peer}") for peer in ("lora", "peft", "lora_of_rank")]
    ratios = ["" if r is None else "{median:.2f} ({least:.2f}-{greatest:.2f})".format(**r["step"]) for r in found]
    peaks = ["" if r is None else f"{r['peak']:.2f}" for r in found[:2]]
    own = f"{method:<22}{row['rank'] or '':>5}{row['parameters']:>12,}{1e3 * row['step_s']['median']:>9.1f}"
    return f"{own}{ratios[0]:>20}{ratios[1]:>20}{ratios[2]:>21}{row['peak_mib']:>8.0f}{peaks[0]:>9}{peaks[1]:>9}"


@contextmanager
def folder_for(given: str | None):
    """The given folder, or one that goes when all is done."""
    if given is not None:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given).resolve()
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", choices=list(SIZES), default="pico")
    parser.add_argument("--methods", default=",".join(DEFAULT), help="presets, or `all`")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="in a round")
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--tokens", type=int, help="of each sequence")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", help="a folder for the wide model and its decompositions; else they are made anew")
    given = parser.parse_args()
    from ablora.config.loader import conf_dir

    size = SIZES[given.width]
    every = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
    methods = every if given.methods == "all" else given.methods.split(",")
    steps = given.steps or size.steps
    with folder_for(given.cache) as folder:
        base = "pico" if given.width == "pico" else str(wide(folder))
        place = Place(base, str(folder), given.sequences or size.sequences, given.tokens or size.tokens, given.threads)
        ranks = solve(place, list(dict.fromkeys(["lora", *methods])), size.like)
        print(HEAD, flush=True)
        rows = {}
        for method in methods:
            rows[method] = compare(place, method, ranks, given.rounds, steps)
            print(line(method, rows[method]), flush=True)
    setting = {"width": given.width, "sequences": place.sequences, "tokens": place.tokens, "like": size.like}
    setting |= {"rounds": given.rounds, "steps": steps}
    print(json.dumps({"machine": machine(given.threads), "setting": setting, "methods": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
