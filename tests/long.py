"""Which tests are left out of `make test`, from the output of a whole run with durations.

    PYTEST_ADDOPTS="--durations=0 --durations-min=1" make test-ci > LOG
    python tests/long.py LOG SECONDS > tests/long.txt

A test that took SECONDS is listed by its id; where a fixture of several tests took them, its whole file is.
"""

import re
import sys
from collections import Counter
from pathlib import Path

KEPT = (
    "tests/train/test_execute.py",
    "tests/train/test_interrupted.py::test_a_stopped_evaluation_goes_on_at_its_item[7-crash]",
    "tests/train/test_pack.py::test_packed_equals_solo[goat]",
)
"""Quick or not: what a change of training should meet first."""


def listed(log: str, least_s: float) -> list[str]:
    """The ids and files, sorted."""
    took = Counter[str]()
    for seconds, phase, test in re.findall(r"^([\d.]+)s (call|setup) +(tests/\S+::.*?) *$", log, re.M):
        name = test.partition("::")[0] if phase == "setup" else test
        took[name] = max(took[name], float(seconds))
    files = {name for name, seconds in took.items() if seconds >= least_s and "::" not in name}
    long = {name for name, seconds in took.items() if seconds >= least_s and name.partition("::")[0] not in files}
    return sorted((files | long) - set(KEPT))


if __name__ == "__main__":
    print("\n".join(listed(Path(sys.argv[1]).read_text(), float(sys.argv[2]))))
