"""A number that changes without its revision would let old results pass for new ones."""

import json
import sys
from pathlib import Path

import pytest

from presets import packed

sys.path.insert(0, str(Path(__file__).parent))
import make

KNOWN = json.loads(make.FILE.read_text())


@pytest.fixture(scope="module")
def found():
    return make.golden()


@pytest.mark.parametrize("preset", packed())
def test_five_steps(preset, found):
    assert preset in KNOWN, "a new preset: run `make golden`"
    known, now = KNOWN[preset], found[preset]
    if known["losses_nats"] != pytest.approx(now["losses_nats"], rel=1e-6):
        hint = "run `make golden`" if known["revisions"] != now["revisions"] else "raise the revision of what changed"
        pytest.fail(f"{preset} gives other numbers ({now['losses_nats']}, were {known['losses_nats']}): {hint}")
    assert known["revisions"] == now["revisions"], "a revision was raised: run `make golden`"
