"""GSM8K: grade-school word problems with worked answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ablora.data._base import DataError, Example, Splits
from ablora.data._fields import check_count
from ablora.data._rows import Row, fingerprint, first_present, given_path, read_json_lines, refuse_repeats
from ablora.data._split import hold_out, sample
from ablora.data._worked import final_number, is_same_answer, question_key, worked_example

_WANTED = "FOLDER, a folder with gsm8k_train.jsonl and gsm8k_test.jsonl (or train.jsonl and test.jsonl)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gsm8k:
    """Word problems in the form of GSM8K (Cobbe et al. 2021, arXiv:2110.14168; 7473 train and 1319 test as published).

    Format: JSON Lines with `question` and `answer`, the answer ending in "#### n".
    Prompt: "Question: {question}\\nAnswer:", then " {answer}" without the <<48/2=24>> annotations (`keep_calculator`
    keeps them). Not the Alpaca frame of MetaMath: it costs 48 tokens of the embedded tokenizer, this one 12; and not
    LoRA-GA's either, for the published protocols differ among themselves and give no common number.
    Extraction: the number after the last "####", commas removed, sign kept. The authors' own rule
    (openai/grade-school-math, dataset.py) and GOAT's read the same form; the authors take the first "####", which
    differs only where a text goes on after its answer. LoRA-GA's `####\\s*(\\d+)` reads "#### -3" as nothing and
    "#### 1,080" as 1. Correct: equal as numbers, exactly; MetaMath rounds to an integer, and MiLoRA also accepts 100
    times and 1/100 of the answer.
    Validation: `validation_items` of the train file, by a hash of the question, chosen before `max_train_items`
    applies: the same items whatever the order of the file and however few are trained on.
    Errors: DataError for missing or broken files, rows without their fields, and questions that occur twice.
    """

    revision: ClassVar[int] = 1

    name: str = field(default="gsm8k", metadata={"identity": False})
    path: str | None = field(default=None, metadata={"identity": False})
    validation_items: int = 200
    max_train_items: int | None = None
    max_test_items: int | None = None
    keep_calculator: bool = False

    def __post_init__(self) -> None:
        check_count(self.name, "validation_items", self.validation_items)
        check_count(self.name, "max_train_items", self.max_train_items, optional=True)
        check_count(self.name, "max_test_items", self.max_test_items, optional=True)

    def fingerprint(self) -> str:
        """sha256 over the train file's and the test file's contents, in this order."""
        return fingerprint(self._files())

    def load(self) -> Splits:
        """The three splits, disjoint also by question text."""
        train_file, test_file = self._files()
        train, test = read_json_lines(train_file), read_json_lines(test_file)
        refuse_repeats([*train, *test], "question")
        try:
            rest, held = hold_out(train, question_key, self.validation_items, "validation")
        except DataError as error:
            raise DataError(f"dataset {self.name}: field 'validation_items', {train_file}: {error}") from error
        return Splits(
            train=self._examples("train", sample(rest, question_key, self.max_train_items, "train")),
            validation=self._examples("validation", held),
            test=self._examples("test", sample(test, question_key, self.max_test_items, "test")),
        )

    def extract(self, text: str) -> str:
        """The number after the last "####", "" if there is none."""
        return final_number(text)

    def is_correct(self, prediction: str, target: str) -> bool:
        """Equality as numbers."""
        return is_same_answer(prediction, target)

    def _examples(self, split: str, rows: list[Row]) -> tuple[Example, ...]:
        return tuple(worked_example(row, split, keep_calculator=self.keep_calculator) for row in rows)

    def _files(self) -> tuple[Path, Path]:
        folder = given_path(self.name, self.path, _WANTED)
        train = first_present(self.name, folder, ("gsm8k_train.jsonl", "train.jsonl"))
        return train, first_present(self.name, folder, ("gsm8k_test.jsonl", "test.jsonl"))
