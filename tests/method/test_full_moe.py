"""The mixture of fully trained experts against a mixture of whole weights written plainly."""

from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ablora.method.full_moe import FullMoE
from ablora.method.seeds import generator
from ablora.method.structure._base import Context, Shape
from presets import method

E, K, TOKENS = 4, 2, 40


def plain(x: Tensor, W: Tensor, router: Tensor, bias: Tensor) -> Tensor:
    """Every token by itself: its k experts of the largest p, their whole weights, w = p of these over its sum."""
    out = []
    for row in x:
        p = (router @ row).softmax(0)
        chosen = p.topk(K).indices
        share = p[chosen] / p[chosen].sum()
        out.append(sum(s * (W[e] @ row + bias) for s, e in zip(share, chosen)))
    return torch.stack(cast(list[Tensor], out))


@pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 7)], ids=["gated_input", "gated_output"])
def test_three_adamw_steps_are_those_of_whole_weights(m, n):
    rng = torch.Generator().manual_seed(0)
    x, target = (torch.randn(TOKENS, size, generator=rng, dtype=torch.float64) for size in (n, m))
    W0, bias = torch.randn(m, n, generator=rng, dtype=torch.float64), torch.randn(m, dtype=torch.float64, generator=rng)
    chosen: FullMoE = method("full_moe", f"structure.experts={E}", f"structure.top_k={K}")
    structure, shape = chosen.structure, Shape(m, n, 0)
    own = {k: v.double().requires_grad_() for k, v in structure.extra(shape, generator("init"), W0).items()}
    frozen = {k: v.double() for k, v in structure.constants(shape, W0).items()}
    W = W0.repeat(E, 1, 1).requires_grad_()
    router = own["router"].detach().clone().requires_grad_()
    y = x @ W0.mT + bias
    context = Context(x, torch.ones(TOKENS, dtype=torch.bool), False, W0, bias)
    mine, theirs = (torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.0) for ps in (list(own.values()), [W, router]))
    for step in range(3):
        out, _ = structure.apply(own, frozen, x, y, context)
        wanted = plain(x, W, router, bias)
        torch.testing.assert_close(out, wanted, rtol=1e-8, atol=1e-8)  # Adam enlarges rounding where a gradient is ~0
        if step == 0:
            torch.testing.assert_close(out, y, rtol=1e-12, atol=1e-12)
        for loss, optimizer in ((F.mse_loss(out, target), mine), (F.mse_loss(wanted, target), theirs)):
            optimizer.zero_grad()
            loss.backward()
        torch.testing.assert_close(own["D"].grad, W.grad, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(own["router"].grad, router.grad, rtol=1e-6, atol=1e-9)
        mine.step()
        theirs.step()
    torch.testing.assert_close(own["D"], W - W0, rtol=1e-6, atol=1e-8)
    assert own["D"].detach().abs().max() > 1e-3
