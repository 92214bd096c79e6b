"""The n-gram baseline: it sums to one, and agrees with the definition written out over dictionaries."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablora.models.pretrain.kneser_ney import KneserNey, discounts

VOCAB = 5
corpora = st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=5)


def oracle(documents, order, vocab, context, word):
    """p(word | context) from Chen and Goodman's equations, one dictionary at a time."""
    grams = Counter()
    for document in documents:
        padded = [0] * (order - 1) + list(document)
        grams.update(tuple(padded[i : i + order]) for i in range(len(document)))
    tables = {order: dict(grams)}
    for n in range(order - 1, 0, -1):
        left = defaultdict(set)
        for gram in tables[n + 1]:
            left[gram[1:]].add(gram[0])
        tables[n] = {gram: len(who) for gram, who in left.items()}
    p = 1 / vocab
    for n in range(1, order + 1):
        table, history = tables[n], tuple(context[len(context) - n + 1 :])
        d = discounts(np.array(list(table.values())))
        followers = {g[-1]: c for g, c in table.items() if g[:-1] == history}
        if followers:
            total = sum(followers.values())
            back = sum(d[min(c, 3)] for c in followers.values())
            c = followers.get(word, 0)
            p = max(c - d[min(c, 3)], 0) / total + back / total * p
    return p


@settings(max_examples=40, deadline=None)
@given(corpora, st.integers(1, 4))
def test_sums_to_one_in_every_context(documents, order):
    model = KneserNey([np.array(d) for d in documents], VOCAB, order)
    for context in itertools.product(range(VOCAB), repeat=order - 1):
        ends = [np.array([*context, word]) for word in range(VOCAB)]
        p = model.probabilities(np.array([model.codes(end)[-1] for end in ends]))
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert (p > 0).all()


@settings(max_examples=25, deadline=None)
@given(corpora, st.integers(1, 4), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6))
def test_agrees_with_the_equations(documents, order, tested):
    model = KneserNey([np.array(d) for d in documents], VOCAB, order)
    padded = [0] * (order - 1) + tested
    expected = sum(
        -math.log(oracle(documents, order, VOCAB, padded[i : i + order - 1], word)) for i, word in enumerate(tested)
    )
    assert model.nats(np.array(tested)) == pytest.approx(expected, rel=1e-10)


def test_discounts_are_chen_and_goodmans():
    counts = np.array([1] * 60 + [2] * 20 + [3] * 10 + [4] * 5)
    y = 60 / (60 + 40)
    assert discounts(counts) == pytest.approx([0, 1 - 2 * y * 20 / 60, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10])


def test_refuses_an_order_that_does_not_fit():
    with pytest.raises(ValueError, match="order=6"):
        KneserNey([np.array([1])], vocab_tokens=2048, order=6)
