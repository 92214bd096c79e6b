"""The shared real files, and tokenizers: the embedded one, and a tiny one that needs no file."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).parents[2]
PICO = REPOSITORY / "src/ablora/models/pico"


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("ABLORA_SHARED") or REPOSITORY.parent / "shared") / "data"
    if not folder.is_dir():
        pytest.skip("no shared data: set ABLORA_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 pieces, digits apart, with <|endoftext|> as bos and eos."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(["Question: How many apples are left?\nAnswer: the correct answer is true"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="session", params=["tiny", "pico"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    if request.param == "tiny":
        return request.getfixturevalue("tiny_tokenizer")
    if not (PICO / "tokenizer.json").is_file():
        pytest.skip("the embedded tokenizer is not built")
    return AutoTokenizer.from_pretrained(PICO)


@pytest.fixture
def json_lines() -> Callable[[Path, Iterable[object]], Path]:
    def write(path: Path, rows: Iterable[object]) -> Path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
