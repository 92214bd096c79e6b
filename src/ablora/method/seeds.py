"""A run's random numbers: every use has a generator of its own, derived from the run's seed and what it is for."""

import hashlib

import torch


def fold(*parts: int | str) -> int:
    """63 bits that depend on every part: equal parts, equal numbers, on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator at the state that `parts` name."""
    return torch.Generator().manual_seed(fold(*parts))
