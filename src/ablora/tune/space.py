"""A search space: which keys of the configuration vary, over what, and for which methods."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from ablora.spec import BadInput, check

if TYPE_CHECKING:
    from optuna.trial import Trial

FIELDS = ("low", "high", "log", "int", "points", "choices", "when")
LEGAL = ("a range {low: 1e-4, high: 1e-2, log: true}, with `int: true` of whole numbers, or choices [a, b]; "
         "`when: {method: goat}` says in which arms, `points: 7` how many values a grid takes")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One key and what it may be: a range (real or whole, on a line or a log axis), or some choices."""

    key: str
    name: str
    """Its parameter in Optuna: the key, and where a key has several ranges also when this one holds."""
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    """Whole numbers; `int: true` in a sweep file."""
    points: int | None = None
    """How many values a grid takes of a range, both ends among them."""
    values: tuple[float, ...] = ()
    """What a grid takes of a range in place of `points`."""
    choices: tuple[Any, ...] = ()
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """In which arms: all these keys have one of these values there."""

    def __post_init__(self) -> None:
        where = f"sweep.search.{self.key}"
        if self.choices:
            check(self.low is None and self.high is None, where, self.low, f"choices or a range, not both: {LEGAL}")
            return
        low, high = self.low, self.high
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high))
        check(numbers, where, {"low": low, "high": high}, LEGAL)
        assert low is not None and high is not None  # noqa: PT018 -- for the reader of types
        check(low < high, where, [low, high], "a range whose low end is below its high one")
        check(not self.log or low > 0, f"{where}.low", low, "a number above 0, where the axis is logarithmic")
        check(self.points is None or self.points >= 2, f"{where}.points", self.points, "an integer of at least 2")
        whole = not self.whole or (low == int(low) and high == int(high))
        check(whole, where, [low, high], "whole numbers, where `int: true`")

    def suggest(self, trial: "Trial") -> Any:
        """What the sampler says; the same again for a trial that was asked before."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        assert self.low is not None and self.high is not None  # noqa: PT018
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def corners(self) -> tuple[Any, ...]:
        """The ends of a range, or every choice: what is checked before anything is queued."""
        return self.choices or tuple(map(self._typed, (self.low, self.high)))

    def grid(self) -> tuple[Any, ...]:
        """The values that a grid takes: `points` of a range, evenly on its axis."""
        if self.choices or self.values:
            return self.choices or self.values
        legal = "points: how many values of the range a grid takes"
        if self.points is None or self.low is None or self.high is None:
            raise BadInput(f"sweep.search.{self.key}.points", self.points, legal)
        shares = [i / (self.points - 1) for i in range(self.points)]
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        values = [ends[0] + share * (ends[1] - ends[0]) for share in shares]
        # Six digits: 0.001 and not 0.0010000000000000002, which is another run.
        rounded = [float(f"{math.exp(value) if self.log else value:.6g}") for value in values]
        return tuple(dict.fromkeys(map(self._typed, [self.low, *rounded[1:-1], self.high])))

    def holds(self, labels: Mapping[str, Any]) -> bool:
        """Whether an arm with these labels has this dimension."""
        return all(key in labels and labels[key] in values for key, values in self.when.items())

    def _typed(self, value: Any) -> Any:
        return round(value) if self.whole else float(value)


def dimensions(tree: Any) -> tuple[Dimension, ...]:
    """The space of a sweep file's `search` block: for each key one range or choices, or a list of such mappings that
    hold for different methods."""
    check(isinstance(tree, Mapping) and bool(tree), "sweep.search", tree, f"a mapping of keys: each with {LEGAL}")
    out: list[Dimension] = []
    for key, value in tree.items():
        several = isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)
        own = [_dimension(str(key), one) for one in (value if several else [value])]
        if len(own) > 1:
            own = [replace(one, name=f"{key}[{_written(one.when)}]") for one in own]
        out += own
    return tuple(out)


def _dimension(key: str, value: Any) -> Dimension:
    where = f"sweep.search.{key}"
    if isinstance(value, list):
        value = {"choices": value}
    if not isinstance(value, Mapping):
        raise BadInput(where, value, LEGAL)
    for name in value:
        check(name in FIELDS, f"{where}.{name}", value[name], LEGAL)
    own = {("whole" if name == "int" else name): field for name, field in value.items()}
    choices = own.pop("choices", [])
    plain = isinstance(choices, list) and all(isinstance(one, int | float | str | None) for one in choices)
    check(plain and ("choices" not in value or len(choices) > 0), f"{where}.choices", choices, "numbers or texts")
    when = own.pop("when", {})
    check(isinstance(when, Mapping), f"{where}.when", when, "a mapping such as {method: [goat, goat_s]}")
    held = {str(k): tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    return Dimension(key=key, name=key, choices=tuple(choices), when=held, **own)


def _written(when: Mapping[str, Sequence[Any]]) -> str:
    return ",".join(f"{key}={'|'.join(map(str, values))}" for key, values in when.items())


def combinations(space: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Every point of a grid over the space, by parameter name."""
    names = [one.name for one in space]
    return [dict(zip(names, values)) for values in product(*(one.grid() for one in space))]
