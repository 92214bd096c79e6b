"""The LLM-Adapters schema: tasks, frames, options, numbers, and what is said about broken files."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablora.data._base import DataError, Splits
from ablora.data._options import FAMILIES, find_answer
from ablora.data.llm_adapters import LlmAdapters


def choice(text: str, answer: str = "answer1", options: str = "answer1/answer2/answer3") -> dict[str, str]:
    instruction = f"{text}\n\nAnswer format: {options}"
    return {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def number(text: str, answer: str) -> dict[str, str]:
    return {"instruction": text, "input": "", "output": "So it is 99.", "answer": answer}


def write_task(folder: Path, train: list | None, test: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.json").write_text(json.dumps(test))
    if train is not None:
        (folder / "train.json").write_text(json.dumps(train))
    return folder


@pytest.fixture
def tasks(tmp_path):
    write_task(tmp_path / "colors", [choice(f"Which color {i}?") for i in range(30)], [choice("Which color?")] * 2)
    truths = [choice(f"Is it {i}?", "true", "true/false") for i in range(30)]
    write_task(tmp_path / "truths", truths, [choice("Is it?", "false", "true/false")])
    write_task(tmp_path / "only", None, [choice("Which?", "option2", "option1/option2")])
    return tmp_path


def small(path, **fields) -> LlmAdapters:
    return LlmAdapters(path=str(path), **{"validation_items": 5, "test_items": 5, **fields})


def test_one_task_folder(tasks):
    splits = small(tasks / "colors").load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [25, 5, 2]
    first = splits.test[0]
    assert first.item == "test/0"
    assert first.prompt == "Question: Which color?\n\nAnswer format: answer1/answer2/answer3\nAnswer:"
    assert (first.answer, first.target) == (" the correct answer is answer1", "answer1")


def test_a_combination_names_its_tasks(tasks):
    splits = small(tasks, tasks=["colors", "truths"], test_only=["only"], max_test_items=None).load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [55, 5, 4]
    assert [e.item for e in splits.test] == ["test/colors/0", "test/colors/1", "test/truths/0", "test/only/0"]
    data = small(tasks, tasks=("colors", "truths"))
    assert data.extract("it is false") == "false"
    assert data.extract("option1, then answer3") == "answer3"


def test_a_data_set_for_testing_only(tasks):
    splits = small(tasks, test_only=("only",)).load()
    assert (splits.train, splits.validation, len(splits.test)) == ((), (), 1)


def test_truncation_moves_nothing_and_the_template_neither(tasks):
    data = small(tasks, tasks=("colors", "truths"))
    cut = dataclasses.replace(data, max_train_items=12, template="llm_adapters").load()
    assert [e.item for e in cut.validation] == [e.item for e in data.load().validation]
    assert len(cut.train) == 12
    assert {e.item for e in cut.train} < {e.item for e in data.load().train}


def test_the_published_frame_is_literal(tasks):
    example = small(tasks / "colors", template="llm_adapters").load().test[0]
    assert example.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n"
        "\n                ### Instruction:\n                Which color?\n\nAnswer format: answer1/answer2/answer3"
        "\n                \n                ### Response:\n                "
    )
    assert example.answer == "the correct answer is answer1"


def test_a_train_row_that_is_also_tested_is_left_out(tasks):
    tested = choice("Which color?")
    write_task(tasks / "colors", [tested, *(choice(f"Q{i}") for i in range(9))], [tested])
    splits = small(tasks / "colors").load()
    assert len(splits.train) + len(splits.validation) == 9


def test_a_single_file_of_numbers(tmp_path):
    rows = [number(f" Add {i} and a half ? ", f"{i}.5") for i in range(40)]
    rows.append(number("One third?", "0.3333333333333333"))
    rows.append(rows[0])
    (tmp_path / "sums.json").write_text(json.dumps(rows))
    data = small(tmp_path / "sums.json")
    splits = data.load()
    parts = [{e.prompt for e in part} for part in (splits.train, splits.validation, splits.test)]
    assert (len(splits.validation), len(splits.test)) == (5, 5)
    assert sum(len(p) for p in parts) == 41, "the row that occurs twice is in one part only"
    third = next(e for part in (splits.train, splits.validation, splits.test) for e in part if "third" in e.prompt)
    assert (third.answer, third.target) == (" the correct answer is 0.3333", "0.3333333333333333")
    assert data.is_correct(data.extract(third.answer), third.target)


@pytest.mark.parametrize(
    ("text", "options", "answer"),
    [
        ("the correct answer is answer3, not answer1", FAMILIES[2], "answer3"),
        ("untrue", FAMILIES[0], "true"),
        ("True", FAMILIES[0], ""),
        ("answer10", ("answer1", "answer10"), "answer10"),
        ("2 + 3 makes 1,005.", (), "1005"),
        ("none", (), ""),
    ],
)
def test_extraction(text, options, answer):
    assert find_answer(text, options) == answer


@given(st.sampled_from(FAMILIES), st.data(), st.text(alphabet="xyz ?!\n", max_size=30))
def test_extraction_round_trip(family, data, around):
    answer = data.draw(st.sampled_from(family))
    assert find_answer(f"{around}the correct answer is {answer}{around}", family) == answer


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [("8", "8.0", True), ("8.0009", "8", True), ("8.01", "8", False), ("", "8", False), ("true", "false", False)],
)
def test_comparison(prediction, target, right):
    assert LlmAdapters().is_correct(prediction, target) is right


def test_the_options_are_read_again_when_a_file_changes(tasks):
    data = small(tasks / "only", test_only=())
    write_task(tasks / "only", [choice("A?")], [choice("B?")])
    assert data.extract("option1 answer2") == "answer2"
    write_task(tasks / "only", [number("A?", "1")], [number("B?", "2")])
    assert data.extract("option1 answer2") == "2"
    test = tasks / "only" / "test.json"
    test.write_text(json.dumps([choice("A?", "x", "x/y")]))
    (tasks / "only" / "train.json").write_text(json.dumps([choice("A?", "x", "x/y")]))
    assert data.extract("a or y") == "y"
    old = test.stat().st_mtime_ns
    test.write_text(json.dumps([choice("A?", "x", "x/a")]))  # as long as before
    os.utime(test, ns=(old, old + 10**9))
    assert data.extract("a or y") == "a"


def is_disjoint(splits: Splits) -> bool:
    parts = [{e.prompt for e in part} for part in (splits.train, splits.validation, splits.test)]
    return len(set.union(*parts)) == sum(map(len, parts))


PUBLISHED = {"boolq": (9427, 3270), "ARC-Easy": (2249, 2376), "ARC-Challenge": (1119, 1172), "openbookqa": (4957, 500)}


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_tasks(shared, task):
    data = LlmAdapters(path=str(shared / "commonsense" / task))
    splits = data.load()
    train, test = PUBLISHED[task]
    assert (len(splits.train) + len(splits.validation), len(splits.validation), len(splits.test)) == (train, 120, test)
    assert is_disjoint(splits)
    assert all(data.is_correct(data.extract(e.answer), e.target) for e in splits.test)


@pytest.mark.parametrize("task", ["piqa", "social_i_qa", "winogrande"])
def test_published_tasks_without_a_train_file(shared, task):
    data = LlmAdapters(path=str(shared / "commonsense"), test_only=(task,))
    assert all(data.is_correct(data.extract(e.answer), e.target) for e in data.load().test)


@pytest.mark.parametrize("file", ["SVAMP", "AddSub", "MultiArith", "SingleEq"])
def test_published_numbers(shared, file):
    data = LlmAdapters(path=str(shared / f"math/{file}.json"), validation_items=50, test_items=100)
    splits = data.load()
    assert (len(splits.validation), len(splits.test)) == (50, 100)
    assert is_disjoint(splits)
    assert all(data.is_correct(data.extract(e.answer), e.target) for e in [*splits.train, *splits.test])


def fails(data: LlmAdapters, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        data.load()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_no_path():
    fails(LlmAdapters(), "'path'", "dataset.path=")


def test_an_unknown_task(tasks):
    fails(small(tasks, tasks=("colours",)), "colours", str(tasks), "colors, only, truths")


def test_a_folder_of_tasks_without_a_choice(tasks):
    fails(small(tasks), "colors, only, truths", "dataset.tasks=[...]")


def test_a_task_to_train_on_without_a_train_file(tasks):
    fails(small(tasks, tasks=("only",)), str(tasks / "only" / "train.json"), "not there")


def test_a_row_without_a_field(tasks):
    write_task(tasks / "colors", [choice("Which?"), {"instruction": "Which?"}], [choice("Which color?")])
    fails(small(tasks / "colors"), "train.json: row 2", "'answer'", "is missing")


def test_an_answer_outside_its_format(tasks):
    write_task(tasks / "colors", [choice("Which?", "answer4")], [choice("Which color?")])
    fails(small(tasks / "colors"), "train.json: row 1", "'answer4'", "answer1, answer2, answer3")


def test_an_answer_of_no_family(tasks):
    write_task(tasks / "colors", [number("Which?", "blue")], [choice("Which color?")])
    fails(small(tasks / "colors"), "train.json: row 1", "'blue'", "a number or one of true/false")


def test_an_output_that_contradicts_its_answer(tasks):
    wrong = choice("Which?") | {"output": "the correct answer is answer2"}
    write_task(tasks / "colors", [wrong] * 9, [choice("Which color?")])
    fails(small(tasks / "colors"), "train.json: row", "'output'", "'answer2'", "'answer1'", "must agree")


def test_numbers_and_choices_together(tasks):
    write_task(tasks / "sums", [number("1+1?", "2")], [number("1+2?", "3")])
    fails(small(tasks, tasks=("colors", "sums")), "sums/train.json: row 1", "colors/train.json: row 1", "dataset.tasks")


def test_invalid_json(tasks):
    (tasks / "colors" / "train.json").write_text('[\n{"instruction": }]')
    fails(small(tasks / "colors"), "train.json:2", "invalid JSON")


@pytest.mark.parametrize(("content", "said"), [("[]", "is empty"), ("", "is empty"), ("{}", "must be a list")])
def test_a_file_without_rows(tasks, content, said):
    (tasks / "colors" / "test.json").write_text(content)
    fails(small(tasks / "colors"), "test.json", said)


def test_more_validation_than_rows(tasks):
    fails(small(tasks / "colors", validation_items=30), "'validation_items'", "30", "1 to 29")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_train_items": 0}, "'max_train_items' is 0.*above 0"),
        ({"test_items": -1}, "'test_items' is -1.*above 0"),
        ({"template": "alpaca"}, "'template' is 'alpaca'.*short, llm_adapters"),
        ({"tasks": "boolq"}, r"'tasks' is 'boolq'.*dataset.tasks=\[boolq\]"),
        ({"tasks": ["a"], "test_only": ["a"]}, r"\['a'\] twice"),
    ],
)
def test_fields_out_of_range(fields, said):
    with pytest.raises(DataError, match=said):
        LlmAdapters(**fields)
