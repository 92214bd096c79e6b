"""What the head of a report says: the question, the protocol, what came out, and what a reader must be warned of."""

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ablora
from ablora_analysis.figures import arms, style
from ablora_analysis.figures.result_table import Cell, Panel
from ablora_analysis.report.evidence import Evidence, state_of
from ablora_analysis.report.numbers import listed, number, runs_of, signed

SWEEPS = Path(ablora.__file__).parent / "conf" / "sweeps"


class Finding(NamedTuple):
    """What one metric on one data set says, in a sentence or two."""

    where: str
    """The data set and setting, empty where the study has one."""
    metric: str
    sentences: tuple[str, ...]


def header_of_sweep(plan: Mapping[str, Any], sweeps: Path = SWEEPS) -> dict[str, str]:
    """The comment at the top of the sweep file that the plan names: Question, Paper, Method, Cells, Says."""
    names = [word.partition("=")[2] for word in plan.get("overrides", []) if word.lstrip("+").startswith("sweeps=")]
    path = sweeps / f"{names[0]}.yaml" if names and re.fullmatch(r"[\w.-]+", names[0]) else None
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []:
        if match := re.fullmatch(r"# (\w+):\s+(.*)", line):
            key, found[match[1]] = match[1], match[2]
        elif key and (match := re.fullmatch(r"#\s{3,}(\S.*)", line)):
            found[key] += f" {match[1]}"
        elif not line.startswith("#"):
            break
    return found


def question(evidence: Evidence, header: Mapping[str, str]) -> str:
    """As the sweep file puts it, or as the plan's arms do."""
    if "Question" in header:
        asked = header["Question"]
        return asked[0].upper() + asked[1:]
    names = list(dict.fromkeys(evidence.prepared["arm"]))
    where = listed([name for name in dict.fromkeys(evidence.prepared["dataset"]) if name]) or "this data set"
    return (
        f"Which of {listed(names, 8)} does best on {where}?"
        if len(names) > 1
        else f"How does {names[0]} do on {where}?"
    )


def compared(evidence: Evidence) -> str:
    """The arms, the data, and how many runs."""
    frame = evidence.prepared
    names, datasets = (list(dict.fromkeys(frame[column])) for column in ("arm", "dataset"))
    models = [str(model) for model in dict.fromkeys(frame["model"].dropna())]
    ranks = [str(rank) for rank in sorted(set(frame["rank"].dropna()))]
    parts = [f"{len(names)} {'arms' if len(names) > 1 else 'arm'} ({listed(names, 12)})"]
    parts += [f"on {listed([name for name in datasets if name])}"] if any(datasets) else []
    parts += [f"with the base model {listed(models)}"] if models else []
    parts += [f"at rank {listed(ranks)}"] if ranks else []
    return " ".join(parts) + f": {runs_of(len(evidence.runs))}."


def protocol(evidence: Evidence) -> str:
    """How a method's learning rate was chosen, and on what it is then compared."""
    runs = evidence.runs
    rates = sorted({len(choice.lrs) for choice in evidence.choices})
    seeds = sorted({len(choice.seeds) for choice in evidence.choices if choice.seeds})
    tune, confirm = (sorted(set(runs["seed"][runs["why"].str.contains(why)].dropna())) for why in ("tune", "confirm"))
    metric = next((choice.metric for choice in evidence.choices if choice.metric), "")
    of_seeds = f"{_span(seeds)} seed{'s' if seeds and seeds[-1] > 1 else ''}"
    if tune and confirm:
        least = f"the rate with the least mean {style.axis_title(metric)}"
        return (f"Each arm tries its learning rates with {_seeds(tune)}; {least} is run again with "
                f"fresh {_seeds(confirm)}, and those runs alone are compared.")  # fmt: skip
    if not rates or rates[-1] <= 1:
        return f"One learning rate per arm, not tuned{f'; {of_seeds} each' if seeds else ''}."
    held_out = "on a validation split that the comparison does not use" if metric.startswith("validation_") else \
        "on the reported items themselves (which flatters every arm)"  # fmt: skip
    return (f"Each arm is compared at the best of its {_span(rates)} learning rates, the one with the least mean "
            f"{style.axis_title(metric)}, chosen {held_out} and with the same {of_seeds}.")  # fmt: skip


def _seeds(seeds: list[Any]) -> str:
    named = listed([str(seed) for seed in seeds])
    return f"seed {named}" if len(seeds) == 1 else f"seeds {named}"


