"""Running text for evaluations that predict every token of it: corpora, and how one is cut into chunks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, runtime_checkable

from ablora.data._base import DataError
from ablora.data._rows import Readable, fingerprint
from ablora.spec import LABEL, check

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@runtime_checkable
class Corpus(Protocol):
    """Running text: configuration and behaviour in one frozen dataclass."""

    @property
    def name(self) -> str:
        """What its chunks are called by."""
        ...

    def fingerprint(self) -> str:
        """sha256 (hex) of the text's bytes; never of a path. DataError where there is no text."""
        ...

    def documents(self) -> tuple[str, ...]:
        """The text, cut only where it has documents of its own."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The documentation and source that the embedded base never saw, frozen in the package.

    Whole names were held out of its training (`models/pico/README.md`); another base has probably seen them.
    """

    @property
    def name(self) -> str:
        return "held_out"

    def fingerprint(self) -> str:
        return fingerprint([_held_out()])

    def documents(self) -> tuple[str, ...]:
        lines = _held_out().read_bytes().decode().split("\n")
        return tuple(json.loads(line)["text"] for line in lines if line)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """Any local UTF-8 file as one document, byte for byte (WikiText's test split is the papers' choice).

    Errors: DataError if the file is absent, blank or not UTF-8, in planning.
    """

    name: str = "text"
    """What its chunks are called by: letters, digits, `_`, `.`, `-`."""
    path: str | None = field(default=None, metadata=LABEL)

    def __post_init__(self) -> None:
        check(bool(re.fullmatch(r"[\w.-]+", self.name)), "name", self.name, "letters, digits, '_', '.' and '-'")

    def fingerprint(self) -> str:
        self.documents()
        return fingerprint([self._file()])

    def documents(self) -> tuple[str, ...]:
        file = self._file()
        found = file.stat()
        return (_text_of(file, found.st_size, found.st_mtime_ns, found.st_ino),)

    def _file(self) -> Path:
        file = None if self.path is None else Path(self.path).expanduser()
        if file is None or not file.is_file():
            raise DataError(f"corpus {self.name}: field 'path' is {self.path!r}; it must be a file of UTF-8 text")
        return file


@lru_cache(maxsize=4)
def _text_of(file: Path, size: int, mtime_ns: int, inode: int) -> str:
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8; a corpus must be UTF-8 text") from error
    if not text.strip():
        raise DataError(f"{file}: is blank; a corpus must have text")
    return text


def _held_out() -> Readable:
    return files("ablora.models") / "pico" / "held_out.jsonl"


class Chunk(NamedTuple):
    """A piece of a corpus as a model sees it: a token of context, then text; the last `scored` tokens count."""

    item: str
    """"<corpus>-<index>", the index counted over the whole corpus, from 0."""
    input_ids: tuple[int, ...]
    scored: int

    @property
    def answer_start(self) -> int:
        """Where the tokens that count begin."""
        return len(self.input_ids) - self.scored


def cut(name: str, stream: Sequence[int], start_id: int, chunk_tokens: int, stride_tokens: int | None) -> list[Chunk]:
    """All chunks of a corpus; each token of the stream counts in exactly one of them.

    A chunk is `start_id` and up to w = chunk_tokens - 1 tokens of text, so that the first of them is predicted too;
    chunk i begins at token i * stride (null: w). With a stride below w, what the chunk before has counted is context.
    The last chunk ends with the stream and may be shorter.
    """
    window = chunk_tokens - 1
    stride = window if stride_tokens is None else stride_tokens
    chunks, done = [], 0
    for index, begin in enumerate(range(0, len(stream), stride)):
        end = min(begin + window, len(stream))
        chunks.append(Chunk(f"{name}-{index:04d}", (start_id, *stream[begin:end]), end - done))
        done = end
        if end == len(stream):
            break
    return chunks


def spread(count: int, most: int | None) -> list[int]:
    """The `most` of `count` indices in the middles of as many equal parts: no chance, no preference for the front."""
    if most is None or most >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]


def stream_of(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> tuple[int, tuple[int, ...]]:
    """(start, tokens): the token that each chunk begins with, and the corpus as one stream.

    Documents stand one behind the other with the start token between them: the tokenizer's bos, as the items of data
    sets begin, or its end-of-text token where there is none. Special tokens written in a text stay text.
    """
    start = cast("int | None", tokenizer.bos_token_id)
    start = cast("int | None", tokenizer.eos_token_id) if start is None else start
    if start is None:
        raise DataError(
            f"corpus {corpus.name}: the tokenizer has neither bos_token nor eos_token to begin a chunk with"
        )
    stream: list[int] = []
    texts = list(corpus.documents())
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    for ids in encoded:
        stream += [start, *ids]
    if max(stream) >= vocab_size:
        bad = tokenizer.convert_ids_to_tokens(max(stream))
        raise DataError(
            f"corpus {corpus.name}: token id {max(stream)} ({bad!r}) is not in the model's vocabulary; legal: 0 to "
            f"{vocab_size - 1}. The tokenizer is not this model's"
        )
    return start, tuple(stream[1:])
