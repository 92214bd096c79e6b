"""ablora in a notebook: the commands of the same names, as functions that give pandas frames and paths.

    import ablora
    ablora.plan("method=lora,pissa", "train.lr=1e-3,3e-3")            # prints what it would do
    runs = ablora.run("first", "method=lora,pissa", "train.lr=1e-3,3e-3")
    ablora.collect("first")                                           # the table of runs, again
    ablora.figures("first")                                           # files, drawn anew
    ablora.measures("first")["subspace"]                              # what the adapters learnt

Runs, studies and caches are where the command line has them: below the working directory, or where ABLORA_RUNS and
ABLORA_CACHE say. A user's mistake raises `ablora.spec.BadInput`. `import ablora` itself imports nothing.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["collect", "figures", "measures", "plan", "run"]


def plan(*overrides: str) -> None:
    """Print what `run` would do with these overrides: cells, runs, what is done already, trainable parameters."""
    from ablora import cli

    warnings.filterwarnings("ignore", "IProgress not found")  # as in `run`
    cli.plan(["-m", *overrides])


def run(study: str, *overrides: str, retry: bool = False) -> pd.DataFrame:
    """Run what the study asks for and is not done yet, and return its table; called again, it goes on.

    A run that fails is a row with its `failure_class`, and ends nothing. `retry` tries failed runs again. Interrupting
    the kernel stops at the end of a step and raises KeyboardInterrupt; every run goes on from there later.
    """
    from ablora import cli

    # transformers' progress bars are off, and in a notebook tqdm warns of the widgets that they would need.
    warnings.filterwarnings("ignore", "IProgress not found")
    code = cli.run(["-m", *overrides, f"study={study}", *(["--retry"] if retry else [])])
    if code == 130:
        raise KeyboardInterrupt
    return collect(study)


def collect(study: str) -> pd.DataFrame:
    """One row per run: its method and settings, state, and every metric by its name; `label.<axis>` are swept axes.

    A run whose files cannot be read is a row that says so in `problem`.
    """
    from ablora.store.roots import Roots
    from ablora.study.manifest import existing_study
    from ablora_analysis import table

    roots = Roots.from_environment()
    return table.read_rows(roots, existing_study(roots, study).name)[0]


def figures(study: str) -> list[Path]:
    """Draw every figure and table of the study; the files in studies/<study>/figures/, sorted by name."""
    from ablora.store.roots import Roots
    from ablora.study.manifest import existing_study
    from ablora_analysis.figures import main

    roots = Roots.from_environment()
    return main.draw_all(roots, existing_study(roots, study).name)


def measures(study: str) -> dict[str, pd.DataFrame]:
    """Measure what the study's adapters learnt, against the base and against each other: tables by their names
    (subspace, phi, projection, spectrum). What is measured already is read."""
    from ablora.store.roots import Roots
    from ablora.study.manifest import existing_study
    from ablora_analysis.measure import main

    roots = Roots.from_environment()
    return main.read(main.measure_study(roots, existing_study(roots, study).name))
