"""Specifications of many runs: a part that they share is built, checked and written canonically once.

`ablora.config` makes parts that are the same (the data set, the recipe at one learning rate) one object in all cells.
10,000 cells of five methods, four ranks, ten rates and fifty seeds have some forty parts; built and hashed cell by cell
they took four times as long as all else (benchmarks/plan.py).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ablora.spec import RunSpec, canonical, digest, identity, text_of
from ablora.tree import build

T = TypeVar("T")
PLAIN = (int, float, str, type(None))


class Parts:
    """What one command has made of parts. They are told by identity, and kept for as long as this lives."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._texts: dict[int, str] = {}
        self._equal: dict[str, Any] = {}

    def spec(self, tree: Mapping[str, Any]) -> RunSpec:
        """`build(tree, RunSpec)`: equal, with the same errors."""
        return build(tree, RunSpec, self._built)

    def shared(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """A tree that was read by itself, its parts exchanged for equal ones that were seen before."""
        return {key: self._equal.setdefault(repr(part), part) for key, part in tree.items()}

    def run_id(self, spec: RunSpec) -> str:
        """`run_id(spec)`; contents of files are read once, so that one command sees one state of them."""
        form = identity(spec, self._form)
        return digest("{" + ",".join(f'"{key}":{self._text(form[key])}' for key in sorted(form)) + "}")

    def once(self, what: str, make: Callable[[], T], *parts: Any) -> T:
        """`make()`, once for these parts; nothing is kept of one that raises."""
        name = (what, *((type(part), part) if isinstance(part, PLAIN) else id(part) for part in parts))
        if name not in self._made:
            self._made[name] = make(), parts
        return self._made[name][0]

    def _built(self, tree: Any, hint: Any) -> Any:
        if not isinstance(tree, Mapping):
            return build(tree, hint)
        return self.once("build", lambda: build(tree, hint), tree, hint)

    def _form(self, part: Any) -> Any:
        if isinstance(part, PLAIN):
            return part
        form = self.once("form", lambda: canonical(part), part)
        if id(form) not in self._texts:  # which `once` keeps, so that its id stays its own
            self._texts[id(form)] = text_of(form)
        return form

    def _text(self, form: Any) -> str:
        return self._texts.get(id(form)) or text_of(form)
