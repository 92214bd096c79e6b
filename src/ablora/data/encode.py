"""Examples to token ids, the answer's place known exactly and nothing cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, overload

import numpy as np

from ablora.data._base import DataError, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class RowTooLongError(DataError):
    """An example has more tokens than allowed; `encode_all` counts it, `encode` raises it."""

    def __init__(self, item: str, tokens: int, max_tokens: int) -> None:
        self.item, self.tokens, self.max_tokens = item, tokens, max_tokens
        super().__init__(f"item {item}: {tokens} tokens; legal: at most max_tokens={max_tokens}")

    def __reduce__(self) -> tuple:
        return type(self), (self.item, self.tokens, self.max_tokens)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens: bos (where the tokenizer has one), prompt, answer, eos.

    The loss is on input_ids[answer_start:], eos included; input_ids[:answer_start] is what generation starts from.
    """

    input_ids: tuple[int, ...]
    answer_start: int
    item: str


@dataclass(frozen=True, slots=True)
class EncodedSplit:
    """The encoded examples of a split in their order, and the item ids of those over the limit."""

    items: Sequence[Encoded]
    dropped: tuple[str, ...]


class Flat(Sequence[Encoded]):
    """Items whose tokens lie one after another in an array, and become tuples when they are asked for.

    The array may be a file that is mapped into memory, which processes share. As tuples a token took 8 bytes, and 32
    more for its number where that is over 256, in each process.
    """

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray, answer_starts: np.ndarray, items: Sequence[str]):
        assert len(lengths) == len(answer_starts) == len(items)
        self._tokens, self._answer_starts, self._items = tokens, answer_starts, items
        self._ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Encoded, ...]: ...
    def __getitem__(self, index: int | slice) -> Encoded | tuple[Encoded, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        at = range(len(self))[index]
        own = self._tokens[self._ends[at] : self._ends[at + 1]]
        return Encoded(tuple(own.tolist()), int(self._answer_starts[at]), self._items[at])


def encode(
    example: Example, tokenizer: PreTrainedTokenizerFast, max_tokens: int, *, vocab_size: int | None = None
) -> Encoded:
    """Tokens of one example; RowTooLongError over `max_tokens` (bos and eos count), for nothing is ever cut.

    Prompt and answer are tokenised apart and then joined: one pass over their joined text may merge across the border,
    and then no mask separates them. Special tokens written in the text stay text. `vocab_size` is the model's.
    """
    prompts, answers = _ids([example.prompt], tokenizer), _ids([example.answer], tokenizer)
    return _join(example, prompts[0], answers[0], tokenizer, max_tokens, vocab_size)


def encode_prompt(
    example: Example, tokenizer: PreTrainedTokenizerFast, *, vocab_size: int | None = None
) -> tuple[int, ...]:
    """What generation starts from: the tokens before the answer, also of an example whose answer is too long."""
    start = _start(_ids([example.prompt], tokenizer)[0], tokenizer)
    if not start:
        raise DataError(f"item {example.item}: field 'prompt' has no tokens; it must have at least one")
    _check_ids(example, start, tokenizer, vocab_size)
    return start


def encode_all(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, max_tokens: int, *, vocab_size: int | None = None
) -> EncodedSplit:
    """Tokens of a split; rows over `max_tokens` are dropped and reported, DataError if no row is left."""
    if not examples:
        return EncodedSplit((), ())
    prompts, answers = _ids([e.prompt for e in examples], tokenizer), _ids([e.answer for e in examples], tokenizer)
    items: list[Encoded] = []
    over: list[RowTooLongError] = []
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        try:
            items.append(_join(example, prompt, answer, tokenizer, max_tokens, vocab_size))
        except RowTooLongError as error:
            over.append(error)
    if not items:
        raise DataError(
            f"all {len(examples)} rows ({over[0].item} to {over[-1].item}) have more than max_tokens={max_tokens} "
            f"tokens; the shortest has {min(error.tokens for error in over)}"
        )
    return EncodedSplit(tuple(items), tuple(error.item for error in over))


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    # Without split_special_tokens a question that quotes "<|endoftext|>" would end there.
    # verbose=False: the warning about model_max_length is about a limit that is checked here.
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _start(prompt: list[int], tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    bos = cast("int | None", tokenizer.bos_token_id)
    return tuple(prompt) if bos is None else (bos, *prompt)


def _join(
    example: Example,
    prompt: list[int],
    answer: list[int],
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    vocab_size: int | None,
) -> Encoded:
    start, eos = _start(prompt, tokenizer), cast("int | None", tokenizer.eos_token_id)
    if eos is None:
        raise DataError("the tokenizer has no eos_token; an answer must be able to end")
    if not start or not answer:
        empty = "answer" if start else "prompt"
        raise DataError(f"item {example.item}: field {empty!r} has no tokens; it must have at least one")
    ids = (*start, *answer, eos)
    _check_ids(example, ids, tokenizer, vocab_size)
    if len(ids) > max_tokens:
        raise RowTooLongError(example.item, len(ids), max_tokens)
    return Encoded(ids, len(start), example.item)


def _check_ids(
    example: Example, ids: tuple[int, ...], tokenizer: PreTrainedTokenizerFast, vocab_size: int | None
) -> None:
    if vocab_size is not None and max(ids) >= vocab_size:
        raise DataError(
            f"item {example.item}: token id {max(ids)} ({tokenizer.convert_ids_to_tokens(max(ids))!r}) is not in the "
            f"model's vocabulary; legal: 0 to {vocab_size - 1}. The tokenizer is not this model's"
        )