def _span(counts: list[int]) -> str:
    return " to ".join(dict.fromkeys(str(n) for n in (counts[0], counts[-1]))) if counts else "no"


def findings(evidence: Evidence) -> list[Finding]:
    """One per metric, data set and setting."""
    panels = [panel for panel in evidence.result.panels if panel.cells]
    several = len({(panel.dataset, panel.setting) for panel in panels}) > 1
    return [
        Finding(arms.panel_title(p.setting, p.dataset) if several else "", p.metric, tuple(_sentences(p)))
        for p in panels
    ]


def _sentences(panel: Panel) -> Iterator[str]:
    if panel.refused:
        yield f"Not compared: {panel.refused}."
    leader = next((cell for cell in panel.cells if cell.reference), None)
    if leader is None:
        if len(panel.cells) == 1:
            yield f"{_with_interval(panel.cells[0])}; there is nothing to compare it with."
        elif not panel.refused:
            yield "Nothing is called best: fewer than two arms can be ranked."
    elif leader.best:
        yield from _tested(panel, leader)
    else:
        yield (f"Nothing is called best, for a test needs three seeds or more. "
               f"The best mean is that of {_with_interval(leader)}.")  # fmt: skip
    for reason, words in _REASONS.items():
        if own := [cell.arm for cell in panel.cells if cell.not_ranked == reason]:
            yield f"Not ranked: {listed(own)}, {words}."


_REASONS = {
    "edge": "whose best rate is the least or greatest tried (a better one may lie beyond)",
    "diverged": "of which a seed diverged at its best rate",
    "seeds": "with fewer finished seeds than the others",
}


def _tested(panel: Panel, leader: Cell) -> Iterator[str]:
    tied = [cell for cell in panel.cells if cell.tied]
    behind = [cell for cell in panel.cells if cell.to_best and not cell.tied and not math.isnan(cell.p_holm)]
    if tied:
        yield (f"{listed([leader.arm, *(cell.arm for cell in tied)])} are tied: the tests cannot tell them apart. "
               f"The best mean is that of {_with_interval(leader)}.")  # fmt: skip
    else:
        yield f"{_with_interval(leader)} is best."
    if behind:
        worse = [f"{cell.arm} ({_difference(cell)})" for cell in behind]
        yield f"Worse than it: {listed(worse, 12)}."
    if math.isfinite(panel.detectable):
        least = number(panel.detectable)
        yield f"Over the comparisons on average, a difference below {least} would probably go unseen."


def _with_interval(cell: Cell) -> str:
    return f"{cell.arm}, {number(cell.score.mean)}{interval(cell)}"


def interval(cell: Cell) -> str:
    """ " [low, high]", or that there is none."""
    if math.isnan(cell.score.low):
        return " (no interval)"
    ends = f" [{number(cell.score.low)}, {number(cell.score.high)}]"
    return {"range": f"{ends} (range of two seeds)", "items": f"{ends} (over items of one seed)",
            "share": f"{ends} (over items of one seed)"}.get(cell.score.basis, ends)  # fmt: skip


def _difference(cell: Cell) -> str:
    pair = cell.to_best
    assert pair is not None
    ends = "" if math.isnan(pair.low) else f" [{signed(pair.low)}, {signed(pair.high)}]"
    return f"{signed(pair.difference)}{ends}"


def reproduce(evidence: Evidence) -> list[str]:
    """The commands that make the study and this page again; empty without a plan."""
    overrides = evidence.plan.get("overrides")
    if not isinstance(overrides, list):
        return []
    name = shlex.quote(evidence.name)
    own = [shlex.quote(str(word)) for word in overrides]
    own += [] if any(word.startswith("study=") for word in own) else [f"study={name}"]
    more = [f"ablora analyse {name}"] if (evidence.folder / "measures").is_dir() else []
    return [f"ablora run -m {' '.join(own)}", *more, f"ablora figures {name}", f"ablora report {name}"]


def states(evidence: Evidence) -> dict[str, int]:
    """How many runs stand where, in a fixed order."""
    order = ("done", "pruned", "diverged", "failed", "stale", "lost", "running", "planned", "unreadable")
    found = [state_of(row) for _, row in evidence.runs.iterrows()]
    return {
        state: found.count(state)
        for state in sorted(set(found), key=lambda s: (order.index(s) if s in order else 9, s))
    }
