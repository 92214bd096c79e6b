"""What a run learns does not depend on its pack-mates, its padding or its micro-batches."""

import pytest
import torch
from packs import Pack, made_up, spec
from packs import whole as pack

from ablora.data.encode import Encoded
from ablora.method.structure import _product
from presets import method, packed

PRESETS = packed()
RATES = {"adalora": 3e-2}
"""Where 20 steps at the usual rate learn nothing to be seen: E starts at 0 between factors of size 0.02."""

MULTIPLES = {"eva": ("init.rho=1.0",), "molora": ("structure.experts=8",)}
"""Ranks that are equal and multiples of 8: with EVA's rho, other data would give its pack-mate other ranks; ten experts
do not divide any such rank of the tiny base."""
LARGEST = {"lora_ga": 8}
"""Ranks are 4 beside 16; LoRA-GA takes 2 r directions of a gradient whose smaller side is 16 here."""


def same(a: Pack, i: int, b: Pack, j: int) -> bool:
    mine, theirs = a.runs[i].parameters, b.runs[j].parameters
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def require_equal(preset: str, steps: int) -> None:
    """One thread, at least 16 rows per run, equal ranks that are multiples of 8, with dropout: bit for bit, losses and
    parameters."""
    own = MULTIPLES.get(preset, ())
    wanted = spec(preset, *own, dropout=0.1, seed=1)
    other = spec(preset, *own, dropout=0.1, seed=2, lr=1e-3, batch_size=6)
    alone, together = pack(wanted), pack(other, wanted)
    a, b = alone.steps(steps)[0], together.steps(steps)[1]
    assert len(set(a)) > steps // 2, "it learns"
    assert a == b
    assert same(together, 1, alone, 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_packed_equals_solo(preset):
    require_equal(preset, 20)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_packed_equals_solo_over_a_hundred_steps(preset):
    require_equal(preset, 100)


@pytest.mark.parametrize("preset", PRESETS)
def test_padded_equals_unpadded(preset):
    """Beside a run of a higher rank (and more experts), over 20 steps: 1e-5, mixtures 1e-4 (a flipped token)."""
    experts = method(preset).structure.experts
    rate = {"lr": RATES.get(preset, 3e-3)}
    small = spec(preset, *(["structure.experts=4"] if experts > 1 else []), rank=4, seed=1, **rate)
    large = spec(preset, rank=LARGEST.get(preset, 16 - 16 % experts), seed=2, **rate)
    alone, together = pack(small), pack(large, small)
    a, b = torch.tensor(alone.steps(20)[0]), torch.tensor(together.steps(20)[1])
    assert a[-1] < a[0]
    tolerance = 1e-4 if experts > 1 else 1e-5
    torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)
    stack = next(iter(together.adapted.modules.values())).groups[0].stack
    assert stack is not None
    for role, leaf in stack.leaves.items():
        true = len(stack.views[1][role])
        assert not leaf[1, true:].any(), f"padding of {role} stays zero"


def test_unlike_structures_share_a_base_pass():
    specs = [spec("lora", seed=1), spec("pissa", seed=2), spec("milora", seed=3), spec("goat", seed=4)]
    together = pack(*specs).steps(10)
    for i, s in enumerate(specs):
        torch.testing.assert_close(torch.tensor(together[i]), torch.tensor(pack(s).steps(10)[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_any_micro_batch_gives_the_same_gradient(micro_batch):
    whole, split = pack(spec("pissa")), pack(spec("pissa", micro_batch=micro_batch))
    torch.testing.assert_close(torch.tensor(split.steps(5)), torch.tensor(whole.steps(5)), rtol=1e-5, atol=1e-6)


def test_a_diverging_run_leaves_the_others_alone():
    wild = spec("lora", seed=1, lr=1e30, clip_norm=None)
    calm = spec("lora", seed=2)
    alone, together = pack(calm), pack(wild, calm)
    losses = together.steps(10)
    assert not together.runs[0].active
    assert losses[1] == alone.steps(10)[0]
    assert same(together, 1, alone, 0)


def test_order_is_a_function_of_seed_and_step():
    state = pack(spec("lora", seed=5)).runs[0]
    epoch = [e.item for step in range(1, 7) for e in state.data.batch(step)]
    assert sorted(epoch) == sorted(e.item for e in made_up(5)), "an epoch sees every item once"
    assert epoch == [e.item for step in range(1, 7) for e in pack(spec("lora", seed=5)).runs[0].data.batch(step)]
    assert epoch != [e.item for step in range(7, 13) for e in state.data.batch(step)]


def test_the_loss_is_the_mean_over_answer_tokens():
    items = (Encoded((1, 2, 3, 4, 5, 6), 2, "0"), Encoded((7, 8, 9), 1, "1"))
    one = pack(spec("lora", batch_size=2), data=[items])
    total = 0.0
    with torch.no_grad():
        for e in items:
            logits = one.base.model(input_ids=torch.tensor([e.input_ids])).logits[0].log_softmax(-1)
            total -= sum(logits[t - 1, e.input_ids[t]].item() for t in range(e.answer_start, len(e.input_ids)))
    assert one.steps(1)[0][0] == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("preset", ["lora", "dora", "adalora", "goat", "hydralora"])
def test_packed_equals_solo_where_layers_are_wide(preset: str, monkeypatch: pytest.MonkeyPatch):
    """The gradient of a wide layer's A is a product of its own."""
    plain = pack(spec(preset, dropout=0.1, seed=1)).steps(5)
    monkeypatch.setattr(_product, "WIDE", 1)
    turned = pack(spec(preset, dropout=0.1, seed=1)).steps(5)
    assert turned == [pytest.approx(losses, rel=1e-5) for losses in plain]
    require_equal(preset, 20)
