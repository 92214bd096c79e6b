"""Where and how a study runs: never part of a run's specification or id."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablora.dispatch.base import Cluster
from ablora.spec import BadInput, check
from ablora.track import TrackerConfig
from ablora.tree import build, to_tree

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Execution:
    """The settings beside the specification."""

    study: str | None
    """The study's name; none: a name made from the question."""
    tracker: TrackerConfig
    cluster: Cluster

    def to_tree(self) -> dict[str, Any]:
        return {"tracker": to_tree(self.tracker), "cluster": to_tree(self.cluster)}


def execution_of(tree: Mapping[str, Any]) -> Execution:
    """The execution settings of a configuration's tree."""
    try:
        tracker = build(tree.get("tracker"), TrackerConfig)
    except BadInput as error:
        raise error.under("tracker") from error
    try:
        cluster = build(tree.get("cluster"))
    except BadInput as error:
        raise error.under("cluster") from error
    check(hasattr(cluster, "drain"), "cluster", tree.get("cluster"), "a file of conf/cluster")
    return Execution(checked_name(tree.get("study")), tracker, cluster)


def checked_name(name: Any) -> str | None:
    """A study's name as its folder may be called."""
    if name is None:
        return None
    legal = "letters, digits, dots, dashes and underscores, beginning with a letter or digit"
    check(bool(NAME.fullmatch(str(name))), "study", name, legal)
    return str(name)
