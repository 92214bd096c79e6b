"""Forgetting against dense oracles: the base's distribution, every token once, whatever the pack."""

import math

import pytest
import torch

from ablora.data.text import HeldOut, TextFile
from ablora.evals import forgetting as module
from ablora.evals._base import Outcome
from ablora.evals.forgetting import Forgetting
from ablora.method.export import merged_weights
from ablora.models.base import Base, Embedded, load
from ablora.spec import BadInput
from presets import method, names
from tiny import adapt, disturb, llama, qwen

PAIRS = [name for name in names() if method(name).structure.experts == 1]


def on(path, **fields) -> Forgetting:
    return Forgetting(**{"corpus": TextFile(name="words", path=str(path)), "chunk_tokens": 32, **fields})


def dense(base_model, tuned_model, chunks) -> list[dict[str, float]]:
    """Each chunk by itself through two whole models, token by token."""
    out = []
    for chunk in chunks:
        ids = torch.tensor([chunk.input_ids])
        with torch.no_grad():
            p, q = (m(input_ids=ids, use_cache=False).logits[0].double().softmax(-1) for m in (base_model, tuned_model))
        sums = dict.fromkeys(("forgetting_nats", "floor_nats", "kl_nats", "loss_nats", "base_loss_nats", "agree"), 0.0)
        for t in range(len(chunk.input_ids) - chunk.scored, len(chunk.input_ids)):
            before, label = t - 1, chunk.input_ids[t]
            for v in range(p.shape[1]):
                sums["forgetting_nats"] -= (p[before, v] * q[before, v].log()).item()
                sums["floor_nats"] -= (p[before, v] * p[before, v].log()).item()
                sums["kl_nats"] += (p[before, v] * (p[before, v] / q[before, v]).log()).item()
            sums["loss_nats"] -= q[before, label].log().item()
            sums["base_loss_nats"] -= p[before, label].log().item()
            sums["agree"] += int(p[before].argmax() == q[before].argmax())
        out.append({"tokens": chunk.scored, **sums})
    return out


@pytest.mark.parametrize("model", [llama, qwen], ids=["llama", "qwen2_with_bias"])
@pytest.mark.parametrize("preset", PAIRS)
def test_nothing_is_forgotten_at_step_0(preset, model, words, text):
    """To the bit: the measured difference is 0, so there is no tolerance."""
    base = Base(model(), words)
    (found,) = on(text).run(base, adapt(base.model, method(preset)))
    assert found.metrics["forgetting_kl_nats"] == 0.0
    assert found.metrics["forgetting_nats"] == found.metrics["forgetting_floor_nats"]
    assert found.metrics["text_loss_nats"] == found.metrics["base_text_loss_nats"]
    assert found.metrics["top1_agreement"] == 1.0
    assert all(r["kl_nats"] == 0.0 and r["agree"] == r["tokens"] for r in found.records)


def test_a_started_mixture_begins_at_its_own_deviation(words, text):
    base = Base(llama(), words)
    (found,) = on(text).run(base, adapt(base.model, method("goat")))
    assert 1e-4 < found.metrics["forgetting_kl_nats"] < 10
    assert found.metrics["top1_agreement"] < 1


@pytest.mark.parametrize("fields", [{}, {"stride_tokens": 20}, {"chunk_tokens": 200}, {"max_chunks": 2}], ids=str)
def test_equals_the_merged_model_beside_the_base(fields, words, text):
    base = Base(llama(torch.float64), words)
    adapted = adapt(base.model, method("milora"), compute_dtype="float64")
    disturb(adapted)
    evaluation = on(text, **fields)
    (found,) = evaluation.run(base, adapted)
    merged = llama(torch.float64)
    with torch.no_grad():
        for name, weight in merged_weights(adapted, 0).items():
            merged.get_submodule(name).weight.copy_(weight)
    expected = dense(llama(torch.float64), merged, evaluation.chunks(base))
    assert len(found.records) == len(expected)
    for record, oracle in zip(found.records, expected):
        assert {key: record[key] for key in oracle} == pytest.approx(oracle, rel=1e-9)
    tokens = sum(oracle["tokens"] for oracle in expected)
    assert tokens == 130 or "max_chunks" in fields
    assert found.metrics["forgetting_kl_nats"] > 1e-3
    for metric, column in {"forgetting_nats": "forgetting_nats", "forgetting_floor_nats": "floor_nats",
                           "forgetting_kl_nats": "kl_nats", "text_loss_nats": "loss_nats",
                           "base_text_loss_nats": "base_loss_nats", "top1_agreement": "agree"}.items():  # fmt: skip
        assert found.metrics[metric] == pytest.approx(sum(o[column] for o in expected) / tokens, rel=1e-9)


