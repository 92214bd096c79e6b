import json
import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablora_analysis.report import html
from ablora_analysis.report.detail import common, difference
from ablora_analysis.report.html import data, escape, join, tag
from ablora_analysis.report.numbers import listed, number, size, whole
from ablora_analysis.report.series import thinned

# Half of the texts are of the characters that markup is made of: among all of Unicode they would hardly meet.
ANY = st.characters(exclude_characters="\u2066\u2067\u2068\u2069\r\x00")
TEXT = st.text(ANY, max_size=60) | st.text("<>&\"'/=!-;ab ", min_size=3, max_size=40)


class Reader(HTMLParser):
    """What a parser finds: elements with their attributes, and all text."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def plain(text: str) -> str:
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(f"⟨U+{ord(c):04X}⟩" if c in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e" else c for c in whole)


@given(TEXT)
def test_text_stays_text_in_an_element_and_in_an_attribute(text: str) -> None:
    made = tag("p", text, title=text)
    found = Reader(made)
    assert found.elements == [("p", {"title": plain(text)})]
    assert found.text == plain(text)
    made.encode("utf-8")


@given(st.recursive(TEXT | st.floats() | st.integers() | st.none(), lambda part: st.lists(part, max_size=3)))
def test_data_is_json_that_cannot_end_its_element(value: object) -> None:
    made = data({"v": value})
    assert made.isascii()
    assert not set("<>&") & set(made)
    assert json.loads(made) == {"v": finite(value)}


def finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [finite(part) for part in value] if isinstance(value, list) else value


def test_a_name_cannot_turn_a_sentence_around() -> None:
    assert escape("a\u202eb\u2066c") == "a⟨U+202E⟩b⟨U+2066⟩c"
    assert tag("p", "x\u202ey") == "<p>x⟨U+202E⟩y</p>"


def test_markup_is_what_tag_made_and_nothing_else() -> None:
    assert join("<b>", tag("b", "<"), None, 3) == "&lt;b&gt;<b>&lt;</b>3"
    assert tag("input", hidden=True, disabled=False, data_v=None) == "<input hidden>"
    assert isinstance(escape("x") + "y", str)
    assert not isinstance(escape("x") + "<y>", html.Html)
    for bad in ("script>", "IMG", ""):
        with pytest.raises(AssertionError):
            tag(bad)
    with pytest.raises(AssertionError):
        tag("p", onclick="alert(1)")


def test_a_specification_is_the_base_and_its_difference() -> None:
    specs = [{"lr": 1, "rank": 8}, {"lr": 2, "rank": 8}, {"lr": 2, "rank": 8, "experts": 4}]
    base, varying = common(specs)
    assert base == {"lr": 2, "rank": 8}
    assert varying == ["experts", "lr"]
    for spec in specs:
        found = difference(base, spec)
        assert {k: v for k, v in base.items() if k not in found["without"]} | found["set"] == spec
    assert difference(base, {"rank": 8}) == {"set": {}, "without": ["lr"]}
    assert common([{"a": 1}, {"a": True}, {"a": 1.0}])[1] == ["a"], "1, true and 1.0 are different texts"


@given(st.integers(0, 2000), st.integers(2, 300))
def test_thinning_keeps_both_ends(num: int, most: int) -> None:
    kept = thinned(num, most)
    assert kept == sorted(set(kept))
    assert len(kept) == min(num, most)
    assert not num or (kept[0], kept[-1]) == (0, num - 1)


def test_numbers_read_well() -> None:
    assert [number(x) for x in (0.12345, -1.5, 0.0, 3.2e-5, 123456.0, math.inf, None, math.nan)] == [
        "0.123", "−1.500", "0.000", "3.2e−05", "1.23e+05", "∞", "", "",
    ]  # fmt: skip
    assert (whole(1234567), size(4096), size(0.5 * 2**30), size(12)) == (
        "1\u202f234\u202f567",
        "4 KiB",
        "512 MiB",
        "12 B",
    )
    assert (listed(["a"]), listed(["a", "b"]), listed(list("abcdefgh"), 4)) == (
        "a",
        "a and b",
        "a, b, c and 5 more",
    )
