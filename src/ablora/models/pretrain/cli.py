"""`ablora pretrain`: make the embedded base model again, or measure the one that ships."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from ablora.models.pretrain import card, corpus, export, spectrum, train
from ablora.models.pretrain.recipe import REPEATS, Recipe
from ablora.models.pretrain.tokenizer import train_tokenizer
from ablora.models.pretrain.windows import encode


def parser() -> argparse.ArgumentParser:
    """The command's flags; the defaults are the recipe of the weights that ship."""
    default = Recipe()
    p = argparse.ArgumentParser("ablora pretrain", description=__doc__)
    p.add_argument("--evaluate", action="store_true", help="bits per byte of the held-out text: model, 5-gram, LZMA")
    p.add_argument("--card", action="store_true", help="as --evaluate, then write card.json and README.md into --model")
    p.add_argument("--model", type=Path, default=corpus.PICO_DIR, help="folder to evaluate (default: the shipped one)")
    p.add_argument("--figures", type=Path, help="folder for pico_spectrum.svg and .png of --model; needs matplotlib")
    p.add_argument("--out", type=Path, default=Path("pico"), help="folder of the training; continues what is there")
    p.add_argument("--steps", type=int, default=default.steps)
    p.add_argument("--decay-steps", type=int, default=default.decay_steps, help="linear to zero over the last ones")
    p.add_argument("--seed", type=int, default=default.seed)
    p.add_argument("--batch-windows", type=int, default=default.batch_windows, help="of 512 tokens, per step")
    p.add_argument("--threads", type=int, default=2, help="training: processes of one thread; else: threads")
    p.add_argument("--dtype", default=default.dtype, help="bfloat16 (autocast) or float32")
    return p


def tokenizer_of(out: Path, documents: list[corpus.Document]) -> Tokenizer:
    """The tokenizer in `out`, learnt first if there is none; prose counts twice."""
    if not (out / "tokenizer.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        texts = [d.text for d in documents for _ in range(min(2, REPEATS[d.kind]))]
        train_tokenizer(texts).save(str(out / "tokenizer.json"))
    return Tokenizer.from_file(str(out / "tokenizer.json"))


def run_training(arguments: argparse.Namespace) -> int:
    """Train into --out and leave there the folder that `from_pretrained` reads."""
    recipe = replace(
        Recipe(),
        steps=arguments.steps,
        decay_steps=arguments.decay_steps,
        seed=arguments.seed,
        batch_windows=arguments.batch_windows,
        dtype=arguments.dtype,
    )
    held_out, documents = corpus.read_held_out(), corpus.training_documents()
    print(card.corpus_line(documents), flush=True)
    tokenizer = tokenizer_of(arguments.out, documents)
    ids, kinds = encode(tokenizer, documents), [d.kind for d in documents]
    train.train(arguments.out, recipe, ids, kinds, encode(tokenizer, held_out), arguments.threads)
    model = export.load_state(arguments.out / "checkpoint.pt", recipe)
    export.export(model, tokenizer, arguments.out)
    print(f"written to {arguments.out}; measure it with: ablora pretrain --evaluate --model {arguments.out}")
    return 0


def run_evaluation(arguments: argparse.Namespace) -> int:
    """Print the three figures; 0 only if the model beats both."""
    torch.set_num_threads(arguments.threads)
    documents = corpus.training_documents()
    print(card.corpus_line(documents), flush=True)
    measured = card.measure(arguments.model, documents, corpus.read_held_out())
    print("\n".join(card.figures_lines(measured)))
    if arguments.card:
        card.write(arguments.model, documents, measured)
    return 0 if measured["model_beats_both"] else 1


def run_figures(arguments: argparse.Namespace) -> int:
    """Draw the spectrum of --model against the random start of --seed."""
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, local_files_only=True)
    points = spectrum.curves(model, train.random_start(arguments.seed))
    spectrum.draw(points, [arguments.figures / f"pico_spectrum.{suffix}" for suffix in ("svg", "png")])
    return 0


def main(argv: list[str]) -> int:
    """Exit code: 0 done, 1 the model does not beat both baselines, 2 a flag is wrong."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    disable_progress_bar()
    try:
        if arguments.figures:
            return run_figures(arguments)
        return run_evaluation(arguments) if arguments.evaluate or arguments.card else run_training(arguments)
    except (ValueError, OSError) as mistake:
        print(f"ablora pretrain: {mistake}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
