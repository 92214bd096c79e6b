"""Tokens are made once, read back as they were, and a damaged file is named."""

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
    assert stored({"of": "this"}, folder, lambda: split) == split
    assert stored({"of": "this"}, folder, lambda: pytest.fail("made twice")) == split
    other = EncodedSplit((), ("x",))
    assert stored({"of": "that"}, folder, lambda: other) == other


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
