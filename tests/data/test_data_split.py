"""Splits by content hash: what moves an item, and what must not."""

from hypothesis import given
from hypothesis import strategies as st

from ablora.data._split import hold_out, sample

KEYS = st.lists(st.text(min_size=1, max_size=8), min_size=3, max_size=40, unique=True)


@given(KEYS, st.data())
def test_held_out_items_do_not_depend_on_the_order(keys, data):
    count = data.draw(st.integers(1, len(keys) - 1))
    shuffled = data.draw(st.permutations(keys))
    rest, held = hold_out(keys, str, count, "validation")
    _, again = hold_out(shuffled, str, count, "validation")
    assert len(held) == count
    assert set(held) == set(again)
    assert sorted([*rest, *held]) == sorted(keys)
    assert held == [k for k in keys if k in set(held)], "the order of the file is kept"


@given(KEYS, st.data())
def test_a_smaller_choice_is_part_of_a_larger_one_whatever_the_order(keys, data):
    small, large = sorted(data.draw(st.lists(st.integers(1, len(keys)), min_size=2, max_size=2)))
    shuffled = data.draw(st.permutations(keys))
    assert set(sample(keys, str, small, "train")) <= set(sample(shuffled, str, large, "train"))
    assert len(sample(keys, str, small, "train")) == small


@given(st.lists(st.sampled_from("abcdef"), min_size=4, max_size=30), st.data())
def test_equal_keys_are_never_on_both_sides(keys, data):
    count = data.draw(st.integers(1, len(keys) - 1))
    rest, held = hold_out(keys, str, count, "test")
    assert not set(rest) & set(held)
    assert len(held) <= count


@given(KEYS)
def test_parts_are_drawn_independently(keys):
    """Otherwise the validation items of a run would be the first that a test sample takes."""
    many = [f"{k}{i}" for k in keys for i in range(40)]
    _, validation = hold_out(many, str, 20, "validation")
    _, test = hold_out(many, str, 20, "test")
    assert set(validation) != set(test)
