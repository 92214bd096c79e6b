"""What stands in the way of trusting a study's result, each in a sentence with the runs that it speaks of."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from ablora_analysis.figures import arms
from ablora_analysis.report.evidence import Evidence, state_of
from ablora_analysis.report.numbers import listed, runs_of


class Warned(NamedTuple):
    text: str
    ids: tuple[str, ...] = ()


_MEANING = {
    "diverged": "diverged (a loss that is no number); they count as a result and are in no mean",
    "failed": "failed and are left out",
    "stale": "are stale (today's code or data gives them another id) and are left out",
    "lost": "were lost (their process is gone without a word); the same command goes on with them",
    "running": "are still running",
    "pruned": "were given up on the way by the tuner; their rates count as tried",
    "planned": "have not been run",
    "unreadable": "have a file that cannot be read and are left out",
}


def warnings(evidence: Evidence) -> list[Warned]:
    """In the order of weight: what is missing, what is not fair, what cannot be tested."""
    return [*_unfinished(evidence), *_rates(evidence), *_seeds(evidence), *_unequal(evidence), *_places(evidence)]


def _unfinished(evidence: Evidence) -> Iterator[Warned]:
    runs = evidence.runs
    state = [state_of(row) for _, row in runs.iterrows()]
    if runs.empty or not any(word == "done" for word in state):
        yield Warned("No run of this study has finished: there is nothing to compare yet.")
    for word, meaning in _MEANING.items():
        own = runs[[found == word for found in state]]
        if own.empty:
            continue
        kinds = own["failure_class"].dropna().value_counts() if word == "failed" else pd.Series(dtype=int)
        counted = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        yield Warned(
            f"{len(own)} of {runs_of(len(runs))} {meaning}{f' ({counted})' if counted else ''}.", tuple(own.id)
        )
    for problem in dict.fromkeys(map(str, evidence.problems)):
        yield Warned(f"Cannot be read: {problem.replace(f'{evidence.roots.runs.parent}/', '')}")
    unchecked = runs[runs["stale"].isna() & pd.Series(state, index=runs.index).eq("done")]
    if len(unchecked):
        yield Warned(
            f"{runs_of(len(unchecked))} could not be checked against today's code and data.", tuple(unchecked.id)
        )


def _rates(evidence: Evidence) -> Iterator[Warned]:
    edge = [choice for choice in evidence.choices if choice.edge]
    if edge:
        named = listed([f"{_place(evidence, c)} ({c.lr:g})" for c in edge], 12)
        yield Warned(f"The best learning rate is the least or greatest that was tried: {named}. Not ranked.",
                     tuple(run for choice in edge for run in choice.ids))  # fmt: skip
    for key, group in itertools.groupby(sorted(evidence.choices, key=_key), _key):
        counts = {len(choice.lrs): choice.arm for choice in group}
        if len(counts) > 1:
            parts = ", ".join(f"{arm} {n}" for n, arm in sorted(counts.items()))
            yield Warned(f"Unequal tuning{_at(key)}: learning rates tried, e.g. {parts}.")
    diverged = [choice for choice in evidence.choices if choice.diverged]
    if diverged:
        yield Warned(f"A seed diverged at the chosen rate of {listed([_place(evidence, c) for c in diverged], 12)}.",
                     tuple(run for choice in diverged for run in choice.diverged))  # fmt: skip


def _seeds(evidence: Evidence) -> Iterator[Warned]:
    counts = [len(choice.ids) for choice in evidence.choices if choice.ids]
    if counts and max(counts) == 1:
        yield Warned("One seed per arm: intervals speak of other items, not of other seeds, and nothing is tested.")
    elif counts and max(counts) == 2:
        yield Warned("Two seeds per arm: their range is shown, and nothing is tested.")
    elif counts and min(counts) < max(counts):
        few = [_place(evidence, choice) for choice in evidence.choices if 0 < len(choice.ids) < max(counts)]
        yield Warned(f"Fewer finished seeds than the others: {listed(few, 12)}.")


def _unequal(evidence: Evidence) -> Iterator[Warned]:
    yield from (Warned(note) for note in evidence.result.notes if note.startswith("Unequal budgets"))
    used = evidence.runs[evidence.runs.id.isin(evidence.result.ids)]
    for column, words in (("max_tokens", "longest example (tokens)"), ("batch_size", "examples per step"),
                          ("max_steps", "steps")):  # fmt: skip
        for key, part in used.groupby(["setting", "dataset"]):
            values = sorted(set(part[column].dropna()))
            if len(values) > 1:
                yield Warned(f"Unequal {words}{_at(key)}: {listed([str(value) for value in values])}.")


def _places(evidence: Evidence) -> Iterator[Warned]:
    """Compared runs that were made by different code or on different devices."""
    for field, words in (("code_sha256", "versions of the code"), ("device", "kinds of device")):
        found: dict[str, list[str]] = {}
        for run in evidence.result.ids:
            for start in evidence.starts.get(run, []):
                if start.get(field) is not None:
                    found.setdefault(str(start[field]), []).append(run)
        if len(found) > 1:
            named = listed([f"{value[:40 if field == 'device' else 8]} ({runs_of(len(set(runs)))})"
                            for value, runs in sorted(found.items())])  # fmt: skip
            yield Warned(f"The compared runs were made with {len(found)} {words}: {named}.")


def _key(choice: arms.Choice) -> tuple[str, str]:
    return choice.setting, choice.dataset


def _at(key: object) -> str:
    title = arms.panel_title(*key) if isinstance(key, tuple) else ""
    return f" ({title})" if title else ""


def _place(evidence: Evidence, choice: arms.Choice) -> str:
    return choice.arm + (_at(_key(choice)) if len(arms.panels(evidence.choices)) > 1 else "")
