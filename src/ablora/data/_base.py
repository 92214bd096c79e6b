"""What every data set is: examples in three splits, a content fingerprint, and a rule that checks an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from ablora.spec import UserError


class DataError(UserError):
    """A user's mistake in data: the message names the file, line or row, the field, its value and the legal values."""


@dataclass(frozen=True, slots=True)
class Example:
    """One item: a prompt, the text trained after it, and the answer that can be checked."""

    item: str
    """Stable id: "<split>/<index>" ("<split>/<task>/<index>" in a combination), index from 0 in the file read."""
    prompt: str
    """What the model is given."""
    answer: str
    """What it is trained to produce after the prompt; the loss is on these tokens and the end-of-text token."""
    target: str
    """The checkable answer, e.g. "72" or "answer4"."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The three disjoint parts of a data set."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


@runtime_checkable
class Dataset(Protocol):
    """A data set value: configuration and behaviour in one frozen dataclass."""

    revision: ClassVar[int]
    """Raised when its numbers (examples, prompts, extraction) change."""

    def fingerprint(self) -> str:
        """sha256 (hex) of the content it reads, all files that matter in a fixed order; never of a path."""
        ...

    def load(self) -> Splits:
        """Read, check and split; DataError for what the user can mend."""
        ...

    def extract(self, text: str) -> str:
        """The checkable answer in generated text, "" if there is none."""
        ...

    def is_correct(self, prediction: str, target: str) -> bool:
        """Whether an extracted prediction equals the target; "" never does."""
        ...
