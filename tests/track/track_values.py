"""Stand-ins for a method, a model, a data set and a task, so that a run folder can be made without training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    name: str
    init: str = "svd_minor"


@dataclass(frozen=True)
class Model:
    name: str = "pico"


@dataclass(frozen=True)
class Numbers:
    split: str = "train"


@dataclass(frozen=True)
class Task:
    split: str = "test"
