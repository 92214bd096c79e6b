"""Where mixtures send their tokens: maps of each expert's load and of which experts meet (definitions: expert_load)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm

from ablora.store.atomic import write_text
from ablora_analysis.figures import arms, sheet, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.expert_load import Load, frame, points, read
from ablora_analysis.figures.measured import short
from ablora_analysis.figures.study import Study

LEAST, MOST = 0.25, 4.0
"""Ends of the colours, the same in all maps: a quarter and four times balanced."""
NOTHING = 0.01
"""Below this part of balanced an expert counts as unused."""


def _map(ax: Axes, values: np.ndarray) -> None:
    shown = np.where(values < NOTHING, NOTHING, np.maximum(values, LEAST))
    ax.pcolormesh(np.ma.masked_invalid(shown), norm=LogNorm(LEAST, MOST), cmap=colours(), edgecolors="face",
                  linewidth=0.1)  # fmt: skip


def colours() -> Colormap:
    """Blue under balance, red over it, black for an expert that gets nothing, grey where there is no module."""
    # Without its dark ends, which print like black.
    found = LinearSegmentedColormap.from_list("load", colormaps["RdBu_r"](np.linspace(0.1, 0.9, 17)))
    return found.with_extremes(bad="#D9D9D9", under="#000000")


def draw_load(ax: Axes, load: Load) -> None:
    """A row per layer; the columns are the kinds of module, each with its experts from left to right."""
    rows, kinds, experts = load.load.shape
    _map(ax, load.load.reshape(rows, kinds * experts))
    for number in range(1, kinds):
        ax.axvline(number * experts, color="white", linewidth=2)
    ax.set_ylim(rows, 0)
    ax.set_xticks([(i + 0.5) * experts for i in range(kinds)], [short(kind) for kind in load.kinds])
    every = max(1, -(-rows // 8))
    ax.set_yticks([i + 0.5 for i in range(0, rows, every)],
                  ["none" if layer < 0 else str(layer) for layer in load.layers[::every]])  # fmt: skip
    ax.tick_params(length=0)
    ax.set_ylabel("layer")
    what = "by part of the spectrum" if load.named else "busiest first"
    ax.set_xlabel(f"experts 1 to {experts} of each kind,\n{what}")


def draw_together(ax: Axes, load: Load) -> None:
    """The mean over modules, with its number in each field of up to five experts: more would run into each other."""
    _map(ax, load.together)
    ax.set_aspect("equal")
    ax.set_ylim(load.experts, 0)
    every = -(-load.experts // 8)
    ticks = [i + 0.5 for i in range(0, load.experts, every)], [str(i + 1) for i in range(0, load.experts, every)]
    ax.set_xticks(*ticks)
    ax.set_yticks(*ticks)
    ax.tick_params(length=0)
    ax.set_xlabel("expert")
    ax.set_ylabel("with expert")
    if np.isnan(load.together).all():
        ax.text(0.5, 0.5, "one expert a token:\nno two meet", transform=ax.transAxes, ha="center", va="center")
        return
    for (y, x), value in np.ndenumerate(load.together):
        if load.experts <= 5 and x != y:
            dark = not 0.4 < value < 2.5
            number = f"{value:.1f}" if value >= 1 else f"{value:.2f}"
            ax.text(x + 0.5, y + 0.5, number, ha="center", va="center", fontsize=style.SMALL_PT,
                    color="white" if dark else "black")  # fmt: skip


def notes(loads: Sequence[Load], choices: Sequence[Choice]) -> list[str]:
    """What the colours are and what they hide, for the foot."""
    out = ["Share of tokens that an expert got, over its share when balanced (left or top) and that two experts got "
           "together, over that of a random draw. Mean over seeds, co-activation also over modules."]  # fmt: skip
    soft = list(dict.fromkeys(load.arm for load in loads if load.gates))
    out += [f"Every expert gets every token: gate weights instead ({', '.join(soft)})."] if soft else []
    vary = dict.fromkeys(f"{o.arm} {o.per_token[0]:.2f} to {o.per_token[1]:.2f}" for o in loads if _varies(o))
    out += [f"Experts of a token, module means: {', '.join(vary)}."] if vary else []
    if sorted_arms := list(dict.fromkeys(load.arm for load in loads if not load.named)):
        out.append(
            f"Sorted by load in each module and run, which makes some slope by itself: {', '.join(sorted_arms)}."
        )
    least = ", ".join(
        f"{arm} {min(o.least for o in loads if o.arm == arm):.2f}" for arm in dict.fromkeys(o.arm for o in loads)
    )
    out.append(f"Least load in any module and run: {least}. Black: below {NOTHING:g}.")
    kept = {run for load in loads for run in load.ids}
    drawn = {(load.setting, load.dataset, load.arm) for load in loads}
    missing = sum(run not in kept for c in choices if c[:3] in drawn for run in c.ids)
    return [*out, *([f"Routing not recorded: {missing} runs of these methods."] if missing else [])]


def _varies(load: Load) -> bool:
    return round(load.per_token[1], 2) > round(load.per_token[0], 2)


def paint(study: Study) -> list[Path]:
    """Two panels per mixture, and every load as CSV; nothing for a study without mixtures."""
    records = read(study)
    loads = points(study.choices, study.prepared, records)
    if not loads:
        return []
    heights = [height for load in loads for height in (_load_height_in(load), 1.75)]
    foot = [*notes(loads, study.choices), *arms.notes(study.prepared, study.choices)]
    figure, axes = sheet.sheet(heights, " ".join(foot), {})
    keys = arms.panels(study.choices)
    for load, upper, lower in zip(loads, axes[::2], axes[1::2]):
        where = f" on {arms.panel_title(load.setting, load.dataset)}" if len(keys) > 1 else ""
        draw_load(upper, load)
        upper.set_title(f"{load.arm}{where}: load", loc="left")
        draw_together(lower, load)
        lower.set_title("its co-activation", loc="left")
    bar = figure.colorbar(ScalarMappable(LogNorm(LEAST, MOST), colours()), ax=axes, location="bottom", shrink=0.7,
                          aspect=30, extend="both")  # fmt: skip
    ticks = (0.25, 0.5, 1.0, 2.0, 4.0)
    bar.set_ticks(list(ticks), labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("1: balanced, or as if drawn at random")
    stem = study.folder / "routing_load"
    write_text(
        stem.with_suffix(".csv"),
        frame(study.choices, records).to_csv(index=False, lineterminator="\n"),
        durable=False,
    )
    used = sorted({run for load in loads for run in load.ids})
    return [*sheet.save(figure, stem, used, {**study.side, "notes": foot}), stem.with_suffix(".csv")]


def _load_height_in(load: Load) -> float:
    return 0.9 + min(2.4, max(0.13 * len(load.layers), 0.5))
