"""Starts from the spectrum: first and cached initialisation, and what a run stores, beside PEFT's PiSSA.

    python benchmarks/spectra.py [--width 2048] [--layers 4] [--rank 32] [--methods pissa,milora,goat] [--peft KINDS]

On a Llama with random weights. Each preset is made twice: with an empty cache (every weight is decomposed, once) and
with the cache it left; then a run's adapter is saved. `together`: all presets one after another with one cache, in
which a weight that lacks triplets is decomposed once more. PEFT's `pissa` takes a full SVD per weight and run,
`pissa_niter_4` a randomised one; either changes the base, so a run keeps its adapter and either the residual weights of
its targets (`residual`: their size in the base's dtype) or PEFT's conversion, an adapter of twice the rank
(`converted`). Times are wall and processor seconds of the attachment alone. The last line is one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from methods import folder_for, machine
from step import base_folder


class Taken(NamedTuple):
    """What something took."""

    wall_s: float
    cpu_s: float


def timed(act: Callable[[], Any]) -> tuple[Any, Taken]:
    wall, cpu = time.perf_counter(), time.process_time()
    out = act()
    return out, Taken(time.perf_counter() - wall, time.process_time() - cpu)


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def specification(base: Path, method: str, rank: int) -> Any:
    """A run of the preset on the base in a folder."""
    from ablora.config.compose import SPEC_KEYS, Composer, resolve
    from ablora.config.loader import open_loader
    from ablora.spec import RunSpec
    from ablora.tree import build

    with open_loader() as loader:
        tree = resolve(Composer(loader).base([f"method={method}", f"rank={rank}", "model=local", f"model.path={base}"]))
    return build({key: tree[key] for key in SPEC_KEYS}, RunSpec)


def ours(base: Path, folder: Path, method: str, rank: int, cache: Path) -> dict[str, Any]:
    """First and second initialisation with a cache, and a run's stored bytes."""
    from ablora.method.adapt import adapt
    from ablora.models.base import load

    spec = specification(base, method, rank)
    model = load(spec.model).model
    before = bytes_in(cache)
    adapted, first = timed(lambda: adapt(model, [spec], [None], cache))
    adapted.detach()
    adapted, cached = timed(lambda: adapt(model, [spec], [None], cache))
    adapter = folder / f"adapter_{method}"
    adapted.save(0, adapter)
    return {"first": first._asdict(), "cached": cached._asdict(), "cache_bytes": bytes_in(cache) - before,
            "run_bytes": bytes_in(adapter)}  # fmt: skip


def theirs(base: Path, folder: Path, kind: str, rank: int) -> dict[str, Any]:
    """PEFT's initialisation, which every run repeats, and what a run then stores."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=kind, target_modules="all-linear",
                        task_type="CAUSAL_LM")  # type: ignore[arg-type]  # fmt: skip
    adapted, every = timed(lambda: get_peft_model(model, config))
    adapter = folder / f"peft_{kind}"
    adapted.save_pretrained(adapter)
    layers = [module.base_layer.weight for _, module in adapted.named_modules() if hasattr(module, "base_layer")]
    residual = sum(weight.numel() * weight.element_size() for weight in layers)
    own = bytes_in(adapter)
    return {"first": every._asdict(), "cached": None, "run_bytes": own, "residual_bytes": own + residual,
            "converted_bytes": 2 * own}  # fmt: skip


HEAD = f"{'start':<20}{'first s':>9}{'(CPU)':>9}{'cached s':>10}{'(CPU)':>9}{'cache MiB':>11}{'run MiB':>9}"
HEAD += f"{'residual MiB':>14}{'converted MiB':>15}"


def line(name: str, row: dict[str, Any]) -> str:
    first, cached = row["first"], row["cached"]
    seconds = [f"{first['wall_s']:>9.2f}{first['cpu_s']:>9.2f}"]
    seconds.append(f"{cached['wall_s']:>10.2f}{cached['cpu_s']:>9.2f}" if cached else f"{'':>19}")
    widths = {"cache_bytes": 11, "run_bytes": 9, "residual_bytes": 14, "converted_bytes": 15}
    sizes = [f"{row[key] / 2**20:>{width}.1f}" if key in row else " " * width for key, width in widths.items()]
    return f"{name:<20}" + "".join([*seconds, *sizes])


def rows_of(base: Path, folder: Path, methods: Sequence[str], kinds: Sequence[str], rank: int) -> dict[str, Any]:
    """Every row, printed when it is there."""
    rows: dict[str, Any] = {}

    def add(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        print(line(name, row), flush=True)

    for method in methods:
        add(method, ours(base, folder, method, rank, _new(folder / f"cache_{method}")))
    for method in methods:
        add(f"together: {method}", ours(base, folder, method, rank, _new(folder / "cache_together")))
    for kind in kinds:
        add(f"PEFT {kind}", theirs(base, folder, kind, rank))
    return rows


def _new(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def ratios(rows: dict[str, Any]) -> dict[str, float]:
    """Ours to each of PEFT's: seconds of a first and of any later start, and bytes against residual weights."""
    out = {}
    for name, row in rows.items():
        if "residual_bytes" in row and "pissa" in rows:
            own = rows["pissa"]
            out[f"first, {name} to ours"] = row["first"]["cpu_s"] / own["first"]["cpu_s"]
            out[f"cached, {name} to ours"] = row["first"]["cpu_s"] / own["cached"]["cpu_s"]
            out["run bytes, residual model to ours"] = row["residual_bytes"] / own["run_bytes"]
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--methods", default="pissa,milora,goat")
    parser.add_argument("--peft", default="pissa,pissa_niter_4")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with folder_for(None) as folder:
        base = base_folder(folder, given.width, given.layers)
        print(HEAD, flush=True)
        rows = rows_of(base, folder, given.methods.split(","), given.peft.split(","), given.rank)
        setting = {"width": given.width, "layers": given.layers, "rank": given.rank, "base_bytes": bytes_in(base)}
    figures = {"ratios": ratios(rows)}
    print(json.dumps({"machine": machine(given.threads), "setting": setting, "rows": rows, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
