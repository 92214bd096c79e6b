"""The controls and places of the interactive plots; the page's script draws into them what is first seen."""

from typing import Any

from ablora_analysis.report.html import Html, join, tag


def plots(content: dict[str, Any]) -> Html:
    """Scatter of metrics, curves over steps, and views by layer; a sentence where there is nothing to draw."""
    measured = any(run["metrics"] for run in content["runs"].values())
    panel = _select("panel", "data set")
    x, y, log_x, log_y = _select("x", "x"), _select("y", "y"), _check("logx", "log x"), _check("logy", "log y")
    seen = [_select(key, label) for key, label in (("measure", "measure"), ("view", "view"), ("kind", "module"),
            ("run", "run"), ("part", "part"))]  # fmt: skip
    of_curves = [_select("metric", "metric"), _select("which", "runs"), _check("smooth", "smooth")]
    hollow = "Each point is a run; hollow ones are stale. Click a point to open its run."
    return join(
        _one("scatter", "Two metrics against each other", hollow, [panel, x, y, log_x, log_y], measured,
             "No run has recorded a result."),
        _one("curves", "Learning curves", "", [panel, *of_curves, log_y],
             bool(content["curves"]["runs"]), "No run has recorded a step."),
        _one("layers", "Layer by layer", "", [panel, *seen, _check("logy", "log scale")], bool(content["layers"]),
             join("Nothing has been measured: ", tag("code", f"ablora analyse {content['study']}"), " measures it.")),
    )  # fmt: skip


def _one(name: str, title: str, note: str, inputs: list[Html], there: bool, otherwise: object) -> Html:
    head = tag("h3", title, id=f"{name}-title")
    if not there:
        return tag("div", head, tag("p", otherwise), class_="plot-box")
    drawn = tag("div", class_="plot paper", id=name, role="img", aria_labelledby=f"{name}-title")
    return tag("div", head, tag("div", *inputs, class_="controls", data_plot=name), drawn,
               tag("p", note, class_="under", id=f"{name}-note"), class_="plot-box")  # fmt: skip


def _select(key: str, label: str) -> Html:
    return tag("label", tag("span", label), tag("select", data_key=key))


def _check(key: str, label: str) -> Html:
    return tag("label", tag("input", type="checkbox", data_key=key), tag("span", label), class_="check")
