"""The corpus: what is held out, that it stays out, and that the frozen file is the one that was measured."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablora.models.pretrain import card, corpus
from ablora.models.pretrain.corpus import Document


@pytest.fixture(scope="module")
def held_out():
    return corpus.read_held_out()


@pytest.fixture(scope="module")
def training(held_out):
    return corpus.training_documents(held_out)


def blocks(documents):
    """Keys of every block that counts."""
    parts = (block for d in documents for block in d.text.split("\n\n"))
    return {corpus.block_key(part) for part in parts if len(part.strip()) >= corpus.BLOCK_CHARS_MIN}


def test_the_frozen_text_is_the_cards(held_out):
    known = card.read_card()["held_out"]
    assert hashlib.sha256(corpus.HELD_OUT_FILE.read_bytes()).hexdigest() == known["sha256"]
    assert corpus.fingerprint(held_out) == known["fingerprint"]
    assert corpus.HELD_OUT_FILE.stat().st_size <= 1_000_000


def test_a_clear_share_of_the_held_out_text_is_prose(held_out):
    sizes = corpus.sizes_bytes(held_out)
    assert (sizes["topic"] + sizes["docstrings"]) / sum(sizes.values()) > 0.35


def test_the_split_is_by_name_alone():
    # fixed on purpose: another Python, another machine, another year give the same answer
    assert corpus.is_held_out("calls", "topic")
    assert corpus.is_held_out("string-methods", "topic")
    assert not corpus.is_held_out("lambda", "topic")
    assert corpus.is_held_out("base64", "source")
    assert corpus.is_held_out("base64", "docstrings")
    assert not corpus.is_held_out("json.decoder", "source")


@given(st.from_regex(r"[a-z][a-z0-9]{0,12}", fullmatch=True))
def test_private_twins_fall_on_one_side(name):
    sides = {corpus.is_held_out(twin + name, kind) for twin in ("", "_", "_py") for kind in ("source", "docstrings")}
    assert len(sides) == 1


def test_names_and_blocks_are_disjoint(held_out, training):
    assert not {(d.name, d.kind) for d in held_out} & {(d.name, d.kind) for d in training}
    assert not [d.name for d in training if corpus.is_held_out(d.name, d.kind)]
    assert not blocks(held_out) & blocks(training)


def test_nothing_of_the_machine_is_in_the_frozen_text(held_out):
    assert all(word not in d.text for d in held_out for word in ("site-packages/ablora", "/root/", "/home/runner"))


def test_docstrings_leave_the_source():
    source = 'import os\n\n\ndef f(a, b=1):\n    """Add.\n\n    Twice.\n    """\n    return a + b\n'
    code, docs = corpus.split_docstrings("m", source)
    assert code == "import os\n\n\ndef f(a, b=1):\n    return a + b\n"
    assert docs == "m.f(a, b=1)\n\nAdd.\n\nTwice.\n"


def test_a_repeated_block_is_kept_once():
    block = "x = 1  # " + "long " * 40
    first, second = Document("a", "source", block), Document("b", "source", f"{block}\n\n{'other ' * 40}")
    kept = list(corpus.without_repeats([first, second], set()))
    assert kept[0].text.strip() == block.strip()
    assert block not in kept[1].text


def test_fingerprint_ignores_order_and_sees_text():
    a, b = Document("a", "source", "x"), Document("b", "topic", "y")
    assert corpus.fingerprint([a, b]) == corpus.fingerprint([b, a])
    assert corpus.fingerprint([a, b]) != corpus.fingerprint([a, b._replace(text="z")])
