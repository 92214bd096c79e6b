"""A result table on paper: the figure, and the same numbers as CSV, Markdown and LaTeX."""

from pathlib import Path

from ablora.store.atomic import write_text
from ablora_analysis import text
from ablora_analysis.figures import arms, result_table, result_text, sheet, style
from ablora_analysis.figures.result_table import ResultTable
from ablora_analysis.figures.study import Study, chosen_items, title


def paint(study: Study) -> list[Path]:
    """The main table of a study."""
    items = chosen_items(study.roots, study.choices, result_table.shown_metrics(study.prepared))
    return paint_table(study, "result_table", result_table.points(study.prepared, study.choices, items))


def paint_table(study: Study, name: str, result: ResultTable) -> list[Path]:
    """NAME.csv, .md and .tex, and a panel of means and intervals per metric, data set and setting."""
    metrics = list(dict.fromkeys(panel.metric for panel in result.panels))
    # Metric after metric: in two columns, two data sets stand side by side.
    shown = sorted((panel for panel in result.panels if panel.cells), key=lambda panel: metrics.index(panel.metric))
    texts = {
        "csv": result_text.frame(result).to_csv(index=False, lineterminator="\n"),
        "md": text.markdown(result_text.sheet(result)),
        "tex": text.latex(result_text.sheet(result)),
    }
    stem = study.folder / name
    for kind, content in texts.items():
        write_text(stem.with_suffix(f".{kind}"), content, durable=False)
    figure, axes = sheet.sheet([result_table.height_in(panel) for panel in shown], " ".join(result.notes), {})
    looks = style.looks(choice.arm for choice in study.choices)
    for ax, panel in zip(axes, shown):
        result_table.draw(ax, panel, looks)
        title(ax, (panel.setting, panel.dataset), arms.panels(study.choices), panel is shown[0])
    paths = sheet.save(figure, stem, result.ids, {**study.side, "notes": list(result.notes)})
    return [*paths, *(stem.with_suffix(f".{kind}") for kind in texts)]
