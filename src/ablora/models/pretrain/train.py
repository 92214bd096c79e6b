"""The training run: one single-threaded process per core, gradients averaged, checkpoints that continue."""

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from transformers import LlamaForCausalLM

from ablora.models.pretrain.recipe import Recipe, learning_rate_factor, pico_config
from ablora.models.pretrain.windows import Windows, held_out_windows

LOG_FIELDS = ("step", "tokens", "train_nats", "held_out_nats", "seconds")
LOG_HELD_OUT_WINDOWS = 48


def random_start(seed: int) -> LlamaForCausalLM:
    """The model at step 0, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(pico_config()).float()
    model.set_attn_implementation("eager")
    return model


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW for everything; only the layers' matrices decay.

    Muon for the matrices learns faster (1.19 bits per byte after as many steps), but its steps have equal singular
    values, and it left a spectrum nearly as flat as the random start's: no base to tell principal from minor
    directions on. At a rate of 4e-3 AdamW was behind by 0.4 nats per token all the way.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": recipe.matrix_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.adamw_lr, betas=(0.9, 0.95), eps=1e-10)


def window_nats(model: nn.Module, windows: np.ndarray, dtype: str) -> Tensor:
    """Mean nats per token over windows [batch, tokens]; the first token of each window is given, not scored."""
    ids = torch.from_numpy(windows).long()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def average_(tensors: list[Tensor], workers: int) -> None:
    """In place, the mean over workers."""
    if workers == 1:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= workers
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors])):
        tensor.copy_(part.view_as(tensor))


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then rename it to path."""
    aside = path.with_name(f"{path.name}.aside")
    write(aside)
    os.replace(aside, path)


class Trainer:
    """One worker's state of the run."""

    def __init__(self, rank: int, workers: int, out: Path, recipe: Recipe, data: Windows, held_out: list) -> None:
        self.rank, self.workers, self.out, self.recipe, self.data = rank, workers, out, recipe, data
        self.model = random_start(recipe.seed)
        self.optimizer = make_optimizer(self.model, recipe)
        self.held_out = held_out_windows(held_out, recipe.window_tokens, LOG_HELD_OUT_WINDOWS)
        self.step, self.seconds, self.started = 0, 0.0, time.monotonic()

    def resume(self) -> None:
        """Continue from DIR/checkpoint.pt where there is one, and drop log rows that it does not know."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.recipe.seed:
            raise ValueError(f"seed={self.recipe.seed}: {path.name} was written with seed={state['seed']}, use that")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        log = self.out / "pretrain_log.csv"
        if self.rank == 0 and log.exists():
            rows = [r for r in csv.DictReader(log.open()) if int(r["step"]) <= self.step]
            write_rows(log, rows)

    def elapsed_s(self) -> float:
        """Wall time of the whole run, over resumes."""
        return self.seconds + time.monotonic() - self.started

    def save(self) -> None:
        """Write the checkpoint; rank 0 alone."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.elapsed_s(),
            "seed": self.recipe.seed,
        }
        write_aside(self.out / "checkpoint.pt", lambda path: torch.save(state, path))

    def train_step(self) -> float:
        """One optimizer step over the whole batch; returns this worker's mean nats."""
        factor = learning_rate_factor(self.recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.adamw_lr * factor
        mine = self.data.batch(self.step)[self.rank :: self.workers]
        nats = 0.0
        for start in range(0, len(mine), self.recipe.micro_windows):
            micro = mine[start : start + self.recipe.micro_windows]
            loss = window_nats(self.model, micro, self.recipe.dtype) * (len(micro) / len(mine))
            loss.backward()
            nats += loss.item()
        average_([p.grad for p in self.model.parameters() if p.grad is not None], self.workers)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return nats

    @torch.no_grad()
    def held_out_nats(self) -> float:
        """Mean nats per token over the log's held-out windows, shared among workers."""
        mine = np.array_split(self.held_out[self.rank :: self.workers], LOG_HELD_OUT_WINDOWS // 4)
        sums = [window_nats(self.model, part, self.recipe.dtype).item() * len(part) for part in mine if len(part)]
        total = torch.tensor([sum(sums)])
        if self.workers > 1:
            dist.all_reduce(total)
        return total.item() / len(self.held_out)

    def run(self) -> None:
        """Train to the recipe's last step, logging and saving on the way."""
        losses: list[float] = []
        while self.step < self.recipe.steps:
            losses.append(self.train_step())
            last = self.step == self.recipe.steps
            if self.step % self.recipe.log_every_steps == 0 or last:
                mean = torch.tensor([sum(losses) / len(losses)])
                average_([mean], self.workers)
                row = (
                    self.step,
                    self.step * self.recipe.step_tokens,
                    f"{mean.item():.4f}",
                    f"{self.held_out_nats():.4f}",
                    f"{self.elapsed_s():.0f}",
                )
                losses = []
                if self.rank == 0:
                    append_row(self.out / "pretrain_log.csv", dict(zip(LOG_FIELDS, row)))
            if self.rank == 0 and (self.step % self.recipe.checkpoint_every_steps == 0 or last):
                self.save()


def append_row(path: Path, row: dict) -> None:
    """One line to the log, with the header if the file is new; also shown."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, LOG_FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)


def write_rows(path: Path, rows: list[dict]) -> None:
    """The log anew."""

    def write(aside: Path) -> None:
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, LOG_FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_aside(path, write)


def work(rank: int, workers: int, out: Path, recipe: Recipe, ids: list, kinds: list[str], held_out: list) -> None:
    """One process of the run.

    Two processes of one thread, not one of two: with both cores contended, one process of two threads fell from
    10,000 to 900-1,700 tokens/s at its barriers, two processes kept 10,000.
    """
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{out.resolve()}/rendezvous", rank=rank, world_size=workers)
    trainer = Trainer(rank, workers, out, recipe, Windows(ids, kinds, recipe), held_out)
    trainer.resume()
    trainer.run()
    if workers > 1:
        dist.destroy_process_group()


def train(out: Path, recipe: Recipe, ids: list, kinds: list[str], held_out: list, workers: int) -> None:
    """Run the recipe into `out` (checkpoint.pt, pretrain_log.csv) with `workers` processes."""
    if workers < 1 or recipe.batch_windows % workers:
        raise ValueError(f"threads={workers}: must divide batch_windows={recipe.batch_windows}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "rendezvous").unlink(missing_ok=True)
    arguments = (workers, out, recipe, ids, kinds, held_out)
    if workers == 1:
        work(0, *arguments)
    else:
        spawn(work, arguments, nprocs=workers)
