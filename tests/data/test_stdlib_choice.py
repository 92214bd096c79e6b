"""The embedded choices: frozen bytes, the published schema, and answers that the running Python confirms."""

import importlib
import inspect
import json
import random
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ablora.data import stdlib_choice
from ablora.data._base import DataError
from ablora.data._options import row_options
from ablora.data._rows import folded, read_json_lines
from ablora.data.encode import encode_all
from ablora.data.stdlib_choice import FILES, KINDS, OPTIONS, SUMS, StdlibChoice, published
from ablora.data.stdlib_choice_kinds import KINDS as MADE_BY
from ablora.data.stdlib_choice_kinds import make_pool, tell_apart
from ablora.data.stdlib_choice_objects import Thing, read_library
from ablora.data.stdlib_choice_source import PERCENT, PYTHON, ROWS, file_contents, questions, read_held_out
from ablora.models.pretrain.corpus import is_held_out
from ablora.models.pretrain.corpus import read_held_out as held_out_documents

FROZEN = Path(stdlib_choice.__file__).parent / "frozen"
SPLITS = ("train", "validation", "test")
SUBJECT = {
    "purpose": r"(?:class|function|method) (\S+?)(?:\?| do\?)$",
    "name": r"of (\S+) is described",
    "member": r"(?:class|module) (\S+) define\?$",
    "parameter": r"(?:function|method) (\S+) take\?$",
}
LIBRARY = Path(inspect.__file__).parent
IN_C = {"stat", "datetime", "heapq", "xml.etree.ElementTree"}  # in their place runs C with docstrings of its own
IS_3_11 = sys.version_info[:2] == (3, 11)


@pytest.fixture(scope="module")
def rows():
    return {split: [json.loads(line) for line in (FROZEN / name).read_text("utf-8").splitlines()]
            for split, name in zip(SPLITS, FILES)}  # fmt: skip


@pytest.fixture(scope="module")
def every(rows):
    return [row for split in SPLITS for row in rows[split]]


@pytest.fixture
def copied(tmp_path):
    for name in (*FILES, SUMS):
        (tmp_path / name).write_bytes((FROZEN / name).read_bytes())
    return tmp_path


def right(row):
    return row["choices"][OPTIONS.index(row["answer"])]


def wrong(row):
    return [choice for i, choice in enumerate(row["choices"]) if OPTIONS[i] != row["answer"]]


def subject(row):
    """The full name of what is asked about; of a module question the module that is right."""
    return right(row) if row["kind"] == "module" else re.search(SUBJECT[row["kind"]], row["question"])[1]


def test_the_generator_makes_the_frozen_files_byte_for_byte():
    if sys.version_info[:3] != PYTHON:
        released = ".".join(map(str, PYTHON))
        warnings.warn(
            f"Python {sys.version.split()[0]}: the questions of {released} are checked by sum only", stacklevel=1
        )
        StdlibChoice().fingerprint()
        return
    held_out = read_held_out()
    made = file_contents(read_library(held_out.modules, held_out.text))
    assert sorted(made) == sorted((*FILES, SUMS))
    for name, content in made.items():
        assert (FROZEN / name).read_bytes() == content, name


def test_small_enough_to_ship():
    assert sum((FROZEN / name).stat().st_size for name in FILES) <= 800_000


def test_every_row_has_the_published_schema():
    for name in FILES:
        for row in map(published, read_json_lines(FROZEN / name)):
            assert list(row.fields) == ["instruction", "input", "output", "answer"]
            assert row_options(row) == OPTIONS
            assert row.text("output") == f"the correct answer is {row.text('answer')}"
            asked, offered, options = row.text("instruction").split("\n\n")
            assert re.fullmatch(r"Please choose the correct answer to the question: .+\?", asked)
            assert re.fullmatch("Answer1: .+ Answer2: .+ Answer3: .+ Answer4: .+", offered)
            assert options == "Answer format: answer1/answer2/answer3/answer4"


