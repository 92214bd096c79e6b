"""Which answers a row in the LLM-Adapters schema allows, and how generated text is read against them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from ablora.data._base import DataError
from ablora.data._numbers import as_number, last_number, same_number
from ablora.data._rows import Row

# The published evaluation's alternatives (LLM-Adapters, commonsense_evaluate.py).
FAMILIES: tuple[tuple[str, ...], ...] = (
    ("true", "false"),
    ("solution1", "solution2"),
    ("answer1", "answer2", "answer3", "answer4", "answer5"),
    ("ending1", "ending2", "ending3", "ending4"),
    ("option1", "option2"),
)
# LLM-Adapters, evaluate.py: `miss = 0.001`. AddSub has targets such as 0.6666666666666666.
TOLERANCE = Decimal("0.001")
_FORMAT = re.compile(r"Answer format:\s*(\S+/\S+)\s*$")


def row_options(row: Row) -> tuple[str, ...]:
    """The answers that the row allows; () where it asks for a number.

    From the instruction's last "Answer format: a/b/c", else the published family that holds the answer.
    """
    answer = row.text("answer").strip()
    stated = _FORMAT.search(row.text("instruction"))
    if stated:
        options = tuple(stated.group(1).split("/"))
        if answer not in options:
            raise DataError(
                f"{row.where}: field 'answer' is {answer!r}; its 'Answer format' allows {', '.join(options)}"
            )
        return options
    family = next((family for family in FAMILIES if answer in family), None)
    if family is None and as_number(answer) is None:
        legal = ", ".join("/".join(family) for family in FAMILIES)
        raise DataError(f"{row.where}: field 'answer' is {answer!r}; it must be a number or one of {legal}")
    return family or ()


def common_options(rows: Iterable[Row]) -> tuple[str, ...]:
    """All options of the rows in order of appearance, () if every row asks for a number; DataError on a mixture."""
    options: dict[str, None] = {}
    numeric: Row | None = None
    choice: Row | None = None
    for row in rows:
        found = row_options(row)
        numeric, choice = (numeric, choice or row) if found else (numeric or row, choice)
        options.update(dict.fromkeys(found))
    if numeric and choice:
        raise DataError(
            f"{numeric.where}: field 'answer' is a number, {choice.where} asks for a choice; one data set holds one "
            "of the two, because generated text is read in different ways: split dataset.tasks"
        )
    return tuple(options)


def find_answer(text: str, options: tuple[str, ...]) -> str:
    """The first option in the text, also inside a word and case-sensitive as published; no options: the last number."""
    if not options:
        return last_number(text)
    # Longest first, so that "answer1" does not hide "answer10".
    found = re.search("|".join(re.escape(o) for o in sorted(options, key=len, reverse=True)), text)
    return found.group() if found else ""


def is_same(prediction: str, target: str) -> bool:
    """Equal text, or numbers no further apart than TOLERANCE."""
    return bool(prediction) and (prediction == target or same_number(prediction, target, TOLERANCE))


def trained_text(row: Row, options: tuple[str, ...]) -> str:
    """What a row trains on: its `output` for a choice; "the correct answer is n" for a number.

    The numeric files' `output` is a language model's own working and reaches another number than `answer` in 197 of
    SVAMP's 1000 rows, 25 of AddSub's 395, 40 of MultiArith's 600 and 24 of SingleEq's 508, hence it is not trained on.
    """
    answer = row.text("answer").strip()
    if not options:
        return f"the correct answer is {_short(answer)}"
    output = row.text("output").strip()
    found = find_answer(output, options)
    if found != answer:
        raise DataError(
            f"{row.where}: field 'output' ({output[:60]!r}) says {found!r}, field 'answer' {answer!r}; they must agree"
        )
    return output


def _short(number: str) -> str:
    """At most four decimals, no trailing zeros: "8.0" -> "8", "0.6666666666666666" -> "0.6667"."""
    return f"{as_number(number) or Decimal(0):.4f}".rstrip("0").rstrip(".")
