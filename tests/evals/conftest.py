"""A tokenizer of 97 words for the tiny bases, and text of those words."""

import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))  # small.py: real runs that are small


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """`w5` is token 5; token 0 is the end of a text and begins one."""
    tokenizer = Tokenizer(WordLevel({"<end>": 0, **{f"w{i}": i for i in range(1, 97)}}, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 130 words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    ids = torch.randint(1, 97, (130,), generator=torch.Generator().manual_seed(2)).tolist()
    path.write_text(" ".join(f"w{i}" for i in ids))
    return path