def test_kinds_and_places_are_balanced(rows):
    assert tuple(MADE_BY) == KINDS == tuple(PERCENT)
    for split, part in rows.items():
        counts = Counter(row["kind"] for row in part)
        assert counts == {kind: ROWS[split] * percent // 100 for kind, percent in PERCENT.items()}
        assert counts.total() == ROWS[split]
        for kind in KINDS:
            places = Counter(row["answer"] for row in part if row["kind"] == kind)
            assert max(places[option] for option in OPTIONS) - min(places[option] for option in OPTIONS) <= 1


def test_no_question_twice_and_four_different_choices(every):
    assert len({folded(row["question"]) for row in every}) == len(every) == 3600
    assert all(len({folded(choice) for choice in row["choices"]}) == 4 for row in every)


def test_no_package_in_two_splits(rows):
    packages = {split: {subject(row).partition(".")[0] for row in part} for split, part in rows.items()}
    for split, part in rows.items():
        packages[split] |= {c.partition(".")[0] for row in part if row["kind"] == "module" for c in row["choices"]}
    assert not packages["train"] & (packages["validation"] | packages["test"])
    assert not packages["validation"] & packages["test"]
    assert min(len(p) for p in packages.values()) >= 20


def test_no_description_in_two_splits(rows):
    said = {split: {folded(c) for row in part if row["kind"] == "purpose" for c in row["choices"]}
            | {folded(row["question"].split('"')[1]) for row in part if row["kind"] == "name"}
            for split, part in rows.items()}  # fmt: skip
    assert not said["train"] & (said["validation"] | said["test"])
    assert not said["validation"] & said["test"]


def test_nothing_of_the_held_out_text(every):
    documents = held_out_documents()
    modules = {d.name for d in documents if d.kind != "topic"}
    text = folded("\n".join(d.text for d in documents))
    assert modules == read_held_out().modules
    for row in every:
        named = {_module(subject(row)), *(row["choices"] if row["kind"] == "module" else ())}
        assert not modules & named, row
        assert not any(is_held_out(m, "docstrings") for m in named), row
        said = row["choices"] if row["kind"] == "purpose" else row["question"].split('"')[1:2]
        assert not [s for s in said if folded(s) in text], row


def _module(name):
    """The longest beginning of a full name that is a module of the running Python's library."""
    parts = name.split(".")
    names = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    return next((m for m in names if any(f.is_file() for f in _files(m))), parts[0])


def _files(module):
    place = LIBRARY / module.replace(".", "/")
    return place.with_name(f"{place.name}.py"), place / "__init__.py"


def _found(name):
    """The object of a full name; None if this machine cannot import its module, or imports another in its place."""
    try:
        found = importlib.import_module(_module(name))
    except ImportError:
        return None
    if Path(found.__file__) not in _files(_module(name)):
        return None  # setuptools puts its own distutils there
    for part in name.split(".")[_module(name).count(".") + 1 :]:
        found = getattr(found, part)
    return found


def _parameters(name):
    """Names that a function's code takes; None if another has taken its place: C, or pytest's pdb.set_trace."""
    found = _found(name)
    code = getattr(inspect.unwrap(getattr(found, "__func__", found)), "__code__", None)
    if code is None or Path(code.co_filename) not in _files(_module(name)):
        return None
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _confirms(row):
    """Whether the running Python says that the right choice is right and the others wrong; None if it cannot say."""
    if row["kind"] == "module":
        name = re.search(r"(\w+)\?$", row["question"])[1]
        modules = [_found(m) for m in (right(row), *wrong(row))]
        return None if None in modules else [hasattr(m, name) for m in modules] == [True, False, False, False]
    found = _found(subject(row))
    if found is None:
        return None
    if row["kind"] == "member":
        return [hasattr(found, c) for c in (right(row), *wrong(row))] == [True, False, False, False]
    if row["kind"] == "parameter":
        taken = _parameters(subject(row))
        return None if taken is None else [c in taken for c in (right(row), *wrong(row))] == [True, False, False, False]
    if _module(subject(row)) in IN_C:
        return None
    named = [getattr(found, c) for c in row["choices"]] if row["kind"] == "name" else [found]
    said = [right(row)] if row["kind"] == "purpose" else [row["question"].split('"')[1]]
    hits = [_says(thing, said[0]) for thing in named]
    return hits == [c == right(row) for c in row["choices"]] if row["kind"] == "name" else hits == [True]


def _says(thing, sentence):
    return folded(thing.__doc__ or "").startswith(folded(sentence))


def test_the_running_python_confirms_every_answer(every):
    """An oracle that shares nothing with the generator: modules imported, attributes and signatures looked up."""
    if not IS_3_11:
        warnings.warn(
            f"Python {sys.version.split()[0]}: answers are of 3.11 and are not confirmed by this one", stacklevel=1
        )
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules
        said = [(row, _confirms(row)) for row in every]
    assert not [row for row, confirmed in said if confirmed is False]
    assert sum(confirmed is None for _, confirmed in said) < 0.2 * len(said)


def test_the_oracle_refuses_another_answer(every):
    if IS_3_11:
        for row in every[:200]:
            other = row | {"answer": OPTIONS[(OPTIONS.index(row["answer"]) + 1) % 4]}
            assert _confirms(other) is not True, row


def thing(name, sentence="", parameters=None):
    return Thing("m", name, "function", sentence, parameters)


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        (("f", "Return the x coordinate"), ("g", "Return the y coordinate"), True),
        (("f", "Return the coordinate"), ("g", "Returns a coordinate"), False),
        (("f", "Return the coordinate"), ("g", "Return the coordinate of the turtle"), False),
        (("f", "Return the x coordinate"), ("f", "Open a file"), False),
        (("f", "Return the x coordinate"), ("g", ""), False),
        (("f", "Copy one file to a new place, now"), ("g", "Copy one file to a new place, later"), False),
    ],
)
def test_descriptions_that_could_be_taken_for_each_other(a, b, apart):
    assert tell_apart(thing(*a), thing(*b)) is apart


