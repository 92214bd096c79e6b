"""GSM8K: splits, prompts, extraction, and what is said about broken files."""

import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablora.data._base import DataError
from ablora.data.gsm8k import Gsm8k


def rows(start: int, count: int) -> list[dict[str, str]]:
    return [
        {"question": f"Ben has {i} keys and finds 2. How many?", "answer": f"{i}+2 = <<{i}+2={n}>>{n}\n#### {n}"}
        for i, n in ((i, i + 2) for i in range(start, start + count))
    ]


@pytest.fixture
def folder(tmp_path, json_lines):
    json_lines(tmp_path / "train.jsonl", rows(0, 50))
    json_lines(tmp_path / "test.jsonl", rows(100, 20))
    return tmp_path


def small(folder, **fields) -> Gsm8k:
    return Gsm8k(path=str(folder), **{"validation_items": 10, **fields})


def test_an_example_is_framed_and_has_its_annotations_removed(folder):
    splits = small(folder).load()
    first = splits.test[0]
    assert first.item == "test/0"
    assert first.prompt == "Question: Ben has 100 keys and finds 2. How many?\nAnswer:"
    assert first.answer == " 100+2 = 102\n#### 102"
    assert first.target == "102"
    assert "<<100+2=102>>" in small(folder, keep_calculator=True).load().test[0].answer


def test_splits_are_disjoint_and_truncation_moves_nothing(folder):
    whole, cut = small(folder).load(), small(folder, max_train_items=7, max_test_items=5).load()
    assert [len(p) for p in (whole.train, whole.validation, whole.test)] == [40, 10, 20]
    assert [len(p) for p in (cut.train, cut.validation, cut.test)] == [7, 10, 5]
    assert whole.validation == cut.validation
    assert set(cut.train) < set(whole.train)
    assert set(cut.test) < set(whole.test)
    prompts = [e.prompt for part in (whole.train, whole.validation, whole.test) for e in part]
    assert len(set(prompts)) == len(prompts)


def test_validation_survives_a_shuffled_file(folder, json_lines):
    before = {e.prompt for e in small(folder).load().validation}
    shuffled = rows(0, 50)
    random.Random(0).shuffle(shuffled)
    json_lines(folder / "train.jsonl", shuffled)
    assert {e.prompt for e in small(folder).load().validation} == before


def test_the_fingerprint_is_of_the_content_alone(folder, tmp_path_factory, json_lines):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    json_lines(elsewhere / "gsm8k_train.jsonl", rows(0, 50))
    json_lines(elsewhere / "gsm8k_test.jsonl", rows(100, 20))
    assert small(folder).fingerprint() == small(elsewhere).fingerprint()
    json_lines(elsewhere / "gsm8k_test.jsonl", rows(100, 19))
    assert small(folder).fingerprint() != small(elsewhere).fingerprint()


def test_labels_and_paths_are_not_identity():
    assert {f.name for f in dataclasses.fields(Gsm8k) if not f.metadata.get("identity", True)} == {"name", "path"}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 48+24 = 72\n#### 72", "72"),
        ("#### 1,080", "1080"),
        ("#### -3", "-3"),
        ("#### $18.50 a day", "18.50"),
        ("####72.", "72"),
        ("#### 5\nQuestion: more\n#### 6", "6"),
        ("#### x = 3", ""),
        ("the answer is 72", ""),
        ("", ""),
    ],
)
def test_extraction(text, answer):
    assert Gsm8k().extract(text) == answer


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [("72", "72", True), ("72.0", "72", True), ("72", "73", False), ("", "72", False), ("1,080", "1080", True)],
)
def test_answers_are_compared_as_numbers(prediction, target, right):
    assert Gsm8k().is_correct(prediction, target) is right


@given(st.text(), st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9))
def test_a_worked_answer_round_trips(working, number):
    data = Gsm8k()
    assert data.is_correct(data.extract(f"{working}\n#### {number:,}"), str(number))


@given(st.text())
def test_no_text_breaks_the_extraction(text):
    data = Gsm8k()
    assert not data.is_correct(data.extract(text), "not a number")


def test_the_published_files(shared):
    data = Gsm8k(path=str(shared / "math"))
    splits = data.load()
    every = [*splits.train, *splits.validation, *splits.test]
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [7273, 200, 1319]
    assert len({e.prompt for e in every}) == len({e.item for e in every}) == 7473 + 1319
    assert all(data.is_correct(data.extract(e.answer), e.target) for e in every)
    assert not any("<<" in e.answer for e in every)


def fails(data: Gsm8k, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        data.load()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_no_path():
    fails(Gsm8k(), "'path'", "dataset.path=FOLDER", "gsm8k_train.jsonl")


def test_a_path_that_is_not_there(tmp_path):
    fails(small(tmp_path / "nowhere"), "nowhere", "does not exist", "dataset.path=")


def test_a_folder_without_the_files(tmp_path):
    fails(small(tmp_path), "gsm8k_train.jsonl", str(tmp_path / "train.jsonl"), "dataset.path=")


def test_a_row_without_a_field(folder, json_lines):
    json_lines(folder / "test.jsonl", [*rows(100, 2), {"question": "How many?"}])
    fails(small(folder), "test.jsonl:3", "'answer'", "is missing")


def test_a_field_that_is_not_text(folder, json_lines):
    json_lines(folder / "test.jsonl", [{"question": 7, "answer": "#### 1"}])
    fails(small(folder), "test.jsonl:1", "'question'", "is 7", "must be a text")


def test_a_blank_field(folder, json_lines):
    json_lines(folder / "test.jsonl", [{"question": " ", "answer": "#### 1"}])
    fails(small(folder), "test.jsonl:1", "'question'", "not blank")


def test_invalid_json(folder):
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"question": \n')
    fails(small(folder), "train.jsonl:51", "invalid JSON")


def test_a_line_that_is_no_object(folder):
    (folder / "train.jsonl").write_text("[1, 2]\n")
    fails(small(folder), "train.jsonl:1", "list", "must be an object")


def test_bytes_that_are_not_utf8(folder):
    (folder / "train.jsonl").write_bytes(b'{"question": "\xff"}\n')
    fails(small(folder), "train.jsonl", "UTF-8", "14")


def test_an_empty_file(folder):
    (folder / "test.jsonl").write_text("\n")
    fails(small(folder), "test.jsonl", "is empty", "at least one row")


def test_an_answer_without_its_mark(folder, json_lines):
    json_lines(folder / "test.jsonl", [{"question": "How many?", "answer": "It is 3."}])
    fails(small(folder), "test.jsonl:1", "'answer'", "It is 3.", "'#### '")


def test_a_question_twice_also_across_files(folder, json_lines):
    json_lines(folder / "test.jsonl", [{"question": "ben has 3 keys  and finds 2. How many?", "answer": "#### 5"}])
    fails(small(folder), "test.jsonl:1", "'question'", "train.jsonl:4", "must occur once")


def test_more_validation_than_rows(folder):
    fails(small(folder, validation_items=50), "'validation_items'", "50", "1 to 49")


@pytest.mark.parametrize("field", ["validation_items", "max_train_items", "max_test_items"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_counts_that_are_not_positive(field, value):
    with pytest.raises(DataError, match=f"'{field}' is {value!r}.*above 0"):
        Gsm8k(**{field: value})


def test_a_line_separator_inside_a_text_is_not_a_line_end(folder):
    row = {"question": "How\u2028many?", "answer": "#### 1"}
    (folder / "test.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(small(folder).load().test) == 1
