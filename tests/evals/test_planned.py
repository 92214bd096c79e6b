"""What the configuration makes of the two evaluations, and what planning refuses before anything is queued."""

import pytest

from ablora.config import ask
from ablora.data.text import HeldOut, TextFile
from ablora.spec import BadInput, RunSpec, run_id
from ablora.study.plan import make
from ablora.tree import build

FILE = ["eval/corpus=text_file", "eval.tasks.forgetting.corpus.path=words.txt"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spec(*arguments: str) -> RunSpec:
    (cell,) = ask(arguments, False).cells
    return build(cell.tree, RunSpec)


def refused(*arguments: str) -> str:
    with pytest.raises(BadInput) as found:
        make(ask(arguments, False).cells)
    return str(found.value)


def test_the_default_reads_the_held_out_text():
    tasks = spec().eval.tasks
    assert tasks["forgetting"].corpus == HeldOut()
    assert tasks["forgetting"].chunk_tokens == 512
    assert "routing" in tasks
    assert "forgetting" not in spec("eval.tasks.forgetting=null").eval.tasks


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "words.txt").write_text("some words")
    assert spec(*FILE).eval.tasks["forgetting"].corpus == TextFile(path="words.txt")
    (tmp_path / "same.txt").write_text("some words")
    same = spec(FILE[0], "eval.tasks.forgetting.corpus.path=same.txt")
    assert run_id(same) == run_id(spec(*FILE)) != run_id(spec())
    assert len(make(ask(FILE, False).cells).specs) == 1


def test_what_cannot_be_read_or_held_is_refused_in_planning(tmp_path):
    assert "eval.tasks.forgetting.corpus='text'" in refused(*FILE)
    assert "it must be a file of UTF-8 text" in refused("eval/corpus=text_file")
    (tmp_path / "words.txt").write_bytes(b"\xff")
    assert "byte 0 is not UTF-8" in refused(*FILE)
    assert "eval.tasks.forgetting.chunk_tokens=2048" in refused("eval.tasks.forgetting.chunk_tokens=2048")
    with pytest.raises(BadInput, match=r"eval\.tasks\.forgetting\.chunk_tokens=1 "):
        spec("eval.tasks.forgetting.chunk_tokens=1")
