"""The measures of a study's chosen runs, as figures need them: whole updates only, each row with its arm and seed."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from ablora.store.atomic import Corrupted
from ablora_analysis.figures import arms
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.study import Study

WHOLE = ("update", "expected")
"""The part that stands for a run: the learnt update, or a mixture's at its mean gates. Single experts are not drawn."""

_HEAD = ("id", "module", "layer", "kind", "part", "reason")
COLUMNS = {
    "subspace": (*_HEAD, "side", "against", "i", "j", "phi", "null", "null_low", "null_high"),
    "phi": (*_HEAD, "id_b", "part_b", "side", "i", "j", "phi", "null", "shared_start"),
    "projection": (*_HEAD, "basis", "rank", "norm_w", "norm_update", "amplification", "expected_random"),
    "spectrum": (*_HEAD, "measure", "value"),
}

SIDES = {"left": "left singular vectors (outputs)", "right": "right singular vectors (inputs)"}

_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Comparison(NamedTuple):
    """The arms of one setting and data set, and where their figures go."""

    title: str
    """Empty where the study has one comparison only."""
    suffix: str
    """What a file's name gets, so that two comparisons have two files."""
    choices: tuple[Choice, ...]

    @property
    def ids(self) -> list[str]:
        return sorted({run for choice in self.choices for run in choice.ids})


def read(study: Study, name: str) -> pd.DataFrame | None:
    """One frame of the study's measures; None where the study was not analysed."""
    path = study.measures / f"{name}.parquet"
    if not path.exists():
        return None
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise Corrupted(str(path), str(error)[:60], "a parquet file; `ablora analyse` writes it again") from error
    if missing := [column for column in COLUMNS[name] if column not in frame]:
        found = ", ".join(map(str, frame.columns))
        raise Corrupted(str(path), found, f"the column {missing[0]}; `ablora analyse` writes it")
    return frame


def comparisons(study: Study) -> Iterator[Comparison]:
    """Each setting and data set that has a finished run."""
    keys = arms.panels(study.choices)
    for number, key in enumerate(keys, 1):
        own = tuple(choice for choice in study.choices if (choice.setting, choice.dataset) == key and choice.ids)
        title = arms.panel_title(*key) if len(keys) > 1 else ""
        named = re.sub(r"[^\w=]+", "_", title)
        if own:
            yield Comparison(title, f"_{number}_{named}" if title else "", own)


def whole(frame: pd.DataFrame, choices: Sequence[Choice]) -> pd.DataFrame:
    """The rows of the chosen runs' whole updates, with their `arm` and `seed`."""
    return frame[frame["part"].isin(WHOLE)].merge(runs_of(choices), on="id", how="inner")


def runs_of(choices: Sequence[Choice]) -> pd.DataFrame:
    """The chosen runs: `id`, `arm`, `seed`."""
    rows = [(run, choice.arm, seed) for choice in choices for run, seed in zip(choice.ids, choice.seeds)]
    return pd.DataFrame(rows, columns=pd.Index(["id", "arm", "seed"]))


def ordered(values: Sequence[str] | pd.Series) -> list[str]:
    """Kinds of modules in the order in which a block applies them, others by the alphabet after them."""
    found = set(map(str, values))
    return [kind for kind in _ORDER if kind in found] + sorted(found - set(_ORDER))


def short(kind: str) -> str:
    return kind.removesuffix("_proj")


def strict_mean(rows: pd.DataFrame, by: Sequence[str], value: str) -> pd.Series:
    """The mean per group; NaN for a group with any undefined value, which a mean of the others would hide."""
    groups = rows.groupby(list(by), sort=True)[value]
    return groups.mean().where(groups.count() == groups.size())


def notes(rows: pd.DataFrame, value: str, comparison: Comparison) -> list[str]:
    """What a reader must know of the rows: mixtures, undefined values with their reasons, runs without measures."""
    expected = rows[rows["part"] == "expected"]
    uniform = expected["arm"][expected["gates"] == "uniform"] if "gates" in rows else ()
    out = [*mixtures(expected["arm"], uniform), *gaps(rows, value)]
    if missing := without(rows["id"], comparison):
        out.append(f"Without measures: {len(missing)} of {len(comparison.ids)} runs.")
    return out


def gaps(rows: pd.DataFrame, value: str) -> list[str]:
    """How many values are undefined, and why; what is to be known of those that are not."""
    out = []
    undefined = rows[rows[value].isna()]
    if len(undefined):
        out.append(f"Gaps: {len(undefined)} of {len(rows)} values are undefined ({_reasons(undefined)}).")
    remarked = rows[rows[value].notna() & (rows["reason"].fillna("") != "")]
    if len(remarked):
        out.append(f"Of {len(remarked)} values: {_reasons(remarked)}.")
    return out


def mixtures(arms: Iterable[str], uniform: Iterable[str] = ()) -> list[str]:
    """What stands for a mixture, where there is one."""
    found, plain = sorted(set(arms)), sorted(set(uniform))
    out = [f"Mixtures ({', '.join(found)}): the expected update, at mean gates."] if found else []
    return [*out, *([f"Gates not recorded, so 1/E: {', '.join(plain)}."] if plain else [])]


def without(ids: Iterable[str], comparison: Comparison) -> list[str]:
    """The chosen runs that the measures lack: they were analysed before these were chosen, or could not be."""
    return sorted(set(comparison.ids) - set(ids))


def _reasons(rows: pd.DataFrame) -> str:
    counts = rows["reason"].replace("", "no reason given").fillna("no reason given").value_counts().sort_index()
    return ", ".join(f"{reason}" + (f": {count}" if len(counts) > 1 else "") for reason, count in counts.items())


def span(values: pd.Series | Sequence[int]) -> str:
    """`8`, or `5 to 8`."""
    found = sorted({int(v) for v in values})
    return " to ".join(dict.fromkeys(str(v) for v in (found[0], found[-1]))) if found else "none"
