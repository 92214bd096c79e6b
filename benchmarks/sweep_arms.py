"""The programs that `sweep.py` times, each a process of its own: PEFT with transformers' Trainer, and packs of ours.

    python benchmarks/sweep_arms.py ARM PLAN OUT --runs 0,1,2 --threads 1

ARM: `trainer` (PEFT, Trainer), `loop` (PEFT, a plain loop), `labels` (the same, logits at labels only), `rows` (the
same, sequences back to back without padding), `pack` (ours, all runs in one pack). Everything but `pack` trains its
runs one after another. OUT gets one JSON object: clock times of what happened, and the losses.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RATIO = 16.0
"""LoRA+'s, in the preset and here."""


@dataclass
class Record:
    """Clock times (seconds since the epoch, one clock for all processes) and losses of a process."""

    imported: float = 0.0
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)

    def begin(self, run: int) -> None:
        self.runs[run] = {"began": time.time(), "steps": [], "cpu": [], "losses": []}

    def step(self, run: int, loss: float) -> None:
        self.runs[run]["steps"].append(time.time())
        self.runs[run]["cpu"].append(time.process_time())
        self.runs[run]["losses"].append(loss)

    def write(self, out: Path) -> None:
        runs = {str(run): record for run, record in self.runs.items()}
        out.write_text(json.dumps({"imported": self.imported, "runs": runs}))


