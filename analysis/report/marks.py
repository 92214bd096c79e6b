"""An arm's colour and marker as an inline picture, the same as in every figure."""

from ablora_analysis.figures.style import Look
from ablora_analysis.report.html import Html, tag

PATHS = {
    "o": "M8 2a6 6 0 1 0 .01 0z", "s": "M3 3h10v10H3z", "^": "M8 2l6.5 11.5h-13z", "v": "M8 14L1.5 2.5h13z",
    "<": "M2 8l11.5-6.5v13z", ">": "M14 8L2.5 1.5v13z", "D": "M8 1l7 7-7 7-7-7z", "d": "M8 1l4.5 7L8 15 3.5 8z",
    "X": "M5 1l3 3 3-3 4 4-3 3 3 3-4 4-3-3-3 3-4-4 3-3-3-3z", "P": "M5.5 1h5v4.5H15v5h-4.5V15h-5v-4.5H1v-5h4.5z",
    "*": "M8 1l2 5h5l-4 3.4L12.500 15 8 11.600 3.500 15 5 9.400 1 6h5z", "h": "M8 1l6 3.500v7L8 15l-6-3.500v-7z",
    "p": "M8 1.500l6.500 4.800L12 14H4L1.500 6.300z",
}  # fmt: skip
SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left",
    ">": "triangle-right", "D": "diamond", "d": "diamond-tall", "X": "x", "P": "cross", "*": "star", "h": "hexagon",
    "p": "pentagon",
}  # fmt: skip
"""Matplotlib's markers by plotly's names."""


def swatch(look: Look) -> Html:
    shape = tag("path", d=PATHS.get(look.marker, PATHS["o"]), fill=look.colour)
    return tag("svg", shape, class_="swatch", viewbox="0 0 16 16", width="12", height="12", aria_hidden="true")
