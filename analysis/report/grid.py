"""A table that can be sorted and filtered: rows of cells that hold both what is read and what is compared."""

from collections.abc import Sequence
from typing import NamedTuple

from ablora_analysis.report.html import Html, escape, tag
from ablora_analysis.report.numbers import missing


class Column(NamedTuple):
    title: str
    numeric: bool = False
    hint: str = ""
    """What the column is, for a title that had to be short."""


class Entry(NamedTuple):
    shown: Html
    value: object = None
    """What sorting compares: a number, a text, or None, which comes last in either direction."""


class Line(NamedTuple):
    entries: tuple[Entry, ...]
    facets: tuple[tuple[str, str], ...] = ()
    """What the filters of the table compare: (filter, value)."""
    run: str = ""
    """The run that the line opens."""
    quiet: bool = False
    """Printed in a lighter tone: not a result."""


def text(value: object) -> Entry:
    """Text as it is."""
    plain = "" if missing(value) else str(value)
    return Entry(escape(plain), plain or None)


def grid(name: str, caption: str, columns: Sequence[Column], lines: Sequence[Line]) -> Html:
    """The table in a box of its own that scrolls sideways. It is whole without any script; the page's script makes it
    sortable by its headers and filters it by the controls that name it."""
    head = tag("tr", *map(_header, columns))
    body = [_line(line, columns) for line in lines]
    table = tag("table", tag("caption", caption, class_="unseen"), tag("thead", head), tag("tbody", *body), id=name,
                class_="grid")  # fmt: skip
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _header(column: Column) -> Html:
    button = tag("button", column.title, type="button", title=column.hint or None)
    return tag("th", button, scope="col", class_="num" if column.numeric else None, aria_sort="none",
               data_title=column.title)  # fmt: skip


def _line(line: Line, columns: Sequence[Column]) -> Html:
    cells = [
        tag("th" if at == 0 else "td", entry.shown, scope="row" if at == 0 else None,
            class_="num" if column.numeric else None, data_v=_value(entry.value))
        for at, (entry, column) in enumerate(zip(line.entries, columns, strict=True))
    ]  # fmt: skip
    facets = {f"data_f_{key}": value for key, value in line.facets}
    return tag("tr", *cells, class_="quiet" if line.quiet else None, data_run=line.run or None, **facets)


def _value(value: object) -> str | None:
    if missing(value):
        return None
    return repr(float(value)) if isinstance(value, int | float) else str(value)


def controls(table: str, choices: Sequence[tuple[str, str, Sequence[str]]], hint: str) -> Html:
    """The filters of a table: a search box, a list per (filter, label, values) that has more than one value, and the
    count of what is left. Hidden until the script that answers them runs."""
    lists = [
        tag("label", tag("span", label), tag("select", tag("option", "all", value=""),
            *(tag("option", value, value=value) for value in values), data_filter=key))
        for key, label, values in choices if len(values) > 1
    ]  # fmt: skip
    search = tag("label", tag("span", "search"), tag("input", type="search", placeholder=hint, data_filter="text"))
    count = tag("output", "", role="status")
    return tag("div", search, *lists, count, class_="controls", data_for=table, hidden=True)
