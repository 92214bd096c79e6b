"""Runs of AdaLoRA while they train: what stays at the end, resumed, packed, held, and from singular directions."""

import pytest
import torch
from packs import Pack, pack, spec
from torch import Tensor

from ablora.method.export import load_adapter, merged_weights, peft_tensors, save_adapter
from presets import method
from tiny import adapt, llama, logits

T = 12
FAST = ("structure.target_rank=3", "structure.schedule.every=2")


def active(trained: Pack, run: int = 0) -> Tensor:
    return torch.cat([f.params["E"].detach()[:, 0] != 0 for f in trained.adapted.factors(run).values()])


def test_a_trained_run_ends_at_its_budget_and_is_saved_with_it(tmp_path):
    trained = pack(spec("adalora", *FAST, max_steps=T, lr=1e-2))
    assert trained.steps(T)[0][-1] > 0
    assert int(active(trained).sum()) == 3 * len(trained.adapted.modules)
    save_adapter(trained.adapted, 0, tmp_path)
    fresh = llama()
    load_adapter(adapt(fresh, method("adalora", *FAST), seed=1), 0, tmp_path)
    assert torch.equal(logits(fresh), logits(trained.base.model))
    exported = peft_tensors(trained.adapted, 0)
    assert exported is not None
    columns = torch.cat([t.abs().sum(0) > 0 for name, t in exported[0].items() if "lora_B" in name])
    assert int(columns.sum()) == 3 * len(trained.adapted.modules)
    assert exported[1]["r"] == 8


@pytest.mark.parametrize("cut", [5, 10], ids=["while_it_falls", "when_it_has_settled"])
def test_a_resumed_run_goes_on_bit_for_bit(cut):
    wanted = spec("adalora", *FAST, max_steps=T, lr=1e-2)
    whole, first, second = pack(wanted), pack(wanted), pack(wanted)
    losses = whole.steps(T)[0]
    first.steps(cut)
    saved = {name: tensor.clone() for name, tensor in first.runs[0].state().items()}
    assert any(name.startswith("structure/") for name in saved)
    second.runs[0].load(saved, first.runs[0].counters())
    assert second.steps(T - cut)[0] == losses[cut:]
    assert all(torch.equal(p, whole.runs[0].parameters[k]) for k, p in second.runs[0].parameters.items())


@pytest.mark.parametrize("init", ["svd_principal", "svd_minor"])
def test_from_singular_directions_it_learns_and_the_base_stays_whole(init):
    trained = pack(spec("adalora", f"init={init}", *FAST, max_steps=T, lr=3e-2, batch_size=24))
    before = logits(trained.base.model)
    losses = trained.steps(T)[0]
    assert losses[-1] < losses[0] - 0.05
    assert int(active(trained).sum()) == 3 * len(trained.adapted.modules)
    zeros = {k: torch.zeros_like(p) for k, p in trained.adapted.parameters(0).items() if k.endswith(".E")}
    trained.adapted.write(0, zeros)
    assert torch.equal(logits(trained.base.model), before)
    weights = merged_weights(trained.adapted, 0)
    assert all(torch.equal(w, trained.adapted.modules[k].base.weight) for k, w in weights.items())


def test_ranks_of_a_pack_are_padded_without_a_trace():
    """Penalty, scores and masks beside a run of rank 16, over a whole schedule."""
    small = spec("adalora", "structure.target_rank=2", rank=4, seed=1, max_steps=T, lr=1e-2)
    large = spec("adalora", "structure.target_rank=8", rank=16, seed=2, max_steps=T, lr=1e-2)
    alone, together = pack(small), pack(large, small)
    a, b = alone.steps(T)[0], together.steps(T)[1]
    assert a == pytest.approx(b, rel=1e-5)
    assert torch.equal(active(alone), active(together, 1))
    assert int(active(together, 0).sum()) == 8 * len(together.adapted.modules)


def test_any_micro_batch_gives_the_same_penalty():
    whole, split = pack(spec("adalora")), pack(spec("adalora", micro_batch=1))
    torch.testing.assert_close(torch.tensor(split.steps(4)), torch.tensor(whole.steps(4)), rtol=1e-5, atol=1e-6)


def test_held_factors_are_no_evidence():
    trained = pack(spec("adalora", "update=freeze_a", *FAST, max_steps=T, lr=1e-2))
    trained.steps(4)
    assert not any(".A." in name for name in trained.runs[0].structure_state)
    trained.steps(T - 4)
    assert int(active(trained).sum()) == 3 * len(trained.adapted.modules)
