"""Real runs that are small: a random base of width 32 with the embedded tokenizer, and the frozen arithmetic set."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ablora.data.arithmetic import Arithmetic
from ablora.evals.answer_loss import AnswerLoss
from ablora.evals.generation import Generation
from ablora.models.base import Embedded, Local
from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
from ablora.store import claims, lines
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create
from ablora.train.execute import execute
from presets import method
from tiny import SIZES

TASKS = {
    "answer_loss": AnswerLoss(split="test", max_items=12),
    "generation": Generation(split="test", max_items=5, max_new_tokens=6),
}


def save_base(folder: Path) -> Path:
    """A Llama of width 32 with random weights and the embedded base's tokenizer, as save_pretrained writes it."""
    tokenizer = AutoTokenizer.from_pretrained(Embedded(name="pico", dtype="float32").folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 512}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_spec(base: Path, preset: str = "pissa", dropout: float = 0.1, seed: int = 0, **train: Any) -> RunSpec:
    recipe = TrainSpec(lr=3e-3, max_steps=8, batch_size=4, checkpoint_every=3)
    return RunSpec(
        method=method(preset),
        model=Local(name="small", path=str(base), dtype="float32"),
        dataset=Arithmetic(name="arithmetic"),
        train=replace(recipe, **train),
        eval=EvalSpec(tasks=TASKS, every=4),
        adapter=AdapterSpec(dropout=dropout),
        rank=8,
        seed=seed,
    )


class Interruption(RuntimeError):  # noqa: N818 -- what it is
    """What a test uses to end a run in the middle."""


class Watcher:
    """An observer that keeps what it sees, and may end the run at a step, as a crash would."""

    def __init__(self, crash_after: int | None = None):
        self.crash_after = crash_after
        self.seen: list[Mapping[str, Any]] = []
        self.started_at: int | None = None
        self.state: str | None = None

    def started(self, folder: RunFolder, spec: RunSpec, step: int) -> None:
        self.started_at = step

    def recorded(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        self.seen.append(record)
        if record["kind"] == "train" and record["step"] == self.crash_after:
            raise Interruption

    def timed(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        return None

    def finished(self, folder: RunFolder, state: str) -> None:
        self.state = state


def run(roots: Roots, *specs: RunSpec, watcher: Watcher | None = None) -> list[RunFolder]:
    """Claim and execute runs as one pack."""
    folders = [create(roots, spec) for spec in specs]
    held = [claims.take(folder) for folder in folders]
    assert all(claim is not None for claim in held)
    mine = [claim for claim in held if claim is not None]
    try:
        execute(folders, mine, roots, [watcher or Watcher()], threads=1)
    finally:
        for claim in mine:
            claims.release(claim)
    return folders


def outcome(folder: RunFolder) -> dict[str, Any]:
    """Everything that a second, equal run must repeat."""
    return {
        "result": folder.read_result(),
        "metrics": list(lines.read(folder.metrics)),
        "items": {path.name: path.read_text() for path in sorted((folder.path / "evals").iterdir())},
        "adapter": {path.name: path.read_bytes() for path in sorted(folder.adapter.iterdir())},
    }
