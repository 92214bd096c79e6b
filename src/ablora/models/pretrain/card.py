"""What is measured of a pretrained folder, and the model card that states it."""

import csv
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ablora.models.pretrain import corpus, evaluate, spectrum
from ablora.models.pretrain.recipe import REPEATS, Recipe
from ablora.models.pretrain.train import random_start
from ablora.models.pretrain.windows import encode

CARD_FILE = "card.json"
SCHEMA = 1
CHECK_CHARS_MAX = 3_000
TEMPLATE_FILE = Path(__file__).with_name("card_template.md")


def read_card(folder: Path = corpus.PICO_DIR) -> dict:
    """The card's facts, or an empty dict where there are none yet."""
    path = folder / CARD_FILE
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def corpus_line(documents: Sequence[corpus.Document]) -> str:
    """The running interpreter's training corpus, and whether it is the card's."""
    here, known = corpus.fingerprint(documents), read_card().get("corpus", {})
    size = sum(corpus.sizes_bytes(documents).values())
    line = f"corpus    Python {platform.python_version()}: {len(documents):,} documents, {size:,} bytes, {here[:16]}"
    if not known:
        return line
    if known["fingerprint"] == here:
        return f"{line}: the one of the card"
    return (
        f"{line}: DIFFERS from the card's {known['fingerprint'][:16]} (Python {known['python']}); the baselines below "
        "learn from this interpreter's text, the model learnt from the card's"
    )


