"""The comparison with PEFT runs to its last line; how long steps take is no business of a test."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--rounds", "2", "--steps", "1", "--sequences", "1", "--tokens", "16"]


@pytest.mark.slow
def test_the_last_line_has_every_ratio():
    command = [sys.executable, str(ROOT / "benchmarks" / "methods.py"), "--width", "pico", "--methods", "lora", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["setting"] == {
        "width": "pico", "sequences": 1, "tokens": 16, "like": "goat:16", "rounds": 2, "steps": 1
    }  # fmt: skip
    assert {"date", "cpu", "cores", "threads", "python", "torch", "peft"} <= found["machine"].keys()
    row = found["methods"]["lora"]
    assert row["parameters"] == row["to_peft"]["parameters"] > 0
    assert row["rank"] == row["to_peft"]["rank"] == row["to_lora"]["rank"]
    for ratio in (row["to_peft"]["step"], row["to_lora"]["step"], row["step_s"]):
        assert 0 < ratio["least"] <= ratio["median"] <= ratio["greatest"] < math.inf
    assert row["to_lora"]["step"]["median"] == row["to_lora"]["peak"] == 1, "plain LoRA to itself"
    assert 0 < row["to_peft"]["peak"] < math.inf
