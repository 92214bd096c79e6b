"""A short table for the terminal: what each adapter adds, over its modules."""

from collections.abc import Iterator, Mapping

import pandas as pd

from ablora_analysis.measure.adapters import EXPECTED, WHOLE

SIZES = {"relative": "|dW|/|W0|", "numerical_rank": "rank", "stable_rank": "stable rank", "intruders_0.5": "intruders"}


def summary(frames: Mapping[str, pd.DataFrame], arms: Mapping[str, str] | None = None) -> list[str]:
    """Lines to print: means over modules (how many there are, and how many have no value, is said), then phi between
    adapters, or between `arms` (what runs are seeds of, by id)."""
    arms = arms or {}
    whole = {name: frame[frame["part"].isin([WHOLE, EXPECTED])] for name, frame in frames.items() if name != "experts"}
    table = pd.DataFrame(dict(_columns(whole)))
    table = table.loc[sorted(table.index, key=lambda run: (arms.get(run, ""), run))]
    table.index = pd.Index([f"{arms[run]} {run}" if run in arms else str(run) for run in table.index])
    text = table.rename_axis("mean over modules").reset_index()
    lines = text.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-").splitlines()
    return [*lines, *_notes(whole), *_between(whole["phi"], arms)]


def _columns(whole: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, pd.Series]]:
    sizes, own = whole["spectrum"], whole["subspace"]
    yield "modules", sizes[sizes["measure"] == "frobenius"].groupby("id").size()
    for measure, title in SIZES.items():
        yield title, sizes[sizes["measure"] == measure].groupby("id")["value"].mean()
    norms = whole["projection"]
    yield "amplification", norms[norms["basis"] == "update"].groupby("id")["amplification"].mean()
    left = own[own["side"] == "left"]
    for against in ("top", "bottom", "random"):
        yield f"phi {against}", left[left["against"] == against].groupby("id")["phi"].mean()
    yield "phi null", left.groupby("id")["null"].mean()


def _notes(whole: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    yield "phi: left singular vectors of the update against W0's top, bottom and random ones; null: a random subspace."
    frame = whole["subspace"]
    absent = frame[(frame["reason"] != "") & (frame["side"] == "left") & (frame["against"] == "top")]
    for (run, reason), part in absent.groupby(["id", "reason"]):
        yield f"{run}: {len(part)} modules are in no mean but |dW|/|W0|: {reason}."
    if uniform := sorted(set(frame[frame["gates"] == "uniform"]["id"])):
        yield f"Expected update at uniform gates 1/E, for want of routing records: {', '.join(uniform)}."


def _between(phi: pd.DataFrame, arms: Mapping[str, str]) -> Iterator[str]:
    """phi at the largest i and j: mean over modules, and over pairs of runs where arms are given."""
    if phi.empty:
        return
    ends = phi.groupby(["id", "id_b", "module", "side"], sort=False).tail(1)
    ends = ends.assign(a=_arms(ends["id"], arms), b=_arms(ends["id_b"], arms))
    ends["start"] = ends["shared_start"].map({True: ", same start", False: ", unequal starts"}).fillna("")
    for (a, b, start), part in ends.groupby(["a", "b", "start"], sort=True):
        means = part.groupby("side")[["phi", "null"]].mean()
        words = ", ".join(f"{side} {row['phi']:.3f} (null {row['null']:.3f})" for side, row in means.iterrows())
        pairs = len(part.drop_duplicates(["id", "id_b"]))
        yield f"phi of {a} and {b}{start}: {words}" + (f"; {pairs} pairs" if arms else "")


def _arms(runs: pd.Series, arms: Mapping[str, str]) -> list[str]:
    return [arms.get(str(run), str(run)) for run in runs]
