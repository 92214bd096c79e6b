"""Golden numbers: five steps of every preset on the tiny base. `make golden` writes them anew.

A change that alters a number must raise the `revision` of the value that it alters (so that results of the older one
show as stale), and then write the golden numbers anew.
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "train")]

from packs import pack, spec  # noqa: E402

from ablora.spec import canonical  # noqa: E402
from presets import method, packed  # noqa: E402

FILE = HERE / "five_steps.json"


def revisions(preset: str) -> dict[str, int]:
    """The revision of every axis value of a preset, by class."""
    tree = canonical(method(preset))
    return {v["kind"]: v["revision"] for v in tree.values() if isinstance(v, dict) and "revision" in v}


def golden() -> dict[str, Any]:
    """By preset: revisions, and the losses of five steps (nats)."""
    return {
        name: {"revisions": revisions(name), "losses_nats": pack(spec(name, dropout=0.1, seed=3)).steps(5)[0]}
        for name in packed()
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden(), indent=1) + "\n")
