"""The parts of a report put together: one file that loads nothing, and runs two scripts that it knows by their hash."""

import base64
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from ablora.spec import BadInput
from ablora_analysis.figures import result_table, style
from ablora_analysis.report import detail, layers, series, words
from ablora_analysis.report.board import board
from ablora_analysis.report.evidence import Evidence
from ablora_analysis.report.html import Html, data, escape, join, tag
from ablora_analysis.report.pictures import figure, pictures, within
from ablora_analysis.report.plots import plots
from ablora_analysis.report.runs import all_runs
from ablora_analysis.report.warnings import warnings

FOLDER = Path(__file__).parent
SCRIPTS = ("page.js", "grid.js", "drawer.js", "plots.js", "start.js")
COSTS = {"tokens_per_s": "tokens per second", "peak_rss_gib": "peak memory (GiB)", "wall_s": "time (s)",
         "adapter_bytes": "adapter (bytes)", "tokens": "tokens"}  # fmt: skip
SECTIONS = {
    "result": "Result",
    "leaderboard": "Leaderboard",
    "plots": "Explore",
    "figures": "Figures",
    "runs": "All runs",
}

LARGEST_BYTES = 9_900_000
"""Of the page: pictures that would make it larger are linked."""


def page(evidence: Evidence) -> str:
    """The page's text. Equal run folders, figures and measures give equal bytes."""
    curves = series.curves(evidence)
    content = _content(evidence, curves)
    drawn = pictures(evidence)
    header = words.header_of_sweep(evidence.plan)
    own = "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    library, css = _library(), (FOLDER / "page.css").read_text(encoding="utf-8")
    asked = words.question(evidence, header)
    last = series.last_steps(curves)
    runs = evidence.runs.assign(step=evidence.runs["step"].fillna(evidence.runs.id.map(last)).astype("Int64"))
    evidence = evidence._replace(runs=runs)
    messages = {run: _first(own["failure"]["message"]) for run, own in content["runs"].items() if own["failure"]}
    parts = {
        "policy": escape(policy([library, own], css)), "style": _plain(css, "style"),
        "library": _plain(library, "script"), "script": _plain(own, "script"),
        "placeholders": _placeholders(library), "data": data(content),
        "title": escape(f"{evidence.name}: {asked}"), "study": escape(evidence.name), "question": escape(asked),
        "compared": escape(words.compared(evidence)), "states": _states(evidence),
        "nav": join(*(tag("a", title, href=f"#{key}") for key, title in SECTIONS.items())), "result": _result(evidence),
        "warnings": _warnings(evidence), "protocol": _protocol(evidence, header), "reproduce": _reproduce(evidence),
        "board": join(board(evidence), _notes(evidence)), "runs": all_runs(evidence, messages),
        "plots": plots(content), "figures": _figures(evidence, within(drawn, 0)), "footer": _footer(evidence),
    }  # fmt: skip
    template = Template((FOLDER / "page.html").read_text(encoding="utf-8"))
    room = LARGEST_BYTES - len(template.substitute(parts).encode())
    return template.substitute({**parts, "figures": _figures(evidence, within(drawn, room))})


def policy(scripts: Sequence[str], css: str) -> str:
    """Nothing is loaded and nothing runs but these scripts; pictures come from inside the page.

    The empty style is allowed by its hash: plotly makes empty style elements and fills them through the object model.
    """
    runs = " ".join(_hash(script) for script in scripts)
    return (f"default-src 'none'; script-src {runs}; style-src {_hash(css)} {_hash('')} 'unsafe-hashes'; "
            "img-src data:; base-uri 'none'; form-action 'none'")  # fmt: skip


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _plain(text: str, element: str) -> Html:
    """Text of our own inside a script or style element, which knows no escapes: nothing in it may end the element."""
    assert not re.search(rf"<!--|</?{element}", text, re.IGNORECASE), f"a {element} that would end its element"
    return Html(text)


