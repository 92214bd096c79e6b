"""How many tokens a pass through the base should be filled to: a pack's step and answer loss, by turns in one process.

    python benchmarks/passes.py [--shapes 4x16,8x4,8x2,8x1] [--worths 0,512,1024,2048,4096,none] [--wides 512]
                                [--rounds 5] [--items 32] [--data FOLDER|arithmetic]

A shape is a number of runs and a batch: the first so many runs of `sweep.py`'s grid on the embedded base and GSM8K. A
worth is `ablora.models.passes.WORTH`: 0 sends each run alone, `none` all at once. A wide is the number of inputs from
which on the gradient of a layer's A is turned (`ablora.method.structure._product.WIDE`). Each pair of them takes one
optimizer step of the pack, and one `answer_loss` of the first so many test items, in every round; the numbers are
microseconds of processor time per token, median over rounds, one thread. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from methods import folder_for, machine
from sweep import data_override, specifications

from ablora.method.structure import _product
from ablora.models import passes

NO_LIMIT = 10**9


@dataclass
class Pack:
    """What is timed."""

    step: Callable[[], int]
    """One optimizer step of all runs; says how many tokens it took."""
    evaluation: Callable[[], int]


def pack_of(asked: Sequence[str], runs: int, batch: int, items: int, cache: Path) -> Pack:
    """The first runs of the grid, on their own data, without folders."""
    from ablora.evals.answer_loss import AnswerLoss
    from ablora.method.adapt import adapt
    from ablora.models.base import load
    from ablora.train.data import items_of, train_data
    from ablora.train.loop import Trained, train_step
    from ablora.train.member import RunState

    specs = specifications(asked, 1000, batch)[:runs]
    base = load(specs[0].model)
    adapted = adapt(base.model, specs, [None] * runs, cache)
    nothing: Any = None  # a run's folder and claim, which no step touches
    states = [RunState(i, nothing, nothing, spec, train_data(spec, base), adapted) for i, spec in enumerate(specs)]
    loss = AnswerLoss(split="test", max_items=items)
    members = [items_of(spec, base, "test", items, cache)[0] for spec in specs]

    def step() -> int:
        found = train_step(base, adapted, states)
        return sum(own.tokens for own in found.values() if isinstance(own, Trained))

    def evaluation() -> int:
        loss.run(base, adapted, members)
        return sum(len(e.input_ids) for own in members for e in own.encoded)

    return Pack(step, evaluation)


def compare(pack: Pack, arms: Sequence[tuple[int, int]], rounds: int) -> list[dict[str, float]]:
    """Microseconds per token of every arm."""
    taken: list[dict[str, list[float]]] = [{"step": [], "answer_loss": []} for _ in arms]
    pack.step()
    for turn in range(rounds):
        for i in list(range(len(arms)))[:: -1 if turn % 2 else 1]:
            passes.WORTH, _product.WIDE = arms[i]
            for name, act in (("step", pack.step), ("answer_loss", pack.evaluation)):
                began = time.process_time()
                tokens = act()
                taken[i][name].append(1e6 * (time.process_time() - began) / tokens)
    return [{name: statistics.median(own) for name, own in arm.items()} for arm in taken]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default="4x16,8x4,8x2,8x1")
    parser.add_argument("--worths", default="0,512,1024,2048,4096,none")
    parser.add_argument("--wides", default=str(_product.WIDE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--data")
    given = parser.parse_args()
    torch.set_num_threads(1)
    worths = [NO_LIMIT if word == "none" else int(word) for word in given.worths.split(",")]
    arms = list(product(worths, map(int, given.wides.split(","))))
    asked, rows = data_override(given.data), []
    print(f"{'runs x batch':<14}{'worth':>8}{'wide':>7}{'step, us/token':>16}{'answer_loss':>13}", flush=True)
    with folder_for(None) as folder:
        for shape in given.shapes.split(","):
            runs, batch = map(int, shape.split("x"))
            pack = pack_of(asked, runs, batch, given.items, folder)
            for (worth, wide), found in zip(arms, compare(pack, arms, given.rounds)):
                limit = None if worth == NO_LIMIT else worth
                values = f"{found['step']:>16.0f}{found['answer_loss']:>13.0f}"
                print(f"{shape:<14}{'none' if limit is None else limit:>8}{wide:>7}{values}", flush=True)
                rows.append({"runs": runs, "batch": batch, "worth": limit, "wide": wide, "us_per_token": found})
    setting = {"data": asked[:1], "rounds": given.rounds, "items": given.items, "clock": "process_time"}
    print(json.dumps({"machine": machine(1), "setting": setting, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
