"""What the user chooses about tracking."""

from dataclasses import dataclass
from typing import Literal

from ablora.spec import check

KINDS = ("off", "wandb")
MODES = ("auto", "online", "offline")


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """Whether and where runs are mirrored; never part of a run's specification."""

    kind: Literal["off", "wandb"]
    mode: Literal["auto", "online", "offline"] = "auto"
    """`auto`: what WANDB_MODE says; without it, online where there is a login, and offline otherwise."""
    project: str = "ablora"
    entity: str | None = None
    """The W&B user or team; null: the login's own."""

    def __post_init__(self) -> None:
        check(self.kind in KINDS, "kind", self.kind, f"one of {', '.join(KINDS)}")
        check(self.mode in MODES, "mode", self.mode, f"one of {', '.join(MODES)}")
        check(bool(self.project), "project", self.project, "the name of a W&B project")
