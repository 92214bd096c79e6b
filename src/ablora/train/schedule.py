"""Learning-rate schedules as factors of the base rate."""

import math

from ablora.spec import TrainSpec


def factor(train: TrainSpec, step: int) -> float:
    """What multiplies the learning rate at optimizer step `step` (from 1), in [0, 1].

    With t = step - 1 steps behind it, w = warmup_steps and T = max_steps: t/w while t < w; then, with
    u = (t - w)/(T - w): 1 - u (linear), (1 + cos(pi u))/2 (cosine), 1 (constant). These are the schedules of
    transformers' optimization.py, so that protocols carry over; as there, the first step of a warmup has rate 0.
    """
    t, w, total = step - 1, train.warmup_steps, train.max_steps
    if t < w:
        return t / w
    u = (t - w) / max(total - w, 1)
    return {"linear": 1 - u, "cosine": (1 + math.cos(math.pi * u)) / 2, "constant": 1.0}[train.schedule]
