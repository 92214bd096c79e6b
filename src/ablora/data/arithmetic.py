"""The embedded word problems: small, exactly checkable, the same bytes on every machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from typing import ClassVar

from ablora.data._base import DataError, Example, Splits
from ablora.data._fields import as_tuple, check_count
from ablora.data._frozen import checked_files, frozen_folder
from ablora.data._rows import Row, fingerprint, read_json_lines
from ablora.data._split import sample
from ablora.data._worked import final_number, is_same_answer, question_key, worked_example

FILES = tuple(f"arithmetic_{split}.jsonl" for split in ("train", "validation", "test"))
SUMS = "arithmetic.sha256"
STEPS = (2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Made-up word problems of 2 to 4 steps of + - * and exact /, in the schema of GSM8K (4000/200/400 items).

    Every result is a whole number from 1 to 99; the answer holds one step a line ("5*3=15"), then "#### n". No problem
    text and no pair of (template, numbers) occurs twice, within a split or across splits; the templates are shared, so
    the test asks for the skill on new numbers, not for new kinds of problem. Single steps ("5*3=15") do recur.
    `steps` keeps the problems of these numbers of steps, in all three splits: (2,) is the easiest set.
    Prompt, extraction and comparison: as `Gsm8k`.
    Source: `arithmetic_source`, which makes the frozen files again byte for byte; licence: the project's own.
    Errors: DataError if a frozen file is not the one whose sha256 is kept beside it.
    """

    revision: ClassVar[int] = 1

    name: str = field(default="arithmetic", metadata={"identity": False})
    steps: tuple[int, ...] = STEPS
    max_train_items: int | None = None
    max_test_items: int | None = None

    def __post_init__(self) -> None:
        # A list is what YAML gives; sorted, because (2, 3) and (3, 2) are the same problems and must be the same run.
        object.__setattr__(self, "steps", tuple(sorted(set(as_tuple(self.name, "steps", self.steps)))))
        if not self.steps or not set(self.steps) <= set(STEPS):
            raise DataError(f"dataset {self.name}: field 'steps' is {list(self.steps)}; legal: one or more of 2, 3, 4")
        check_count(self.name, "max_train_items", self.max_train_items, optional=True)
        check_count(self.name, "max_test_items", self.max_test_items, optional=True)

    def fingerprint(self) -> str:
        """sha256 over the contents of the frozen train, validation and test files, in this order."""
        return fingerprint(frozen_files(_folder()))

    def load(self) -> Splits:
        """The frozen splits, after checking the files' sha256."""
        train, validation, test = (read_json_lines(file) for file in frozen_files(_folder()))
        return Splits(
            train=self._examples("train", train, self.max_train_items),
            validation=self._examples("validation", validation, None),
            test=self._examples("test", test, self.max_test_items),
        )

    def extract(self, text: str) -> str:
        """The number after the last "####", "" if there is none."""
        return final_number(text)

    def is_correct(self, prediction: str, target: str) -> bool:
        """Equality as numbers."""
        return is_same_answer(prediction, target)

    def _examples(self, split: str, rows: list[Row], count: int | None) -> tuple[Example, ...]:
        kept = [row for row in rows if row.fields["steps"] in self.steps]
        return tuple(worked_example(row, split) for row in sample(kept, question_key, count, split))


def frozen_files(folder: Traversable) -> tuple[Traversable, ...]:
    """The three files in a folder, checked against its sums; DataError names the one that differs."""
    return checked_files(folder, FILES, SUMS)


def _folder() -> Traversable:
    return frozen_folder()
