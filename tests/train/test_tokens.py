"""Tokens are made once, read back as they were, and a damaged file is named."""

import shutil
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import outcome, run, save_base, small_spec

from ablora.data.encode import Encoded, EncodedSplit
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.train import data
from ablora.train.tokens import stored

ITEM = st.builds(
    lambda ids, at, name: Encoded(tuple(ids), min(at, len(ids)), name),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
    st.integers(1, 9),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(ITEM, max_size=6), st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=3), max_size=3))
def test_what_is_read_is_what_was_made(tmp_path_factory, items, dropped):
    folder = tmp_path_factory.mktemp("cache")
    split = EncodedSplit(tuple(items), tuple(dropped))
    made, read = (
        stored({"of": "this"}, folder, lambda: split),
        stored({"of": "this"}, folder, lambda: pytest.fail("twice")),
    )
    for found in (made, read):
        assert (tuple(found.items), found.dropped) == (split.items, split.dropped)
        assert (found.items[1:-1], found.items[:2]) == (split.items[1:-1], split.items[:2])
        assert not items or found.items[-1] == items[-1]
        with pytest.raises(IndexError):
            found.items[len(items)]
    other = EncodedSplit((), ("x",))
    assert stored({"of": "that"}, folder, lambda: other).dropped == ("x",)


def test_tokens_stay_in_the_file_that_they_are_read_from(tmp_path):
    """A million tokens of 999 would be 40 MB as tuples; the file that holds them is 4 MB, and may be gone by then."""
    ids = tuple([999] * 1000)
    stored({}, tmp_path, lambda: EncodedSplit(tuple(Encoded(ids, 1, str(i)) for i in range(1000)), ()))
    tracemalloc.start()
    split = stored({}, tmp_path, lambda: pytest.fail("made twice"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10**6
    shutil.rmtree(tmp_path)
    assert split.items[-1] == Encoded(ids, 1, "999")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_byte_is_found_or_changes_nothing(tmp_path_factory, data):
    """White space in the header may become other white space."""
    folder = tmp_path_factory.mktemp("cache")
    split = EncodedSplit((Encoded((1, 2, 300), 1, "a"), Encoded((7,), 0, "b")), ("c",))
    stored({}, folder, lambda: split)
    (path,) = (folder / "tokens").glob("*.safetensors")
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])
    try:
        found = stored({}, folder, lambda: pytest.fail("replaced without a word"))
    except Corrupted:
        return
    assert (tuple(found.items), found.dropped) == (split.items, split.dropped)


def test_a_damaged_file_is_named_and_kept(tmp_path):
    stored({}, tmp_path, lambda: EncodedSplit((Encoded((1, 2), 1, "a"),), ()))
    (path,) = (tmp_path / "tokens").glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Corrupted, match=r"tokens.*delete it, and it is made again"):
        stored({}, tmp_path, lambda: pytest.fail("replaced without a word"))
    assert path.exists()


def test_a_run_finds_its_tokens_and_is_the_same(tmp_path, monkeypatch):
    base = save_base(tmp_path / "base")
    roots = [Roots(tmp_path / f"{i}/runs", tmp_path / f"{i}/studies", tmp_path / "cache") for i in range(2)]
    spec = small_spec(base, max_steps=2, warmup_steps=0)
    data._encoded.cache_clear()
    (first,) = run(roots[0], spec)
    assert len(list((tmp_path / "cache" / "tokens").glob("*.safetensors"))) == 3, "training, loss, generation"
    data._encoded.cache_clear()
    monkeypatch.setattr(data, "encode_all", lambda *_, **__: pytest.fail("tokenised again"))
    (second,) = run(roots[1], spec)
    assert outcome(first) == outcome(second)