@cache
def _library() -> str:
    """The bundle that the plotly package ships; the package itself is not imported."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise BadInput("plotly", None, "installed for the report: pip install 'ablora[report]'")
    text = (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it before it hashes it


def _placeholders(library: str) -> Html:
    """Empty style elements with the names under which the bundle's map code looks for its own style before it adds it:
    no map is drawn here, and the policy would refuse the style with a complaint on the console."""
    found = sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', library)))
    return join(*(tag("style", id=name) for name in found))


def _content(evidence: Evidence, curves: dict[str, Any]) -> dict[str, Any]:
    content = detail.details(evidence)
    metrics = sorted({name for run in content["runs"].values() for name in (*run["metrics"], *run["costs"])})
    own = layers.layers(evidence)
    return {**content, "study": evidence.name, "curves": curves, "layers": own, "looks": series.looks(evidence),
            "shown": result_table.shown_metrics(evidence.prepared),
            "arms": list(dict.fromkeys(evidence.prepared["arm"])),
            "titles": {name: COSTS.get(name) or style.axis_title(name) for name in metrics},
            "chosen": sorted({run for c in evidence.choices for run in (*c.ids, *c.diverged)})}  # fmt: skip


def _first(message: str) -> str:
    line = (message.strip().splitlines() or [""])[0]
    return line if len(line) <= 160 else f"{line[:160]}…"


def _states(evidence: Evidence) -> Html:
    tones = {"done": "good", "diverged": "bad", "failed": "bad", "unreadable": "bad", "lost": "bad", "stale": "warn"}
    return join(*(tag("span", f"{n} {state}", class_=f"badge {tones.get(state, '')}")
                  for state, n in words.states(evidence).items()))  # fmt: skip


def _result(evidence: Evidence) -> Html:
    found = words.findings(evidence)
    if not found:
        return tag("p", "No run has finished, so there is nothing to compare. All runs are listed below with what is "
                        "known of each.", class_="lead")  # fmt: skip
    items = [tag("li", tag("strong", style.axis_title(f.metric), escape(f" · {f.where}") if f.where else None),
                 *(tag("p", sentence) for sentence in f.sentences)) for f in found]  # fmt: skip
    return tag("ul", *items, class_="findings")


def _warnings(evidence: Evidence) -> Html:
    found = warnings(evidence)
    if not found:
        return tag("p", "No warnings: all runs finished, with equal budgets, on equal terms.", class_="fine")
    items = [tag("li", warned.text, _ids(warned.ids)) for warned in found]
    title = tag("h3", f"Read with care ({len(found)})", id="warnings-title")
    return tag("aside", title, tag("ul", *items), class_="warnings", aria_labelledby="warnings-title")


def _ids(ids: Sequence[str]) -> Html | None:
    if not ids:
        return None
    names = [tag("button", run, type="button", class_="open", data_run=run) for run in dict.fromkeys(ids)]
    return tag("details", tag("summary", "which"), tag("p", *names, class_="ids"), class_="which")


def _protocol(evidence: Evidence, header: dict[str, str]) -> Html:
    told = [join(tag("dt", key), tag("dd", header[key])) for key in ("Paper", "Method", "Says") if key in header]
    return join(tag("p", words.protocol(evidence)), tag("dl", *told) if told else None)


def _reproduce(evidence: Evidence) -> Html:
    commands = words.reproduce(evidence)
    if not commands:
        return tag("p", "The study has no plan.json, so its command is not known.")
    return tag("pre", tag("code", "\n".join(commands)), tabindex="0", aria_label="Commands")


def _notes(evidence: Evidence) -> Html:
    return tag("ul", *(tag("li", note) for note in evidence.result.notes), class_="notes")


def _figures(evidence: Evidence, drawn: Sequence[Any]) -> Html:
    if not drawn:
        return tag("p", "None have been drawn: ", tag("code", f"ablora figures {evidence.name}"),
                   " draws them, and then this page has them.")  # fmt: skip
    return tag("div", *(figure(picture, evidence.folder / "figures") for picture in drawn), class_="figures")


def _footer(evidence: Evidence) -> Html:
    versions: dict[str, None] = {}
    for starts in evidence.starts.values():
        for start in starts:
            packages = start.get("packages")
            packages = packages if isinstance(packages, dict) else {}
            named = [f"{name} {packages[name]}" for name in ("ablora", "torch", "transformers") if name in packages]
            code = str(start.get("code_sha256") or "")[:8]
            versions[", ".join([*named, *([f"code {code}"] if code else []), str(start.get("device", ""))])] = None
    made = "; ".join(sorted(versions))
    return join(
        "This page loads nothing from anywhere. Everything in it is read from run folders and can be made again.",
        f" The runs were made with {made}." if made else None,
    )
