"""The numbers of each revision: whoever changes an example, a prompt or a split raises `revision` and says so here."""

import hashlib
import json

import pytest

from ablora.data._base import Dataset
from ablora.data.arithmetic import Arithmetic
from ablora.data.gsm8k import Gsm8k
from ablora.data.llm_adapters import LlmAdapters
from ablora.data.stdlib_choice import StdlibChoice

GOLDEN = {
    "arithmetic": (1, "32bcd83f552bf074"),
    "gsm8k": (1, "e4891f015d194792"),
    "llm_adapters": (1, "73e9c1f434c35c27"),
    "llm_adapters frame": (1, "de4d83448638c495"),
    "llm_adapters numbers": (1, "0c8075bce2bd03b5"),
    "stdlib_choice": (1, "cf458463f03146fe"),
}


@pytest.fixture
def datasets(tmp_path, json_lines) -> dict[str, Dataset]:
    def word_problems(first: int, last: int) -> list[dict[str, str]]:
        return [{"question": f"{i} and {i}?", "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i:,}"}
                for i in range(first, last)]  # fmt: skip

    def choices(first: int, last: int) -> list[dict[str, str]]:
        names = [("true", "false")[i % 2] for i in range(first, last)]
        return [{"instruction": f"Is {i} even?\n\nAnswer format: true/false", "input": "", "answer": name,
                 "output": f"the correct answer is {name}"} for i, name in enumerate(names, first)]  # fmt: skip

    json_lines(tmp_path / "train.jsonl", word_problems(0, 60))
    json_lines(tmp_path / "test.jsonl", word_problems(490, 510))
    (tmp_path / "train.json").write_text(json.dumps(choices(0, 60)))
    (tmp_path / "test.json").write_text(json.dumps(choices(100, 120)))
    numbers = [{"instruction": f" {i} / 3 ? ", "output": "?", "answer": str(i / 3)} for i in range(40)]
    (tmp_path / "numbers.json").write_text(json.dumps(numbers))
    counts = {"path": str(tmp_path), "validation_items": 10, "max_train_items": 30, "max_test_items": 9}
    return {
        "arithmetic": Arithmetic(),
        "gsm8k": Gsm8k(**counts),
        "llm_adapters": LlmAdapters(**counts),
        "llm_adapters frame": LlmAdapters(**counts, template="llm_adapters"),
        "llm_adapters numbers": LlmAdapters(**counts | {"path": str(tmp_path / "numbers.json")}, test_items=10),
        "stdlib_choice": StdlibChoice(),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_the_numbers_of_this_revision(datasets, name):
    splits = datasets[name].load()
    every = [*splits.train, *splits.validation, *splits.test]
    examples = [(e.item, e.prompt, e.answer, e.target) for e in every]
    found = (datasets[name].revision, hashlib.sha256(json.dumps(examples).encode()).hexdigest()[:16])
    assert found == GOLDEN[name], "numbers changed: raise `revision`, then write the new pair here"
