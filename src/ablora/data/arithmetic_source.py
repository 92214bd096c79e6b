"""Makes the frozen word problems of `arithmetic`: `python -m ablora.data.arithmetic_source FOLDER` writes them again.

Deterministic: only `random.Random(seed).random()` is drawn from, the one method whose sequence Python promises to keep.
"""

from __future__ import annotations

import hashlib
import json
import operator
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ablora.data.arithmetic_templates import NAMES, TEMPLATES, THINGS, Template

SEED = 20110
ROWS = {"test": 400, "validation": 200, "train": 4000}
LARGEST = 99  # of every result on the way: two digits at most, so that a small model has few sums to learn

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem; (template, numbers) occurs once over all splits, whatever names and things it is told with."""

    template: int
    numbers: tuple[int, ...]
    question: str
    answer: str
    steps: int


def problems(seed: int = SEED) -> dict[str, list[Problem]]:
    """The three splits; each holds every template equally often (to within one), in random order."""
    rng = random.Random(seed)
    seen: set[tuple[int, tuple[int, ...]]] = set()
    drawn = [_draw_new(rng, i % len(TEMPLATES), seen) for i in range(sum(ROWS.values()))]
    splits: dict[str, list[Problem]] = {}
    for split, count in ROWS.items():
        splits[split], drawn = drawn[:count], drawn[count:]
        splits[split].sort(key=lambda _: rng.random())
    return splits


def file_contents(seed: int = SEED) -> dict[str, bytes]:
    """File name to content: the three JSON Lines files and their sha256 sums (in sha256sum's form)."""
    files = {f"arithmetic_{split}.jsonl": _lines(rows) for split, rows in problems(seed).items()}
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return {**files, "arithmetic.sha256": sums.encode()}


def _lines(rows: list[Problem]) -> bytes:
    records = ({"question": p.question, "answer": p.answer, "steps": p.steps} for p in rows)
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _draw_new(rng: random.Random, index: int, seen: set[tuple[int, tuple[int, ...]]]) -> Problem:
    template = TEMPLATES[index]
    while True:
        numbers = {name: _between(rng, low, high) for name, (low, high) in ranges(template).items()}
        key = (index, tuple(numbers.values()))
        worked = work_out(template.calc, numbers) if key not in seen else None
        if worked is not None:
            seen.add(key)
            return Problem(index, key[1], _tell(rng, template, numbers), worked, len(template.calc.split()))


def ranges(template: Template) -> dict[str, tuple[int, int]]:
    """Letter to lowest and highest number, from "a:2-9 b:2-9"."""
    found = {}
    for part in template.draws.split():
        letter, span = part.split(":")
        low, high = span.split("-")
        found[letter] = (int(low), int(high))
    return found


def work_out(calc: str, numbers: dict[str, int]) -> str | None:
    """The worked answer, one step a line, then "#### n"; None if a result is not a whole number from 1 to LARGEST."""
    known, lines, result = dict(numbers), [], 0
    for number, step in enumerate(calc.split(), start=1):
        sign = next(c for c in step if c in _OPERATIONS)
        left, right = (known.get(term) or int(term) for term in step.split(sign))
        if sign == "/" and left % right:
            return None
        result = _OPERATIONS[sign](left, right)
        if not 1 <= result <= LARGEST:
            return None
        known[f"r{number}"] = result
        lines.append(f"{left}{sign}{right}={result}")
    return "\n".join([*lines, f"#### {result}"])


def _tell(rng: random.Random, template: Template, numbers: dict[str, int]) -> str:
    name, friend = _two(rng, NAMES)
    things, others = _two(rng, THINGS)
    return template.text.format(name=name, friend=friend, things=things, others=others, **numbers)


def _between(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _two(rng: random.Random, pool: Sequence[T]) -> tuple[T, T]:
    first = _between(rng, 0, len(pool) - 1)
    second = (first + _between(rng, 1, len(pool) - 1)) % len(pool)
    return pool[first], pool[second]


if __name__ == "__main__":
    for file_name, content in file_contents().items():
        (Path(sys.argv[1]) / file_name).write_bytes(content)
