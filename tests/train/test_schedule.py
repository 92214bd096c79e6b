"""Schedules against transformers' own."""

from dataclasses import replace

import pytest
import torch
from packs import TRAIN
from transformers import get_scheduler

from ablora.train.schedule import factor


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_factor_is_that_of_transformers(schedule, warmup):
    train = replace(TRAIN, schedule=schedule, warmup_steps=warmup, max_steps=40)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    reference = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=40)
    for step in range(1, 41):
        assert factor(train, step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        reference.step()
