"""The projection table on paper: dots per method, and the same numbers as CSV, Markdown and LaTeX."""

import math
from pathlib import Path

import pandas as pd

from ablora.store.atomic import write_text
from ablora_analysis import text
from ablora_analysis.figures import measured, sheet, style
from ablora_analysis.figures.measured import Comparison
from ablora_analysis.figures.projection_table import (
    PANELS,
    QUANTITIES,
    Projection,
    Value,
    draw,
    legend,
    notes,
    number,
    points,
)
from ablora_analysis.figures.result_table import label
from ablora_analysis.figures.study import Study


def frame(projection: Projection, comparison: Comparison) -> pd.DataFrame:
    """One row per arm, kind of module (and all) and quantity. `interval` says what `low` and `high` speak of."""
    first = comparison.choices[0]
    return pd.DataFrame([{"setting": first.setting, "dataset": first.dataset, **_row(v)} for v in projection.values])


def _row(value: Value) -> dict[str, object]:
    basis, column, _ = QUANTITIES[value.quantity]
    nothing = {"mean": math.nan, "low": math.nan, "high": math.nan, "sd_over_seeds": math.nan, "seeds": 0,
               "interval": ""}  # fmt: skip
    score = value.score
    found = nothing if score is None else {
        "mean": score.mean, "low": score.low, "high": score.high, "sd_over_seeds": score.sd, "seeds": score.seeds,
        "interval": score.basis,
    }  # fmt: skip
    return {
        "arm": value.arm, "method": value.method, "lr": value.lr, "kind": value.kind, "basis": basis,
        "quantity": column, **found, "modules": value.modules, "undefined": value.undefined,
        "rank": " ".join(map(str, value.ranks)),
    }  # fmt: skip


def table(projection: Projection, foot: list[str]) -> text.Sheet:
    """A row per arm, over all modules."""
    header = ("method", *(words for _, _, words in QUANTITIES.values()))
    rows = tuple(
        (text.Entry(arm), *(text.Entry(number(projection.of(arm, quantity))) for quantity in QUANTITIES))
        for arm in projection.arms
    )
    return text.Sheet(header, rows, tuple(foot))


def paint(study: Study) -> list[Path]:
    """projection_table of each comparison that was measured."""
    found = measured.read(study, "projection")
    if found is None:
        return []
    out = []
    for comparison in measured.comparisons(study):
        rows = measured.whole(found, comparison.choices)
        if rows["norm_w"].notna().any():
            out += _paint(study, comparison, rows)
    return out


def _paint(study: Study, comparison: Comparison, rows: pd.DataFrame) -> list[Path]:
    projection = points(rows, comparison.choices)
    foot = notes(projection, rows, comparison)
    stem = study.folder / f"projection_table{comparison.suffix}"
    readable = table(projection, foot)
    texts = {
        "csv": frame(projection, comparison).to_csv(index=False, lineterminator="\n"),
        "md": text.markdown(readable),
        "tex": text.latex(readable),
    }
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in texts]
    for path, content in zip(paths, texts.values()):
        write_text(path, content, durable=False)
    row_in = 0.27 if any("\n" in label(arm) for arm in projection.arms) else 0.17
    figure, axes = sheet.sheet([0.5 + row_in * len(projection.arms)] * len(PANELS), " ".join(foot), legend())
    looks = style.looks(choice.arm for choice in study.choices)
    for ax, dots in zip(axes, PANELS):
        draw(ax, projection, dots, looks)
    axes[0].set_title(comparison.title, loc="left")
    side = {**study.side, "notes": foot, "without_measures": measured.without(rows["id"], comparison)}
    return [*sheet.save(figure, stem, sorted(set(rows["id"])), side), *paths]
