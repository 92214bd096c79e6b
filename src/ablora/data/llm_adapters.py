"""Tasks in the schema of LLM-Adapters: commonsense choices and arithmetic word problems."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

from ablora.data._base import DataError, Example, Splits
from ablora.data._fields import as_tuple, check_count
from ablora.data._frames import llm_adapters_prompt, question_prompt
from ablora.data._options import common_options, find_answer, is_same, row_options, trained_text
from ablora.data._rows import Row, fingerprint, first_present, folded, given_path, read_json_list
from ablora.data._split import hold_out, sample

Template = Literal["short", "llm_adapters"]
_WANTED = (
    "a task's FOLDER with train.json and test.json, a single FILE.json, or a folder of tasks with dataset.tasks=[...]"
)


class _TaskRow(NamedTuple):
    task: str
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmAdapters:
    """Rows of (instruction, input, output, answer), as LLM-Adapters publishes them (Hu et al. 2023, arXiv:2304.01933).

    `path` is one task's folder (train.json, test.json), one JSON file, or with `tasks` and `test_only` a folder of task
    folders: `tasks` are trained on and tested on, of `test_only` only test.json is read. A single file (SVAMP, AddSub,
    MultiArith, SingleEq) is split by a hash of the item: `test_items` for testing, then `validation_items`.
    Validation comes from the train rows in the same way (120 as published), before `max_train_items` applies.
    Train rows whose prompt is also a test prompt are left out (2 of the 2251 of ARC-Easy as published); repeats within
    one published file stay (5 in OpenBookQA's train, 24 in SIQA's test), so that test sizes are the published ones.

    Prompt: `short` is "Question: {instruction}\\nAnswer:" followed by " {output}"; the default, because the published
    frame adds 40 tokens to a BoolQ row of 73 (medians, embedded tokenizer). `llm_adapters` is the training string of
    the published finetune.py with its literal indents; it serves for testing too, where the published evaluation
    differs by a blank and an indent. Published runs also put loss on the prompt; here never.
    Extraction: the first match of the data set's options, as published per task; in a combination of tasks the options
    of all of them count. For numbers the last number, right within 0.001 (both published in evaluate.py). Training on
    numbers: see `trained_text`.
    Errors: DataError for missing or broken files, unknown tasks, an answer outside its options.
    """

    revision: ClassVar[int] = 1

    name: str = field(default="llm_adapters", metadata={"identity": False})
    path: str | None = field(default=None, metadata={"identity": False})
    tasks: tuple[str, ...] = ()
    test_only: tuple[str, ...] = ()
    template: Template = "short"
    validation_items: int = 120
    test_items: int = 200
    max_train_items: int | None = None
    max_test_items: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", as_tuple(self.name, "tasks", self.tasks))
        object.__setattr__(self, "test_only", as_tuple(self.name, "test_only", self.test_only))
        check_count(self.name, "validation_items", self.validation_items)
        check_count(self.name, "test_items", self.test_items)
        check_count(self.name, "max_train_items", self.max_train_items, optional=True)
        check_count(self.name, "max_test_items", self.max_test_items, optional=True)
        if self.template not in get_args(Template):
            legal = ", ".join(get_args(Template))
            raise DataError(f"dataset {self.name}: field 'template' is {self.template!r}; legal: {legal}")
        named = [*self.tasks, *self.test_only]
        repeated = sorted({task for task in named if named.count(task) > 1})
        if repeated:
            raise DataError(
                f"dataset {self.name}: {repeated} twice in 'tasks' and 'test_only'; each task may occur once"
            )

    def fingerprint(self) -> str:
        """sha256 over the contents: train files in the order of `tasks`, then test files (`tasks`, `test_only`)."""
        return fingerprint(file for _, file in [*self._train_files(), *self._test_files()])

    def load(self) -> Splits:
        """The three splits, disjoint by prompt; train and validation are empty if there is nothing but `test_only`."""
        train, test = _read(self._train_files()), _read(self._test_files())
        common_options(item.row for item in [*train, *test])
        if not self._test_files():
            train, test = self._hold_out(train, self.test_items, "test")
        unseen = {_question(item) for item in test}
        train = [item for item in train if _question(item) not in unseen]
        rest, held = self._hold_out(train, self.validation_items, "validation") if train else ([], [])
        return Splits(
            train=self._examples("train", sample(rest, _content, self.max_train_items, "train")),
            validation=self._examples("validation", held),
            test=self._examples("test", sample(test, _content, self.max_test_items, "test")),
        )

    def extract(self, text: str) -> str:
        """The first option (numeric tasks: the last number) in the text, "" if there is none; reads the files once."""
        return find_answer(text, _options(self._stamps()))

    def is_correct(self, prediction: str, target: str) -> bool:
        """The same option, or the same number within 0.001."""
        return is_same(prediction, target)

    def _examples(self, split: str, items: Iterable[_TaskRow]) -> tuple[Example, ...]:
        return tuple(self._example(split, item) for item in items)

    def _example(self, split: str, item: _TaskRow) -> Example:
        row = item.row
        task = f"{item.task}/" if item.task else ""
        answer = trained_text(row, row_options(row))
        short = self.template == "short"
        frame = question_prompt if short else llm_adapters_prompt
        return Example(
            item=f"{split}/{task}{row.index}",
            prompt=frame(row.text("instruction"), row.optional_text("input")),
            answer=f" {answer}" if short else answer,
            target=row.text("answer").strip(),
        )

    def _hold_out(self, items: list[_TaskRow], count: int, part: str) -> tuple[list[_TaskRow], list[_TaskRow]]:
        try:
            return hold_out(items, _question, count, part)
        except DataError as error:
            raise DataError(f"dataset {self.name}: field '{part}_items', {self.path}: {error}") from error

    def _root(self) -> Path:
        root = given_path(self.name, self.path, _WANTED)
        named = [*self.tasks, *self.test_only]
        there = sorted(f.name for f in root.iterdir() if (f / "test.json").is_file()) if root.is_dir() else []
        unknown = [task for task in named if task not in there]
        if unknown:
            exist = ", ".join(there) or "none (a task is a folder with test.json)"
            raise DataError(f"dataset {self.name}: no task folder {unknown} in {root}; those that exist: {exist}")
        if there and not named and not (root / "test.json").is_file():
            raise DataError(f"dataset {self.name}: {root} holds the tasks {', '.join(there)}; give dataset.tasks=[...]")
        return root

    def _train_files(self) -> list[tuple[str, Path]]:
        root = self._root()
        if root.is_file():
            return [("", root)]
        if self.tasks:
            return [(task, first_present(self.name, root / task, ("train.json",))) for task in self.tasks]
        return [] if self.test_only else [("", first_present(self.name, root, ("train.json",)))]

    def _test_files(self) -> list[tuple[str, Path]]:
        root = self._root()
        if root.is_file():
            return []
        named = [*self.tasks, *self.test_only]
        return [(task, root / task / "test.json") for task in named] or [
            ("", first_present(self.name, root, ("test.json",)))
        ]

    def _stamps(self) -> tuple[tuple[str, int, int], ...]:
        files = [file for _, file in [*self._train_files(), *self._test_files()]]
        return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _read(files: list[tuple[str, Path]]) -> list[_TaskRow]:
    return [_TaskRow(task, row) for task, file in files for row in read_json_list(file)]


@lru_cache(maxsize=32)
def _options(stamps: tuple[tuple[str, int, int], ...]) -> tuple[str, ...]:
    """Kept because an evaluation asks once per item; size and time in the key notice a file that changed."""
    return common_options(row for path, _, _ in stamps for row in read_json_list(Path(path)))


def _question(item: _TaskRow) -> str:
    return folded(f"{item.row.text('instruction')} {item.row.optional_text('input')}")


def _content(item: _TaskRow) -> str:
    return f"{_question(item)}\x1f{item.row.text('answer')}"
