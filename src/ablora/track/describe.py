"""How a run looks in a tracker: its card (name, group, tags, configuration) and its rows of numbers.

Names are for eyes: nothing is ever parsed back out of them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablora.spec import RunSpec, identity
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder
from ablora.track.config import TrackerConfig
from ablora.tree import to_tree

TAG_CHARACTERS = 64
"""W&B refuses a longer tag, and with it the run."""


def card(folder: RunFolder, spec: RunSpec, config: TrackerConfig, study: str | None, roots: Roots) -> dict[str, Any]:
    """Everything a tracker is told about a run before its first row, as JSON."""
    studies: list[str] = sorted({*studies_of(roots, folder.id), *([study] if study else [])})
    return {
        "id": folder.id,
        "name": label(spec),
        "group": group(spec),
        "tags": [name[:TAG_CHARACTERS] for name in studies],
        "job_type": method_name(spec),
        "config": json.loads(json.dumps(to_tree(spec), default=str)),
        "project": config.project,
        "entity": config.entity,
        "mode": config.mode,
    }


def method_name(spec: RunSpec) -> str:
    return str(getattr(spec.method, "name", type(spec.method).__name__))


def label(spec: RunSpec) -> str:
    """Such as `milora r8 lr1e-3 seed0`."""
    rank = [] if spec.rank is None else [f"r{spec.rank}"]
    return " ".join([method_name(spec), *rank, f"lr{_short(spec.train.lr)}", f"seed{spec.seed}"])


def _short(value: float) -> str:
    """0.001 as 1e-3, 0.00025 as 2.5e-4."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def group(spec: RunSpec) -> str:
    """12 hexadecimal digits that the seeds of one cell share: the hash of the identity without the seed."""
    whole = identity(spec)
    del whole["seed"]
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def studies_of(roots: Roots, run: str) -> list[str]:
    """The studies whose manifest names the run. Manifests are searched as text first: most do not name it."""
    return [path.parent.name for path in roots.studies.glob("*/manifest.jsonl") if run in runs_of(path, run)]


def runs_of(manifest: Path, only: str | None = None) -> list[str]:
    """The run ids of a manifest in order, each once; a line cut by a dying writer is passed over."""
    text = manifest.read_text(encoding="utf-8")
    if only is not None and only not in text:
        return []
    ids: dict[str, None] = {}
    for line in text.splitlines():
        try:
            ids[json.loads(line)["id"]] = None
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return list(ids)


def row(record: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as a tracker's row: `train/loss_nats`, `eval/<task>/<metric>`, and its `step`."""
    if record["kind"] == "eval":
        prefix, values = f"eval/{record['task']}", record["metrics"]
    else:
        prefix, values = str(record["kind"]), record
    return {"step": record["step"], **_numbers(prefix, values)}


def timing_row(record: Mapping[str, Any]) -> dict[str, float]:
    """A line of timing.jsonl: `timing/wall_s`, `timing/tokens_per_s`, ...; it joins the training row of its step."""
    return _numbers("timing", record)


def _numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numeric entries; null (a value that does not exist) and the step have no place among them."""
    return {
        f"{prefix}/{key}": value
        for key, value in values.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }
