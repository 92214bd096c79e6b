"""The weights that ship: they load offline, have the stated size, and score what the card says."""

import csv
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from ablora.models.pretrain import card, corpus, evaluate, spectrum
from ablora.models.pretrain.train import random_start
from ablora.models.pretrain.windows import encode

PICO = corpus.PICO_DIR


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(PICO, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PICO, local_files_only=True)


@pytest.fixture(scope="module")
def known():
    return card.read_card()


def test_size(model, known):
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == known["parameters"]
    assert 1_000_000 <= parameters <= 3_000_000
    assert (PICO / "model.safetensors").stat().st_size <= 6_000_000
    assert model.config.max_position_embeddings >= 512


def test_weights_are_finite_and_adapted_sides_wide(model):
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if name.split(".")[-2] in spectrum.MODULES:
            assert min(parameter.shape) >= 64


def test_special_tokens(tokenizer, model):
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (model.config.bos_token_id, model.config.pad_token_id)
    assert len(tokenizer) == model.config.vocab_size == 2048


def test_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize("20250") == ["2", "0", "2", "5", "0"]


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_tokenizer_round_trip(tokenizer, text):
    backend = tokenizer.backend_tokenizer
    assert backend.decode(backend.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_scores_a_slice_as_the_card_does(model, tokenizer, known):
    names = set(known["check"]["documents"])
    documents = [d for d in corpus.read_held_out() if d.kind == "topic" and d.name in names]
    nats = evaluate.model_nats(model, encode(tokenizer.backend_tokenizer, documents))
    assert len(documents) == len(known["check"]["documents"])
    assert evaluate.by_kind(nats, documents)["all"] == pytest.approx(known["check"]["bits_per_byte"], abs=2e-3)


def test_the_card_says_that_it_beats_both(known):
    figures = known["measured"]["bits_per_byte"]
    assert known["measured"]["model_beats_both"]
    assert figures["model"]["all"] < min(figures["kneser_ney_5"]["all"], figures["lzma"]["all"])


def test_spectrum_of_the_card_is_the_weights(model, known):
    for which, weights in (("trained", model), ("start", random_start(known["recipe"]["seed"]))):
        for kind, numbers in spectrum.table(weights).items():
            assert numbers._asdict() == pytest.approx(known["spectrum"][which][kind], rel=1e-3)


def test_training_moved_the_spectrum(known):
    for kind, trained in known["spectrum"]["trained"].items():
        assert trained["stable_rank"] < known["spectrum"]["start"][kind]["stable_rank"]


def test_readme_is_rendered_from_the_card(known):
    assert (PICO / "README.md").read_text("utf-8") == card.render(known)


def test_log_agrees_with_the_card(known):
    rows = list(csv.DictReader((PICO / "pretrain_log.csv").open()))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == known["recipe"]["steps"]
    assert int(rows[-1]["tokens"]) == known["training"]["tokens"]
    assert all(math.isfinite(float(row["held_out_nats"])) for row in rows)


def test_spectrum_numbers_of_known_matrices():
    flat = spectrum.shape(torch.ones(8))
    assert flat.stable_rank == pytest.approx(8)
    assert flat.effective_rank == pytest.approx(8)
    assert spectrum.shape(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx((1, 1, 1))


def test_each_token_is_scored_once_whatever_the_window():
    ids = [np.arange(5, 5 + n) for n in (1, 7, 8, 23)]
    for window, stride in ((8, 8), (8, 3), (64, 16)):
        seen = [
            (s.document, t)
            for s in evaluate.spans(ids, window, min(stride, window - 1))
            for t in s.tokens[len(s.tokens) - s.scored :]
        ]
        assert sorted(seen) == [(i, t) for i, each in enumerate(ids) for t in each]
