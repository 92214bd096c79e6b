"""The study's figures and tables as they were drawn, inside the page."""

import base64
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from ablora.store import atomic
from ablora.store.atomic import Corrupted
from ablora_analysis.figures.main import _readable
from ablora_analysis.report.evidence import Evidence
from ablora_analysis.report.grid import Column, Entry, Line, grid
from ablora_analysis.report.html import Html, escape, tag
from ablora_analysis.report.numbers import runs_of

ROWS = 200
DOTS_PER_INCH, SCALE = 300, 1.5
"""The figures' PNG, and how much larger than on paper they are shown: a column of 3.3 in is 475 px wide."""

WIDE = 700
"""A picture wider than this, px, takes the page's whole width."""


class Picture(NamedTuple):
    """One figure of studies/<name>/figures."""

    name: str
    kinds: tuple[str, ...]
    """The endings of its files, sorted."""
    source: str
    """A data URI, or "" where the picture had no room."""
    width: int
    height: int
    """Of the shown picture, px."""
    notes: tuple[str, ...]
    runs: int
    outdated: bool
    """It was drawn from other choices than today's run folders give."""


def pictures(evidence: Evidence) -> list[Picture]:
    """One per side file, the table of results first; a picture that cannot be read is a problem and left out."""
    folder = evidence.folder / "figures"
    today = [_readable(choice) for choice in evidence.choices]
    out = []
    for side in sorted(folder.glob("*.json"), key=lambda path: (path.stem != "result_table", path.stem)):
        try:
            out.append(_picture(side, today))
        except Corrupted as problem:
            evidence.problems.append(problem)
    return out


def within(drawn: Sequence[Picture], room: int) -> list[Picture]:
    """The pictures, in order, while they fit into `room` bytes; those beyond are named and linked only."""
    out = []
    for picture in drawn:
        fits = len(picture.source) <= room
        room -= len(picture.source) if fits else 0
        out.append(picture if fits else picture._replace(source=""))
    return out


def _picture(side: Path, today: Sequence[Any]) -> Picture:
    record = atomic.read_json(side)
    if not isinstance(record, dict):
        raise Corrupted(str(side), type(record).__name__, "what a figure says of itself")
    kinds = tuple(sorted(path.suffix[1:] for path in side.parent.glob(f"{_literal(side.stem)}.*")))
    width, height = _size(side)
    files = [path for kind in ("svg", "png") if (path := side.with_suffix(f".{kind}")).exists()]
    smallest = min(files, key=lambda path: path.stat().st_size, default=None)
    source = _uri(smallest) if smallest else ""
    notes = tuple(str(note) for note in record.get("notes", []))
    outdated = "choices" in record and record["choices"] != today
    return Picture(side.stem, kinds, source, width, height, notes, len(record.get("runs", [])), outdated)


def _literal(name: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", name)


def _size(side: Path) -> tuple[int, int]:
    """Shown width and height, from the PNG."""
    path = side.with_suffix(".png")
    if not path.exists():
        return 0, 0
    try:
        with Image.open(path) as image:
            return tuple(round(n / DOTS_PER_INCH * 96 * SCALE) for n in image.size)  # pyright: ignore[reportReturnType]
    except (UnidentifiedImageError, OSError) as error:
        raise Corrupted(str(path), str(error), "a picture; draw the figures again") from error


def _uri(path: Path) -> str:
    kind = {".svg": "image/svg+xml", ".png": "image/png"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def figure(picture: Picture, folder: Path) -> Html:
    """The picture with its foot, links to its files beside the page, and the table of its numbers, if it has one."""
    words = picture.name.replace("_", " ")
    shown = tag("img", src=picture.source, alt=f"{words}. {' '.join(picture.notes)}", width=picture.width or None,
                height=picture.height or None, loading="lazy", decoding="async") if picture.source else \
        tag("p", "Too large for this page: open one of its files.")  # fmt: skip
    links = [part for kind in picture.kinds for part in (escape(" · "), _link(picture.name, kind))][1:]
    old = tag("p", "Drawn before the runs changed: ", tag("code", f"ablora figures {folder.parent.name}"),
              " draws it again.", class_="warned") if picture.outdated else None  # fmt: skip
    # The foot is in the picture too, but too small to read on a phone, and mute.
    foot = tag("details", tag("summary", "How to read it"), *(tag("p", note) for note in picture.notes))
    told = [tag("strong", words[:1].upper() + words[1:]), foot if picture.notes else None]
    files = tag("p", f"{runs_of(picture.runs)}. ", *links, class_="links")
    caption = tag("figcaption", *told, old, files, _table(folder / f"{picture.name}.csv"))
    wide = "wide" if picture.width > WIDE else None
    return tag("figure", tag("div", shown, class_="paper"), caption, class_=wide)


def _link(name: str, kind: str) -> Html:
    return tag("a", kind.upper(), href=f"figures/{quote(f'{name}.{kind}')}")


def _table(path: Path) -> Html | None:
    if not path.exists():
        return None
    header, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) or [[]]
    if not header:
        return None
    numeric = [
        bool(rows) and all(_number(row[at]) is not None or not row[at] for row in rows) for at in range(len(header))
    ]
    columns = [Column(title.replace("_", " "), is_number) for title, is_number in zip(header, numeric)]
    lines = [Line(tuple(_entry(value) for value in row)) for row in rows[:ROWS] if len(row) == len(header)]
    more = f" ({len(rows)} rows, the first {ROWS} here)" if len(rows) > ROWS else f" ({len(rows)} rows)"
    whole = grid(f"numbers-{path.stem}", f"Numbers of {path.stem}", columns, lines)
    return tag("details", tag("summary", f"Its numbers{more}"), whole)


def _entry(value: str) -> Entry:
    number = _number(value)
    return Entry(
        escape(value if number is None or "." not in value else f"{number:.5g}"), value if number is None else number
    )


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
