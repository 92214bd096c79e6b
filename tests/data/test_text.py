"""Corpora and their chunks: every token once, content in the id and paths not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablora.data._base import DataError
from ablora.data.text import HeldOut, TextFile, cut, spread, stream_of
from ablora.models.pretrain.corpus import read_held_out
from ablora.spec import BadInput, canonical


@given(length=st.integers(1, 200), chunk=st.integers(2, 40), data=st.data())
def test_every_token_counts_once_and_sees_what_is_before_it(length, chunk, data):
    stride = data.draw(st.none() | st.integers(1, chunk - 1))
    chunks = cut("c", range(1, length + 1), 0, chunk, stride)
    scored = [token for c in chunks for token in c.input_ids[c.answer_start :]]
    assert scored == list(range(1, length + 1))
    for c in chunks:
        assert len(c.input_ids) <= chunk
        assert c.input_ids[0] == 0
        assert list(c.input_ids[1:]) == list(range(c.input_ids[1], c.input_ids[1] + len(c.input_ids) - 1))
    assert [c.item for c in chunks] == [f"c-{i:04d}" for i in range(len(chunks))]


def test_chunks_lie_end_to_end_unless_told_otherwise():
    assert [c.input_ids for c in cut("c", range(1, 8), 0, 4, None)] == [(0, 1, 2, 3), (0, 4, 5, 6), (0, 7)]
    assert [(c.input_ids, c.scored) for c in cut("c", range(1, 6), 0, 4, 2)] == [((0, 1, 2, 3), 3), ((0, 3, 4, 5), 2)]


@given(count=st.integers(1, 300), most=st.integers(1, 300))
def test_chosen_chunks_are_distinct_and_spread(count, most):
    found = spread(count, most)
    assert len(set(found)) == len(found) == min(count, most)
    assert found == sorted(found)
    assert set(found) <= set(range(count))
    if most < count:
        for i, index in enumerate(found):
            assert i * count / most - 1 < index < (i + 1) * count / most, "one from each of equal parts"


def test_spread_takes_middles():
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(9, 1) == [4]
    assert spread(3, None) == [0, 1, 2]


def test_the_frozen_text_is_the_base_s_held_out_text():
    assert HeldOut().documents() == tuple(d.text for d in read_held_out())
    assert len(HeldOut().fingerprint()) == 64


def test_a_file_enters_by_content_and_name_not_by_path(tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, text in zip(paths, ("one\r\ntwo", "one\r\ntwo", "other")):
        path.write_bytes(text.encode())
    a, b, c = (canonical(TextFile(path=str(path))) for path in paths)
    assert a == b != c
    assert str(tmp_path) not in json.dumps(a)
    assert canonical(TextFile(name="wiki", path=str(paths[0]))) != a
    assert TextFile(path=str(paths[0])).documents() == ("one\r\ntwo",)
    paths[0].write_text("changed, and longer")
    assert canonical(TextFile(path=str(paths[0]))) != a


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\x00", "folder"], ids=str)
def test_a_file_without_text_is_refused_in_planning(tmp_path, content):
    path = tmp_path / "text.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="text"):
        TextFile(path=str(path)).fingerprint()


def test_a_path_or_name_that_is_missing_is_named():
    with pytest.raises(DataError, match="'path' is None"):
        TextFile().fingerprint()
    with pytest.raises(BadInput, match="name='a/b' is not legal"):
        TextFile(name="a/b")


class Two:
    name = "two"

    def fingerprint(self) -> str:
        return ""

    def documents(self) -> tuple[str, ...]:
        return ("one <|endoftext|>", "two")


def test_documents_stand_behind_one_another_and_special_tokens_stay_text(tokenizer):
    start, stream = stream_of(Two(), tokenizer, len(tokenizer))
    assert start == tokenizer.bos_token_id
    assert stream.count(start) == 1, "between the documents, and nowhere in them"
    at = stream.index(start)
    assert tokenizer.decode(stream[:at]) == "one <|endoftext|>"
    assert tokenizer.decode(stream[at + 1 :]) == "two"


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"corpus two: token id .* vocabulary; legal: 0 to 9"):
        stream_of(Two(), tokenizer, 10)
