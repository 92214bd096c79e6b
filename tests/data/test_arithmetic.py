"""The embedded word problems: frozen bytes, disjoint splits, right answers."""

import re
from collections import Counter
from pathlib import Path

import pytest

from ablora.data import arithmetic
from ablora.data._base import DataError
from ablora.data.arithmetic import FILES, SUMS, Arithmetic, frozen_files
from ablora.data.arithmetic_source import LARGEST, file_contents, problems, ranges, work_out
from ablora.data.arithmetic_templates import TEMPLATES

FROZEN = Path(arithmetic.__file__).parent / "frozen"


@pytest.fixture(scope="module")
def made():
    return problems()


@pytest.fixture
def copied(tmp_path):
    for name in (*FILES, SUMS):
        (tmp_path / name).write_bytes((FROZEN / name).read_bytes())
    return tmp_path


def test_the_generator_makes_the_frozen_files_byte_for_byte():
    made = file_contents()
    assert sorted(made) == sorted((*FILES, SUMS))
    for name, content in made.items():
        assert (FROZEN / name).read_bytes() == content, name
    assert sum(map(len, made.values())) < 1_200_000


def test_another_seed_makes_other_problems(made):
    assert problems(1)["test"] != made["test"]


def test_no_problem_occurs_twice(made):
    every = [p for part in made.values() for p in part]
    assert len(every) == 4600
    assert len({p.question for p in every}) == 4600
    assert len({(p.template, p.numbers) for p in every}) == 4600


def test_every_template_occurs_equally_often(made):
    for split, part in made.items():
        counts = Counter(p.template for p in part)
        assert len(counts) == len(TEMPLATES) >= 25
        assert max(counts.values()) - min(counts.values()) <= 1, split


def test_every_step_is_right(made):
    for problem in (p for part in made.values() for p in part):
        *steps, final = problem.answer.split("\n")
        assert len(steps) == problem.steps
        results = []
        for step in steps:
            left, sign, right, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step).groups()
            a, b, r = int(left), int(right), int(result)
            assert {"+": a + b == r, "-": a - b == r, "*": a * b == r, "/": r * b == a}[sign], step
            assert 1 <= r <= LARGEST
            results.append(r)
        assert final == f"#### {results[-1]}"


def test_the_text_holds_every_number_drawn(made):
    for problem in (p for part in made.values() for p in part):
        assert sorted(map(int, re.findall(r"\d+", problem.question))) == sorted(problem.numbers), problem.question


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.text[:30])
def test_a_template_uses_each_number_and_each_result(template):
    used = Counter(re.findall(r"[a-e]|r[1-4]", template.calc))
    steps = len(template.calc.split())
    assert set(used) == set(ranges(template)) | {f"r{i}" for i in range(1, steps)}
    assert all(f"{{{letter}}}" in template.text for letter in ranges(template))
    assert 2 <= steps <= 4


@pytest.mark.parametrize("calc", ["a-b", "a/b", "a*b"])
def test_results_out_of_range_are_refused(calc):
    assert work_out(calc, {"a": 20, "b": 30}) is None


def test_load():
    data = Arithmetic()
    splits = data.load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [4000, 200, 400]
    assert all(data.is_correct(data.extract(e.answer), e.target) for e in splits.train)
    assert splits.train[0].prompt.startswith("Question: ")
    assert splits.train[0].prompt.endswith("\nAnswer:")


def test_fewer_steps_and_items():
    splits = Arithmetic(steps=[2], max_train_items=50, max_test_items=20).load()
    assert (len(splits.train), len(splits.test)) == (50, 20)
    assert {e.answer.count("\n") for part in (splits.train, splits.validation, splits.test) for e in part} == {2}
    assert Arithmetic(steps=[3, 2]) == Arithmetic(steps=(2, 3))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes().replace(b"\n", b"\r\n", 1))
    with pytest.raises(DataError, match=re.escape(str(copied / name))):
        frozen_files(copied)


def test_a_missing_file_is_named(copied):
    (copied / FILES[1]).unlink()
    with pytest.raises(DataError, match=FILES[1]):
        frozen_files(copied)


def test_load_and_fingerprint_verify(copied, monkeypatch):
    before = Arithmetic().fingerprint()
    monkeypatch.setattr(arithmetic, "_folder", lambda: copied)
    assert Arithmetic().fingerprint() == before
    (copied / FILES[0]).write_text("")
    for use in (Arithmetic().load, Arithmetic().fingerprint):
        with pytest.raises(DataError, match=r"arithmetic_train\.jsonl"):
            use()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": [5]}, r"'steps' is \[5\].*2, 3, 4"),
        ({"steps": []}, r"'steps' is \[\]"),
        ({"steps": 2}, r"'steps' is 2.*dataset.steps=\[2\]"),
        ({"max_train_items": 0}, "'max_train_items' is 0.*above 0"),
    ],
)
def test_fields_out_of_range(fields, said):
    with pytest.raises(DataError, match=said):
        Arithmetic(**fields)