LITTLE = {
    "one.py": '''
def copy_all(src, dst):
    """Copy a whole tree of files. Slowly."""
def twice(a):
    pass
def twice(b):
    pass
def _hidden():
    pass
class Box(Base):
    @property
    def size(self):
        pass
    def open(self, mode):
        pass
''',
    "two.py": "from one import *\nfrom _c import fast\nclass Base:\n    def shut(self, **options): pass\n",
    "three.py": "from _c import *\n",
    "four.py": "def copy_it(src):\n    '''This sentence is held out.'''\nexec('x = 1')\ndef brief(): pass\ndel brief\n",
    "held.py": "def kept_apart(): pass\n",
    "pack/__init__.py": "from .inner import *\n",
    "pack/inner.py": "def deep(): pass\n",
    "broken.py": "def (",
}


@pytest.fixture
def little_library(tmp_path):
    for name, text in LITTLE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return read_library({"held"}, "Before.\nThis  sentence is\nheld out. After.", tmp_path)


def test_what_the_library_defines(little_library):
    found = {t.full: t for t in little_library.things}
    assert sorted(found) == ["four.copy_it", "one.Box", "one.Box.open", "one.copy_all", "pack.inner.deep", "two.Base",
                             "two.Base.shut"]  # fmt: skip
    assert found["one.copy_all"][3:] == ("Copy a whole tree of files", ("src", "dst"))
    assert found["one.Box.open"].parameters == ("mode",)
    assert found["two.Base.shut"].parameters is None
    assert found["four.copy_it"].sentence == ""


def test_what_may_be_called_unbound(little_library):
    bound = little_library.bound
    assert set(bound) == {"one", "two", "pack", "pack.inner"}  # three and four bind what cannot be read
    assert {"copy_all", "fast", "Base", "shut"} <= bound["two"]
    assert {"deep", "inner"} <= bound["pack"]
    assert {"size", "open", "shut", "__init__"} <= little_library.attributes["one.Box"]


def test_a_module_that_imports_the_name_is_no_wrong_choice(little_library):
    pool = make_pool(little_library, {"one", "two", "pack"})
    asked = next(t for t in pool.things if t.full == "one.copy_all")
    draft = MADE_BY["module"](random.Random(0), pool, asked)
    assert "two" not in set(draft.wrong)


def test_a_library_that_is_too_small_is_refused(little_library):
    with pytest.raises(ValueError, match="kind module: 0 questions where 88 are needed"):
        questions(little_library)


def test_load():
    data = StdlibChoice()
    splits = data.load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [3000, 200, 400]
    every = [*splits.train, *splits.validation, *splits.test]
    assert len({e.item for e in every}) == len({e.prompt for e in every}) == 3600
    assert {e.target for e in every} == set(OPTIONS)
    assert all(e.answer == f" the correct answer is {e.target}" for e in every)
    assert all(data.is_correct(data.extract(e.answer), e.target) for e in every)
    assert splits.test[0].prompt.startswith("Question: Please choose the correct answer to the question: ")
    assert splits.test[0].prompt.endswith("\n\nAnswer format: answer1/answer2/answer3/answer4\nAnswer:")
    assert not data.is_correct(data.extract("no idea"), "answer1")
    assert data.extract("it is answer2, not answer3") == "answer2"


def test_some_kinds_and_fewer_items():
    splits = StdlibChoice(kinds=["name", "module"], max_train_items=50, max_test_items=20).load()
    assert (len(splits.train), len(splits.test)) == (50, 20)
    assert {e.item.split("/")[1] for p in (splits.train, splits.validation, splits.test) for e in p} == {
        "name",
        "module",
    }
    assert StdlibChoice(kinds=["name", "module"]) == StdlibChoice(kinds=("module", "name", "name"))


def test_prompts_are_short():
    folder = Path(stdlib_choice.__file__).parents[1] / "models/pico"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = encode_all(StdlibChoice().load().train, tokenizer, 192).items
    assert len(encoded) == 3000
    assert sum(e.answer_start for e in encoded) / len(encoded) < 135
    assert max(len(e.input_ids) - e.answer_start for e in encoded) == 14


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(copied, monkeypatch, name):
    monkeypatch.setattr(stdlib_choice, "_folder", lambda: copied)
    assert StdlibChoice().load().test
    (copied / name).write_bytes((copied / name).read_bytes().replace(b"\n", b"\r\n", 1))
    for use in (StdlibChoice().load, StdlibChoice().fingerprint):
        with pytest.raises(DataError, match=re.escape(str(copied / name))):
            use()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kinds": ["colour"]}, r"'kinds' is \['colour'\].*module, purpose, name, member, parameter"),
        ({"kinds": []}, r"'kinds' is \[\]"),
        ({"kinds": "name"}, r"'kinds' is 'name'.*dataset.kinds=\[name\]"),
        ({"max_test_items": 0}, "'max_test_items' is 0.*above 0"),
    ],
)
def test_fields_out_of_range(fields, said):
    with pytest.raises(DataError, match=said):
        StdlibChoice(**fields)
