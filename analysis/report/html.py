"""Markup from text: whatever is not made by `tag` is escaped, so a name or a model's output stays text."""

import html
import json
import math
import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_DIRECTION = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_VOID = {"img", "input", "br", "path"}


class Html(str):
    """Text that is markup already. Made here and nowhere else."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Text as markup that shows it. A lone surrogate, which UTF-8 cannot hold, is shown as U+FFFD, and a control
    character of direction by its number: it would turn the rest of a sentence around."""
    whole = str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Html(html.escape(_DIRECTION.sub(lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", whole), quote=True))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element. `class_` is class, `data_v` data-v; an attribute that is None or False is left out."""
    assert _NAME.fullmatch(name), name
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        plain = key.rstrip("_").replace("_", "-")
        assert _NAME.fullmatch(plain), plain
        assert not plain.startswith("on"), f"{plain}: no script stands in markup"
        parts.append(f" {plain}" if value is True else f' {plain}="{escape(value)}"')
    opened = "".join(parts) + ">"
    return Html(opened if name in _VOID else f"{opened}{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Markup one after the other; what is not markup is escaped, None is nothing."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children if c is not None))


def data(value: Any) -> Html:
    """JSON for a script element of type application/json. No `<`, `>` or `&` is left that could end the element, and
    nothing beyond ASCII; a number that is not finite is null."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"), sort_keys=True)
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
