"""Measures per module, of the runs that are compared, for the views by layer."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from ablora_analysis.report.evidence import Evidence

VALUES = 300_000
"""At most so many numbers stand in the page; beyond, the parts of mixtures go first, then whole runs, both counted."""
WHOLE = ("update", "expected")


class Measured(NamedTuple):
    """One number of one module."""

    frame: pd.DataFrame
    """`id`, `module`, `layer`, `kind`, `part`, `reason`, `measure`, `value`."""
    bands: pd.DataFrame
    """`measure`, `module`, `low`, `middle`, `high`: what a random subspace would give."""


def layers(evidence: Evidence) -> dict[str, Any]:
    """`modules` (name, layer, kind), `measures`, `runs` by id and part and measure, aligned with the modules; `bands`;
    `left_out` and `reasons` in words. Empty where nothing was measured."""
    folder = evidence.folder / "measures"
    parts = [make(pd.read_parquet(folder / f"{name}.parquet")) for name, make in _FRAMES.items()
             if (folder / f"{name}.parquet").exists()]  # fmt: skip
    if not parts:
        return {}
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    ids = set(evidence.result.ids) & set(frame["id"]) or set(evidence.runs.id)
    frame, left_out = _within(frame[frame["id"].isin(ids)])
    if frame.empty:
        return {}
    modules = frame.drop_duplicates("module").sort_values(["layer", "kind", "module"])
    place = {module: at for at, module in enumerate(modules["module"])}
    bands = pd.concat([part.bands for part in parts], ignore_index=True)
    return {
        "modules": [[m, int(layer), k] for m, layer, k in zip(modules["module"], modules["layer"], modules["kind"])],
        "measures": list(dict.fromkeys(frame["measure"])), "runs": _by_run(frame, place),
        "bands": {str(m): _aligned(part, place, ("low", "middle", "high")) for m, part in bands.groupby("measure")},
        "left_out": left_out, "reasons": _reasons(frame),
    }  # fmt: skip


def _within(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    if len(frame) <= VALUES:
        return frame, ""
    whole = frame[frame["part"].isin(WHOLE)]
    if len(whole) <= VALUES:
        return whole, "Single experts are left out here; they are in the measures' files."
    counts = whole.groupby("id", sort=True).size().cumsum()
    kept = set(counts.index[counts <= VALUES]) or {counts.index[0]}
    words = f"{len(counts) - len(kept)} of {len(counts)} runs are left out here, and single experts; they are in the " \
        "measures' files."  # fmt: skip
    return whole[whole["id"].isin(kept)], words


def _by_run(frame: pd.DataFrame, place: dict[str, int]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for (run, part, measure), own in frame.groupby(["id", "part", "measure"], sort=True):
        (values,) = _aligned(own, place, ("value",))
        out.setdefault(str(run), {}).setdefault(str(part), {})[str(measure)] = values
    return out


def _aligned(own: pd.DataFrame, place: dict[str, int], columns: tuple[str, ...]) -> list[list[float | None]]:
    """Per column the values in the order of the modules, None where there is none."""
    out: list[list[float | None]] = [[None] * len(place) for _ in columns]
    for values, column in zip(out, columns):
        for module, value in zip(own["module"], own[column]):
            if module in place and not pd.isna(value):
                values[place[module]] = float(f"{value:.4g}")
    return out


def _reasons(frame: pd.DataFrame) -> dict[str, list[str]]:
    """By measure: why values are missing, and how often."""
    missing = frame[frame["value"].isna()]
    missing = missing.assign(reason=missing["reason"].fillna("").replace("", "no reason given"))
    counted = {str(measure): part["reason"].value_counts() for measure, part in missing.groupby("measure")}
    return {measure: [f"{n} × {reason}" for reason, n in counts.items()] for measure, counts in counted.items()}


_KEY = ["id", "module", "layer", "kind", "part", "reason"]
_NO_BAND = pd.DataFrame({"measure": [], "module": [], "low": [], "middle": [], "high": []})


def _subspace(frame: pd.DataFrame) -> Measured:
    """φ of the update's vectors with singular vectors of W0, at the greatest i of each module; the band of a random
    subspace is of the first run that has the module."""
    last = frame.sort_values("i", kind="stable").drop_duplicates(
        ["id", "module", "part", "side", "against"], keep="last"
    )
    last = last.assign(measure=[f"φ with W0's {a} {s} vectors" for a, s in zip(last["against"], last["side"])])
    last = last.sort_values(["measure", "id", "module"], kind="stable")
    bands = last.drop_duplicates(["measure", "module"]).rename(
        columns={"null_low": "low", "null": "middle", "null_high": "high"}
    )
    return Measured(last.rename(columns={"phi": "value"})[[*_KEY, "measure", "value"]], bands[list(_NO_BAND)])


def _projection(frame: pd.DataFrame) -> Measured:
    words = {
        "norm_w": "‖UᵀW0V‖",
        "norm_update": "‖UᵀΔWV‖",
        "amplification": "amplification",
        "expected_random": "‖UᵀW0V‖ expected of random vectors",
    }
    return Measured(pd.concat(list(_projected(frame, words)), ignore_index=True), _NO_BAND)


def _projected(frame: pd.DataFrame, words: dict[str, str]) -> Iterator[pd.DataFrame]:
    for column, word in words.items():
        if column in frame:
            named = frame.assign(measure=[f"{word}, vectors of {basis}" for basis in frame["basis"]])
            yield named.rename(columns={column: "value"})[[*_KEY, "measure", "value"]]


def _spectrum(frame: pd.DataFrame) -> Measured:
    return Measured(frame[[*_KEY, "measure", "value"]], _NO_BAND)


_FRAMES: dict[str, Callable[[pd.DataFrame], Measured]] = {
    "subspace": _subspace, "projection": _projection, "spectrum": _spectrum,
}  # fmt: skip
