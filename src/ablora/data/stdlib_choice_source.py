"""Makes the frozen questions of `stdlib_choice`: `python -m ablora.data.stdlib_choice_source FOLDER` writes them again.

The bytes are those of CPython 3.11.7's library; another release gives other questions, with the same promises.
Deterministic: only `random.Random(seed).random()` is drawn from, the one method whose sequence Python promises to keep.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from ablora.data.stdlib_choice_kinds import KINDS, Draft, Pool, make_pool, shuffled
from ablora.data.stdlib_choice_objects import Library, read_library

PYTHON = (3, 11, 7)
SEED = 31107
ROWS = {"test": 400, "validation": 200, "train": 3000}
# As many of each kind as the library has in every split without one package filling it.
PERCENT = {"module": 22, "purpose": 15, "name": 20, "member": 13, "parameter": 30}
CHOICES = 4
MOST_CHARS = 205  # of a question with its choices; the frame around them has 92 tokens of the embedded tokenizer
SHARE_OF_PACKAGE = 0.2  # at most, of one kind in one split: tkinter and xml would be a third of all
SHARE_OF_OBJECTS = {"test": 0.16, "validation": 0.09}
LARGE_PACKAGE = 120  # objects; larger ones are for training: one of them would be most of a test
HELD_OUT = Path(__file__).resolve().parents[1] / "models/pico/held_out.jsonl"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its four choices, one of them right."""

    kind: str
    text: str
    choices: tuple[str, ...]
    right: int
    """Index from 0 into the choices."""


class HeldOut(NamedTuple):
    """What the embedded base never saw, by which forgetting is measured: nothing of it may be trained on."""

    modules: frozenset[str]
    text: str


def read_held_out(path: Path = HELD_OUT) -> HeldOut:
    """Names of the held-out modules, and all held-out text."""
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    return HeldOut(
        frozenset(row["name"] for row in rows if row["kind"] != "topic"), "\n".join(row["text"] for row in rows)
    )


def questions(library: Library, seed: int = SEED) -> dict[str, list[Question]]:
    """The three splits, in random order; each kind has its share, the right choice is at each place equally often."""
    rng = random.Random(seed)
    made: dict[str, list[Question]] = {}
    for split, packages in split_packages(library, seed).items():
        pool = make_pool(library, packages)
        rows = [q for kind in KINDS for q in _of_kind(rng, kind, pool, ROWS[split] * PERCENT[kind] // 100)]
        made[split] = shuffled(rng, rows)
    return made


def split_packages(library: Library, seed: int = SEED) -> dict[str, frozenset[str]]:
    """Split to top-level packages: whole packages, ranked by a hash of the name; large ones are for training."""
    sizes = Counter(t.package for t in library.things)
    ranked = sorted(sizes, key=lambda package: hashlib.sha256(f"{seed}\x1f{package}".encode()).digest())
    left = [package for package in ranked if sizes[package] <= LARGE_PACKAGE]
    splits: dict[str, frozenset[str]] = {}
    for split, share in SHARE_OF_OBJECTS.items():
        taken: list[str] = []
        while sum(sizes[package] for package in taken) < share * sizes.total():
            taken.append(left.pop(0))
        splits[split] = frozenset(taken)
    return {**splits, "train": frozenset(sizes).difference(*splits.values())}


def file_contents(library: Library, seed: int = SEED) -> dict[str, bytes]:
    """File name to content: the three JSON Lines files and their sha256 sums (in sha256sum's form)."""
    files = {f"stdlib_choice_{split}.jsonl": _lines(rows) for split, rows in questions(library, seed).items()}
    sums = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return {**files, "stdlib_choice.sha256": sums.encode()}


def _lines(rows: Iterable[Question]) -> bytes:
    records = (
        {"kind": q.kind, "question": q.text, "choices": q.choices, "answer": f"answer{q.right + 1}"} for q in rows
    )
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _of_kind(rng: random.Random, kind: str, pool: Pool, count: int) -> list[Question]:
    """`count` questions of a kind, at most SHARE_OF_PACKAGE of them from one package; ValueError if there are fewer."""
    made: list[Question] = []
    packages: Counter[str] = Counter()
    places = shuffled(rng, [i % CHOICES for i in range(count)])
    for thing in shuffled(rng, pool.things):
        if len(made) == count:
            break
        draft = KINDS[kind](rng, pool, thing) if packages[thing.package] < SHARE_OF_PACKAGE * count else None
        choices = _draw(rng, draft) if draft else None
        if draft is None or choices is None or len(draft.text) + sum(map(len, choices)) > MOST_CHARS:
            continue
        right = places[len(made)]
        choices = (*choices[1 : right + 1], choices[0], *choices[right + 1 :])
        made.append(Question(kind, draft.text, choices, right))
        packages[thing.package] += 1
    if len(made) < count:
        raise ValueError(f"kind {kind}: {len(made)} questions where {count} are needed; the library is too small")
    return made


def _draw(rng: random.Random, draft: Draft) -> tuple[str, ...] | None:
    """A right choice, then the nearest wrong ones, no two alike but for case; None if there are not enough."""
    right = _pick(rng, draft.right)
    found = {right.casefold(): right}
    for choice in draft.wrong:
        found.setdefault(choice.casefold(), choice)
        if len(found) == CHOICES:
            return tuple(found.values())
    return None


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


if __name__ == "__main__":
    if sys.version_info[:3] != PYTHON:
        print(f"Python {sys.version.split()[0]}: the released questions are of {'.'.join(map(str, PYTHON))}")
    held_out = read_held_out()
    for file_name, content in file_contents(read_library(held_out.modules, held_out.text)).items():
        (Path(sys.argv[1]) / file_name).write_bytes(content)
