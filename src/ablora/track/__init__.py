"""Weights & Biases as a mirror of the run folder. wandb is imported in a process of its own, and only here."""

from ablora.track.config import TrackerConfig
from ablora.track.observer import make

__all__ = ["TrackerConfig", "make"]