def measure(folder: Path, train: Sequence[corpus.Document], held_out: Sequence[corpus.Document]) -> dict:
    """Bits per byte of the stored model and of both baselines on the held-out documents."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    ids, train_ids = encode(tokenizer, held_out), encode(tokenizer, train)
    vocab_tokens = model.config.vocab_size
    figures = {
        "model": evaluate.by_kind(evaluate.model_nats(model, ids), held_out),
        "kneser_ney_5": evaluate.by_kind(evaluate.kneser_ney_nats(train_ids, ids, vocab_tokens), held_out),
        "lzma": {"all": evaluate.lzma_bits_per_byte(train, held_out)},
    }
    ours = figures["model"]["all"]
    return {
        "bits_per_byte": figures,
        "model_beats_both": ours < figures["kneser_ney_5"]["all"] and ours < figures["lzma"]["all"],
        "held_out_tokens": sum(map(len, ids)),
        "train_tokens": sum(map(len, train_ids)),
        "window_tokens": evaluate.WINDOW_TOKENS,
        "stride_tokens": evaluate.STRIDE_TOKENS,
    }


def figures_lines(measured: dict) -> list[str]:
    """The three figures as a small table, and the verdict."""
    names = {"model": "model", "kneser_ney_5": "Kneser-Ney 5-gram", "lzma": "LZMA, conditional"}
    head = f"{'held-out text, bits per byte':<30}" + "".join(f"{kind:>12}" for kind in ("all", *corpus.KINDS))
    lines = [head]
    for key, name in names.items():
        row = measured["bits_per_byte"][key]
        cells = [f"{row[kind]:12.4f}" if kind in row else f"{'':>12}" for kind in ("all", *corpus.KINDS)]
        lines.append((f"{name:<30}" + "".join(cells)).rstrip())
    verdict = "the model beats both" if measured["model_beats_both"] else "the model does NOT beat both"
    return [*lines, f"sliding window {measured['window_tokens']}, stride {measured['stride_tokens']}: {verdict}"]


def quick_check(folder: Path, held_out: Sequence[corpus.Document]) -> dict:
    """Bits per byte of the short held-out topics alone: what a test can measure again in a second."""
    short = [d for d in held_out if d.kind == "topic" and len(d.text) < CHECK_CHARS_MAX]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    nats = evaluate.model_nats(model, encode(tokenizer, short))
    return {"documents": [d.name for d in short], "bits_per_byte": evaluate.by_kind(nats, short)["all"]}


def facts(folder: Path, train: Sequence[corpus.Document], measured: dict) -> dict:
    """Everything that the card states, as plain values; the recipe is the one in `recipe.py`."""
    held_out, recipe = corpus.read_held_out(), Recipe()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    rows = list(csv.DictReader((folder / "pretrain_log.csv").open()))
    start = random_start(recipe.seed)
    return {
        "schema": SCHEMA,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "corpus": {
            "fingerprint": corpus.fingerprint(train),
            "python": platform.python_version(),
            "documents": len(train),
            "bytes": corpus.sizes_bytes(train),
            "repeats": REPEATS,
        },
        "held_out": {
            "sha256": hashlib.sha256(corpus.HELD_OUT_FILE.read_bytes()).hexdigest(),
            "fingerprint": corpus.fingerprint(held_out),
            "documents": len(held_out),
            "bytes": corpus.sizes_bytes(held_out),
        },
        "recipe": asdict(recipe),
        "training": {
            "tokens": int(rows[-1]["tokens"]),
            "seconds": int(rows[-1]["seconds"]),
            "torch": torch.__version__.split("+")[0],
        },
        "measured": measured,
        "check": quick_check(folder, held_out),
        "spectrum": {
            "trained": {k: s._asdict() for k, s in spectrum.table(model).items()},
            "start": {k: s._asdict() for k, s in spectrum.table(start).items()},
            "moves": {k: m._asdict() for k, m in spectrum.moves(model, start).items()},
        },
    }


def bits_table(measured: dict) -> str:
    """The three figures in Markdown."""
    rows = ["| | all | topics | docstrings | source |", "|---|---|---|---|---|"]
    names = {"model": "**pico**", "kneser_ney_5": "Kneser-Ney 5-gram", "lzma": "LZMA, conditional"}
    for key, name in names.items():
        row = measured["bits_per_byte"][key]
        cells = (f"{row[kind]:.3f}" if kind in row else "" for kind in ("all", *corpus.KINDS))
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def spectrum_table(measured: dict[str, dict]) -> str:
    """Trained / random start per module type in Markdown."""
    rows = [
        "| module | stable rank | top-1 share | effective rank | norm / start's | cosine to start |",
        "|---|---|---|---|---|---|",
    ]
    for kind, ours in measured["trained"].items():
        base, move = measured["start"][kind], measured["moves"][kind]
        rows.append(
            f"| {kind} | {ours['stable_rank']:.1f} / {base['stable_rank']:.1f} | {ours['top1_share']:.3f} / "
            f"{base['top1_share']:.3f} | {ours['effective_rank']:.0f} / {base['effective_rank']:.0f} | "
            f"{move['norm_ratio']:.1f} | {move['cosine']:.2f} |"
        )
    return "\n".join(rows)


def render(known: dict) -> str:
    """README.md from the facts."""
    train, held, recipe = known["corpus"], known["held_out"], known["recipe"]
    values = {
        **recipe,
        **{f"train_{kind}": f"{size:,}" for kind, size in train["bytes"].items()},
        **{f"held_{kind}": f"{size:,}" for kind, size in held["bytes"].items()},
        "parameters": f"{known['parameters']:,}",
        "weights_mb": f"{known['weights_bytes'] / 1e6:.2f}",
        "fingerprint": train["fingerprint"],
        "held_fingerprint": held["fingerprint"],
        "python": train["python"],
        "torch": known["training"]["torch"],
        "documents": f"{train['documents']:,}",
        "held_documents": held["documents"],
        "train_tokens": f"{known['measured']['train_tokens']:,}",
        "held_tokens": f"{known['measured']['held_out_tokens']:,}",
        "tokens": f"{known['training']['tokens']:,}",
        "minutes": round(known["training"]["seconds"] / 60),
        "step_tokens": recipe["batch_windows"] * recipe["window_tokens"],
        "stride_tokens": known["measured"]["stride_tokens"],
        "bits_table": bits_table(known["measured"]),
        "spectrum_table": spectrum_table(known["spectrum"]),
    }
    return Template(TEMPLATE_FILE.read_text("utf-8")).substitute(values)


def write(folder: Path, train: Sequence[corpus.Document], measured: dict) -> None:
    """card.json and README.md into the folder."""
    known = facts(folder, train, measured)
    (folder / CARD_FILE).write_text(json.dumps(known, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(render(known), "utf-8")
