"""Which runs go through the base together changes nothing that they learn."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packs import Pack, made_up, spec
from packs import whole as pack

from ablora.evals._base import Items
from ablora.evals.answer_loss import AnswerLoss
from ablora.models import passes
from ablora.models.passes import by_worth, go_together

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 200))
def test_passes_hold_every_run_once_in_order_within_what_is_worth_it(tokens: list[int], worth: int):
    cut = by_worth(tokens, worth)
    assert [i for own in cut for i in own] == list(range(len(tokens)))
    for own, following in zip(cut, [*cut[1:], range(0)]):
        assert len(own) == 1 or len(own) * max(tokens[i] for i in own) <= worth
        one_more = [*own, *following[:1]]
        assert not following or len(one_more) * max(tokens[i] for i in one_more) > worth, "it is filled"


def test_a_gpu_takes_all_at_once_and_a_run_without_tokens_takes_no_pass():
    large = passes.WORTH
    assert go_together([large, 0, large], GPU) == [range(3)]
    assert go_together([large, 0, large], CPU) == [range(1), range(2, 3)]
    assert go_together([5, 0, 7], CPU) == [range(3)]


ASKED = AnswerLoss(split="test", max_items=None)
MIXED = ("lora", "lora", "pissa", "dora", "dora", "goat", "goat", "adamole", "adalora")


def mixed() -> Pack:
    return pack(*(spec(preset, dropout=0.1, seed=i, batch_size=3 + i % 3) for i, preset in enumerate(MIXED)))


@pytest.mark.parametrize("worth", [1, 200])
def test_runs_learn_bit_for_bit_the_same_in_passes_of_any_size(worth: int, monkeypatch: pytest.MonkeyPatch):
    """Of neighbours of a structure some are in a pass without the others."""
    whole = mixed()
    losses = whole.steps(20)
    monkeypatch.setattr(passes, "WORTH", worth)
    tokens = [sum(len(e.input_ids) for e in run.data.batch(1)) for run in whole.runs]
    assert 1 < len(go_together(tokens, CPU)) <= len(MIXED)
    cut = mixed()
    assert cut.steps(20) == losses
    for a, b in zip(whole.runs, cut.runs):
        assert all(torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters)


@pytest.mark.parametrize("preset", ["lora", "goat", "adamole"])
def test_a_run_with_fewer_micro_batches_waits_unharmed(preset: str, monkeypatch: pytest.MonkeyPatch):
    """In one pass with its pack-mate its row is empty meanwhile: balance losses of no tokens were nan."""
    few, many = spec(preset, batch_size=2), spec(preset, seed=1, batch_size=6, micro_batch=2)
    together = pack(few, many).steps(5)
    alone = [pack(few).steps(5)[0], pack(many).steps(5)[0]]
    assert together == [pytest.approx(losses, rel=1e-4) for losses in alone]
    monkeypatch.setattr(passes, "WORTH", 1)
    assert pack(few, many).steps(5) == alone


@pytest.mark.parametrize("worth", [1, 200])
def test_the_loss_of_answers_is_that_of_one_pass_in_passes_of_any_size(worth: int, monkeypatch: pytest.MonkeyPatch):
    """One run is not asked, one has fewer items."""
    together = mixed()
    together.steps(2)  # factors that differ by run
    members = [Items(cast(Any, None), (), tuple(made_up(i)[: 3 + i])) for i in range(len(MIXED))]
    members[4] = Items(cast(Any, None), (), ())
    whole = ASKED.run(together.base, together.adapted, members)
    monkeypatch.setattr(passes, "WORTH", worth)
    cut = ASKED.run(together.base, together.adapted, members)
    assert [found is None for found in cut] == [i == 4 for i in range(len(MIXED))]
    for a, b in zip(whole, cut, strict=True):
        if a and b:
            assert [r["loss_nats"] for r in b.records] == pytest.approx([r["loss_nats"] for r in a.records], rel=1e-5)
            assert len({r["loss_nats"] for r in b.records}) == len(b.records)


def test_the_made_up_data_fill_one_pass():
    """Else the tests of packs would not test what vmap does."""
    assert len(go_together([sum(len(e.input_ids) for e in made_up(0)[:4])] * 2, CPU)) == 1
