"""Worked answers: text that ends in "#### n", the schema of GSM8K, shared by every data set that has it."""

from __future__ import annotations

import re

from ablora.data._base import DataError, Example
from ablora.data._frames import question_prompt
from ablora.data._numbers import NUMBER, plain, same_number
from ablora.data._rows import Row, folded

_FINAL = re.compile(rf"\s*\$?\s*({NUMBER})")
_CALCULATOR = re.compile(r"<<[^<>]*>>")


def worked_example(row: Row, split: str, *, keep_calculator: bool = False) -> Example:
    """An Example from a row with `question` and `answer`; <<48/2=24>> annotations go unless kept."""
    answer = row.text("answer").strip()
    target = final_number(answer)
    if not target:
        shown = answer[-60:]
        raise DataError(f"{row.where}: field 'answer' ends {shown!r}; it must end with '#### ' and a number")
    if not keep_calculator:
        answer = _CALCULATOR.sub("", answer)
    return Example(f"{split}/{row.index}", question_prompt(row.text("question")), f" {answer}", target)


def question_key(row: Row) -> str:
    """What identifies a row for splitting: its question, up to case and spacing."""
    return folded(row.text("question"))


def final_number(text: str) -> str:
    """The number right after the last "####" (a "$" may stand between), without commas; "" if there is none."""
    _, mark, tail = text.rpartition("####")
    found = _FINAL.match(tail) if mark else None
    return plain(found.group(1)) if found else ""


def is_same_answer(prediction: str, target: str) -> bool:
    """Equality as numbers, exactly: "72" equals "72.0"; "" equals nothing."""
    return same_number(prediction, target)
