"""A table as Markdown and as LaTeX (booktabs). CSV is pandas' own."""

from collections.abc import Sequence
from typing import NamedTuple


class Entry(NamedTuple):
    """One cell's text; bold marks the best and what is tied with it."""

    text: str
    bold: bool = False


class Sheet(NamedTuple):
    """A table to be read: its first column is left-aligned, the others right."""

    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]


def markdown(sheet: Sheet) -> str:
    """A pipe table with its notes below."""
    head = [_pipe(map(_md, sheet.header)), _pipe(["---", *["---:"] * (len(sheet.header) - 1)])]
    body = [_pipe(f"**{_md(e.text)}**" if e.bold and e.text else _md(e.text) for e in row) for row in sheet.rows]
    return "\n".join([*head, *body, "", *(f"{_md(note)}  " for note in sheet.notes)]) + "\n"


def latex(sheet: Sheet) -> str:
    """A booktabs tabular with its notes below, for `\\input` into a table environment."""
    columns = "l" + "r" * (len(sheet.header) - 1)
    head = " & ".join(map(_tex, sheet.header)) + r" \\"
    body = [" & ".join(rf"\textbf{{{_tex(e.text)}}}" if e.bold and e.text else _tex(e.text) for e in row) + r" \\"
            for row in sheet.rows]  # fmt: skip
    notes = [rf"\par\smallskip{{\footnotesize {_tex(note)}}}" for note in sheet.notes]
    top = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", *notes]) + "\n"


def _pipe(cells: Sequence[str] | object) -> str:
    return "| " + " | ".join(cells) + " |"  # type: ignore[arg-type]


def _md(text: str) -> str:
    for sign in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", " ")


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "†": r"$\dagger$",
    "‡": r"$\ddagger$", "Δ": r"$\Delta$", "<": "$<$", ">": "$>$", "≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$",
    "‖": r"$\|$", "ᵀ": r"$^\top$", "√": r"$\surd$", "φ": r"$\phi$", "≈": r"$\approx$", "°": r"$^\circ$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text.replace("\n", " "))
