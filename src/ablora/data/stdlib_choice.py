"""The embedded choices about Python's standard library: small, exactly checkable, about what the base has read."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from typing import ClassVar

from ablora.data._base import DataError, Example, Splits
from ablora.data._fields import as_tuple, check_count
from ablora.data._frames import question_prompt
from ablora.data._frozen import checked_files, frozen_folder
from ablora.data._options import find_answer, is_same, trained_text
from ablora.data._rows import Row, fingerprint, folded, read_json_lines
from ablora.data._split import sample

FILES = tuple(f"stdlib_choice_{split}.jsonl" for split in ("train", "validation", "test"))
SUMS = "stdlib_choice.sha256"
KINDS = ("module", "purpose", "name", "member", "parameter")
OPTIONS = ("answer1", "answer2", "answer3", "answer4")


@dataclass(frozen=True, slots=True, kw_only=True)
class StdlibChoice:
    """Four choices about Python's standard library, in the schema of LLM-Adapters' ARC (3000/200/400 items).

    Five kinds: which module defines a name (22 %), what a thing does (15 %), which thing a description is of (20 %),
    what a class or module defines (13 %), which parameter a function takes (30 %). `kinds` keeps some of them, in all
    three splits.
    The right choice is at each of the four places equally often. A wrong choice comes from the same class, module or
    package where it can, and is proven wrong on the library's source (`stdlib_choice_kinds`).
    The splits go by whole top-level packages: what a test question is about, and every choice it offers, is of a
    package that no training question asks about. Modules of the embedded base's held-out text are left out, and so is
    every description that this text holds, so that training here does not train on the measure of forgetting.
    Prompt: `LlmAdapters`' short one over ARC's published instruction (Hu et al. 2023, arXiv:2304.01933); then " the
    correct answer is answer3". Extraction: the first option in the text. Item: "<split>/<kind>/<index>".
    A prompt has 129 tokens of the embedded tokenizer on average, 171 at most, 92 of them the frame; an answer has 14.
    Source: `stdlib_choice_source`, which makes the frozen files again byte for byte on CPython 3.11.7; descriptions are
    extracts of CPython's docstrings, © Python Software Foundation, PSF-2.0.
    Errors: DataError if a frozen file is not the one whose sha256 is kept beside it, and for an unknown kind.
    """

    revision: ClassVar[int] = 1

    name: str = field(default="stdlib_choice", metadata={"identity": False})
    kinds: tuple[str, ...] = KINDS
    max_train_items: int | None = None
    max_test_items: int | None = None

    def __post_init__(self) -> None:
        given = as_tuple(self.name, "kinds", self.kinds)
        if not given or not set(given) <= set(KINDS):
            legal = ", ".join(KINDS)
            raise DataError(f"dataset {self.name}: field 'kinds' is {list(given)}; legal: one or more of {legal}")
        # In one order, because another order asks the same questions and must be the same run.
        object.__setattr__(self, "kinds", tuple(kind for kind in KINDS if kind in given))
        check_count(self.name, "max_train_items", self.max_train_items, optional=True)
        check_count(self.name, "max_test_items", self.max_test_items, optional=True)

    def fingerprint(self) -> str:
        """sha256 over the contents of the frozen train, validation and test files, in this order."""
        return fingerprint(checked_files(_folder(), FILES, SUMS))

    def load(self) -> Splits:
        """The frozen splits, after checking the files' sha256."""
        train, validation, test = (read_json_lines(file) for file in checked_files(_folder(), FILES, SUMS))
        return Splits(
            train=self._examples("train", train, self.max_train_items),
            validation=self._examples("validation", validation, None),
            test=self._examples("test", test, self.max_test_items),
        )

    def extract(self, text: str) -> str:
        """The first of answer1 to answer4 in the text, "" if there is none."""
        return find_answer(text, OPTIONS)

    def is_correct(self, prediction: str, target: str) -> bool:
        """The same option."""
        return is_same(prediction, target)

    def _examples(self, split: str, rows: list[Row], count: int | None) -> tuple[Example, ...]:
        kept = [row for row in rows if row.fields["kind"] in self.kinds]
        return tuple(_example(split, row) for row in sample(kept, _question, count, split))


def published(row: Row) -> Row:
    """A frozen row (kind, question, choices, answer) in the published schema: instruction, input, output, answer.

    The frozen files leave out what is the same in every row; spelt out they would be twice as large.
    """
    offered = " ".join(f"Answer{i}: {choice}" for i, choice in enumerate(row.fields["choices"], start=1))
    asked = f"Please choose the correct answer to the question: {row.text('question')}"
    answer = row.text("answer")
    fields = {
        "instruction": f"{asked}\n\n{offered}\n\nAnswer format: {'/'.join(OPTIONS)}",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }
    return Row(row.where, row.index, fields)


def _example(split: str, frozen: Row) -> Example:
    row = published(frozen)
    return Example(
        item=f"{split}/{frozen.text('kind')}/{row.index}",
        prompt=question_prompt(row.text("instruction"), row.optional_text("input")),
        answer=f" {trained_text(row, OPTIONS)}",
        target=row.text("answer"),
    )


def _question(row: Row) -> str:
    return folded(row.text("question"))


def _folder() -> Traversable:
    return frozen_folder()
