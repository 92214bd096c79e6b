"""Where and how a study runs: never part of a run's specification or id."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablora.dispatch.base import Cluster
from ablora.spec import BadInput, RunSpec, check
from ablora.study.manifest import Pack
from ablora.study.packing import Packing, packs_of
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
    packing: Packing

    def pack(self, specs: Mapping[str, RunSpec]) -> Pack:
        """How the runs of a study are packed where it is to run."""
        cluster = self.cluster
        return lambda runs: packs_of({r: specs[r] for r in runs}, self.packing, cluster.places, cluster.memory_gib)

    def to_tree(self) -> dict[str, Any]:
        memory = {"limit_gib": self.packing.limit_gib}
        places = {"tracker": to_tree(self.tracker), "cluster": to_tree(self.cluster)}
        return {**places, "pack": self.packing.runs, "memory": memory}


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
    return Execution(checked_name(tree.get("study")), tracker, cluster, _packing(tree))


def _packing(tree: Mapping[str, Any]) -> Packing:
    memory = tree.get("memory") or {}
    legal = "a mapping with limit_gib"
    check(isinstance(memory, Mapping) and not set(memory) - {"limit_gib"}, "memory", memory, legal)
    return build({"runs": tree.get("pack", Packing().runs), "limit_gib": memory.get("limit_gib")}, Packing)


def checked_name(name: Any) -> str | None:
    """A study's name as its folder may be called."""
    if name is None:
        return None
    legal = "letters, digits, dots, dashes and underscores, beginning with a letter or digit"
    check(bool(NAME.fullmatch(str(name))), "study", name, legal)
    return str(name)