def close(a: Outcome, b: Outcome) -> bool:
    alike = [r["item"] for r in a.records] == [r["item"] for r in b.records]
    return alike and a.metrics == pytest.approx(b.metrics, rel=1e-9)


def test_one_base_row_serves_a_mixed_pack(words, text):
    """Also one whose members' structures differ, and one with a member that is the base itself."""
    base = Base(llama(torch.float64), words)
    solo = []
    for preset in ("lora", "goat"):
        adapted = adapt(base.model, method(preset), compute_dtype="float64")
        disturb(adapted)
        solo += on(text).run(base, adapted)
        adapted.detach()
    adapted = adapt(base.model, method("lora"), method("goat"), compute_dtype="float64")
    for member in (0, 1):
        disturb(adapted, member)
    together = on(text).run(base, adapted)
    assert all(close(a, b) for a, b in zip(solo, together, strict=True))
    assert adapted.state.runs == 2, "after it a batch has the members' rows alone"


def test_the_cuts_into_passes_and_slices_change_nothing(words, text, monkeypatch):
    base = Base(llama(torch.float64), words)
    adapted = adapt(base.model, method("lora"), compute_dtype="float64")
    disturb(adapted)
    (whole,) = on(text).run(base, adapted)
    monkeypatch.setattr(module, "ROW_TOKENS", 40)
    monkeypatch.setattr(module, "SLICE_NUMBERS", 7 * 2 * 97)
    (pieces,) = on(text).run(base, adapted)
    assert close(whole, pieces)


def test_a_corpus_shorter_than_a_chunk_is_one_shorter_chunk(words, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("w3 w4 w5")
    base = Base(llama(), words)
    (found,) = on(path).run(base, adapt(base.model, method("lora")))
    assert [(r["item"], r["tokens"]) for r in found.records] == [("words-0000", 3)]


def test_chunks_beyond_the_context_are_refused(words, text):
    base = Base(llama(), words)
    adapted = adapt(base.model, method("lora"))
    assert on(text, chunk_tokens=256).run(base, adapted)
    with pytest.raises(BadInput, match=r"chunk_tokens=257 .* 2 to 256, the context"):
        on(text, chunk_tokens=257).run(base, adapted)


@pytest.mark.parametrize("wrong", [{"chunk_tokens": 1}, {"stride_tokens": 32}, {"stride_tokens": 0}, {"max_chunks": 0}])
def test_illegal_values_are_refused(wrong, text):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        on(text, **wrong)


@pytest.fixture(scope="module")
def pico() -> Base:
    return load(Embedded(name="pico", dtype="float32"))


def test_wikitext_on_the_embedded_base(pico, shared):
    file = shared / "data" / "text" / "wikitext2_test.txt"
    adapted = adapt(pico.model, method("lora"))
    evaluation = Forgetting(corpus=TextFile(name="wikitext2", path=str(file)), chunk_tokens=128, max_chunks=3)
    (start,) = evaluation.run(pico, adapted)
    disturb(adapted)
    (found,) = evaluation.run(pico, adapted)
    adapted.detach()
    assert start.metrics["forgetting_kl_nats"] == 0.0
    assert start.metrics["forgetting_floor_nats"] == found.metrics["forgetting_floor_nats"]
    assert found.metrics["forgetting_kl_nats"] > 1e-3
    assert 2 < found.metrics["base_text_loss_nats"] < math.log(2048)
    assert [r["tokens"] for r in found.records] == [127] * 3
    assert all(r["item"].startswith("wikitext2-") for r in found.records)


def test_the_held_out_text_on_the_embedded_base(pico):
    adapted = adapt(pico.model, method("pissa"))
    (found,) = Forgetting(corpus=HeldOut(), chunk_tokens=64, max_chunks=2).run(pico, adapted)
    adapted.detach()
    assert found.metrics["forgetting_kl_nats"] == 0.0
    assert found.metrics["base_text_loss_nats"] < 0.75 * math.log(2048)