class Cached:
    """The tokens of the training items and the order of each run, as `sweep.py` laid them down."""

    def __init__(self, plan: Mapping[str, Any]):
        from safetensors.torch import load_file

        flat = load_file(plan["tokens"])
        self.ids = flat["ids"].split(flat["lengths"].tolist())
        self.starts = flat["starts"].tolist()
        self.orders = flat["orders"]
        self.batch = plan["batch"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        return self.ids[item], self.starts[item]

    def batches(self, run: int) -> Iterator[list[tuple[Any, int]]]:
        for items in self.orders[run].split(self.batch):
            yield [self[item] for item in items.tolist()]


def padded(items: Sequence[tuple[Any, int]]) -> dict[str, Any]:
    """Right padding to the longest of the batch; -100 where there is no label."""
    from torch import full, long, zeros

    width = max(len(ids) for ids, _ in items)
    shape = (len(items), width)
    out = {"input_ids": full(shape, 1), "labels": full(shape, -100), "attention_mask": zeros(shape, dtype=long)}
    for row, (ids, start) in enumerate(items):
        out["input_ids"][row, : len(ids)] = ids
        out["attention_mask"][row, : len(ids)] = 1
        out["labels"][row, start : len(ids)] = ids[start:]
    return out


def peft_model(plan: Mapping[str, Any], run: Mapping[str, Any]) -> Any:
    """The run's model as a user of PEFT makes it, its factors then set to the start of ours (PiSSA's is its own)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(plan["base"], dtype=torch.float32, attn_implementation="sdpa")
    own = {"pissa": {"init_lora_weights": "pissa", "lora_alpha": plan["rank"]}, "rslora": {"use_rslora": True}}
    asked = {"lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **own.get(run["method"], {})}
    model: Any = get_peft_model(base, LoraConfig(r=plan["rank"], **asked))
    if run["start"]:
        for name, A in load_file(run["start"]).items():
            model.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(A)
    return model


def optimizer(model: Any, run: Mapping[str, Any]) -> Any:
    """Fused AdamW; PEFT's own rates for LoRA+."""
    from peft.optimizers import create_loraplus_optimizer
    from torch.optim import AdamW

    asked = {"lr": run["lr"], "weight_decay": 0.0, "fused": True}
    if run["method"] == "lora_plus":
        return create_loraplus_optimizer(model, AdamW, loraplus_lr_ratio=RATIO, **asked)
    return AdamW([p for p in model.parameters() if p.requires_grad], **asked)


def train_by_trainer(plan: Mapping[str, Any], cached: Cached, run: int, record: Record) -> None:
    """transformers' Trainer, spared what it does beside: no evaluation, no saving, no logging, no progress bar."""
    from transformers import Trainer, TrainingArguments

    class Observed(Trainer):
        def compute_loss(self, *args: Any, **more: Any) -> Any:
            loss = super().compute_loss(*args, **more)
            record.step(run, loss.item())
            return loss

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return cached.orders[run].tolist()

    spec = plan["runs"][run]
    model = peft_model(plan, spec)
    arguments = TrainingArguments(
        output_dir=plan["scratch"], per_device_train_batch_size=plan["batch"], max_steps=plan["steps"],
        learning_rate=spec["lr"], lr_scheduler_type="linear", warmup_steps=plan["warmup"], max_grad_norm=1.0,
        weight_decay=0.0, optim="adamw_torch_fused", save_strategy="no", eval_strategy="no", logging_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False, seed=spec["seed"],
    )  # fmt: skip
    items: Any = cached  # it has a length and items, which is what a map-style data set is
    trainer = Observed(model=model, args=arguments, train_dataset=items, data_collator=padded,
                       optimizers=(optimizer(model, spec), None))  # fmt: skip
    trainer.train()


def padded_loss(model: Any, items: Sequence[tuple[Any, int]]) -> Any:
    return model(**padded(items), use_cache=False).loss


def label_loss(model: Any, items: Sequence[tuple[Any, int]]) -> Any:
    """The same with logits at label positions alone."""
    from torch.nn.functional import cross_entropy

    batch = padded(items)
    labels = batch.pop("labels")[:, 1:]
    causal = model.base_model.model
    hidden = causal.model(**batch, use_cache=False).last_hidden_state[:, :-1]
    kept = labels != -100
    return cross_entropy(causal.lm_head(hidden[kept]).float(), labels[kept])


def row_loss(model: Any, items: Sequence[tuple[Any, int]]) -> Any:
    """The same without padding: sequences back to back in one row, attention by sequence."""
    from torch.nn.functional import cross_entropy

    from ablora.data.encode import Encoded
    from ablora.models.rows import lay_out
    from ablora.models.segments import packed_inputs

    rows = lay_out([[Encoded(tuple(ids.tolist()), start, "") for ids, start in items]])
    causal = model.base_model.model
    hidden = causal.model(**packed_inputs(rows.ids, rows.segments)).last_hidden_state
    return cross_entropy(causal.lm_head(hidden[rows.predicts]).float(), rows.labels)


LOSSES = {"loop": padded_loss, "labels": label_loss, "rows": row_loss}


def train_by_loop(plan: Mapping[str, Any], cached: Cached, run: int, record: Record, loss_of: Callable) -> None:
    """The loop that one would write by hand."""
    from torch.nn.utils import clip_grad_norm_
    from transformers import get_linear_schedule_with_warmup

    from ablora.models.segments import use_segments

    spec = plan["runs"][run]
    model = peft_model(plan, spec)
    if loss_of is row_loss:
        use_segments(model.base_model.model)
    model.train()
    adam = optimizer(model, spec)
    schedule = get_linear_schedule_with_warmup(adam, plan["warmup"], plan["steps"])
    trained = [p for p in model.parameters() if p.requires_grad]
    for items in cached.batches(run):
        loss = loss_of(model, items)
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        adam.step()
        schedule.step()
        adam.zero_grad()
        record.step(run, loss.item())


def train_pack(plan: Mapping[str, Any], chosen: Sequence[int], record: Record, threads: int) -> None:
    """Ours as a job does it: claims, records, checkpoint at the end, adapter, result; in the process's own folders."""
    from ablora.store import claims
    from ablora.store.roots import Roots
    from ablora.store.run_folder import RunFolder, folder_of
    from ablora.train.execute import execute

    roots = Roots(Path(plan["scratch"], "runs"), Path(plan["scratch"], "studies"), Path(plan["scratch"], "cache"))
    folders = [folder_of(roots, plan["runs"][run]["id"]) for run in chosen]
    index = {folder.id: run for folder, run in zip(folders, chosen)}

    class Clock:
        def started(self, folder: RunFolder, spec: Any, step: int) -> None:
            record.begin(index[folder.id])

        def recorded(self, folder: RunFolder, entry: Mapping[str, Any]) -> None:
            if entry["kind"] == "train":
                record.step(index[folder.id], entry["loss_nats"])

        def timed(self, folder: RunFolder, entry: Mapping[str, Any]) -> None:
            return None

        def finished(self, folder: RunFolder, state: str) -> None:
            assert state == "done", folder.read_failure()

    held = [claim for folder in folders if (claim := claims.take(folder))]
    assert len(held) == len(folders)
    record.imported = time.time()
    execute(folders, held, roots, [Clock()], threads)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("arm", choices=["trainer", *LOSSES, "pack"])
    parser.add_argument("plan", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    plan, record = json.loads(given.plan.read_text()), Record()
    chosen = [int(run) for run in given.runs.split(",")]
    if given.arm == "pack":
        train_pack(plan, chosen, record, given.threads)
        record.write(given.out)
        return 0
    import peft  # noqa: F401 -- its import is part of the start
    import torch
    from transformers import Trainer  # noqa: F401
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(given.threads)
    disable_progress_bar()
    record.imported = time.time()
    cached = Cached(plan)
    for run in chosen:
        record.begin(run)
        if given.arm == "trainer":
            train_by_trainer(plan, cached, run, record)
        else:
            train_by_loop(plan, cached, run, record, LOSSES[given.arm])
    record.write(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
