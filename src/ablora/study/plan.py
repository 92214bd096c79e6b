"""Cells to runs: build, validate and hash every one of them before anything is written."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ablora.data._base import DataError
from ablora.spec import BadInput, RunSpec
from ablora.study.cell import Cell
from ablora.study.manifest import Row
from ablora.study.parts import Parts


@dataclass(frozen=True, slots=True)
class Plan:
    """What should exist."""

    rows: tuple[Row, ...]
    """One per cell, in the question's order and not packed yet; a cell that is an earlier one's run says so."""
    specs: dict[str, RunSpec]
    """By run id, in the order of their first cells."""
    parameters: dict[str, int]
    """Trainable parameters by run id; of a run in `at_most` those at equal ranks."""
    budgets: dict[str, Any] = field(default_factory=dict)
    """The parameters for which a run's rank was solved, by run id; a run whose rank was given has none."""
    at_most: dict[str, int] = field(default_factory=dict)
    """The most trainable parameters, by id, of runs whose data decide the ranks of their modules."""
    items: dict[Any, dict[str, int]] = field(default_factory=dict)
    """The number of items of each data set's splits."""


def make(cells: Sequence[Cell], check: Callable[[RunSpec], int] | None = None) -> Plan:
    """The plan of some cells; if any is not legal, one `BadInput` names the first and counts the others.

    Every distinct data set is loaded once, so that a missing file or a row without its fields is found here and not
    in the middle of the night.
    """
    if check is None:  # imported late: it brings torch, and a command that is refused should answer at once
        from ablora.method.plan import check_cell as check
    rows: list[Row] = []
    specs: dict[str, RunSpec] = {}
    parameters: dict[str, int] = {}
    budgets: dict[str, Any] = {}
    mistakes: list[tuple[Cell, BadInput]] = []
    data, parts = _Data(), Parts()
    for cell in cells:
        try:
            spec = parts.spec(cell.tree)
            data.require(spec.dataset)
            parts.once("text", partial(_require_text, spec), spec.eval, spec.model)
            run = parts.run_id(spec)
            if run not in specs:
                parameters[run] = parts.once("count", partial(check, spec), *_shape(spec))
        except (BadInput, DataError) as error:
            mistakes.append((cell, error if isinstance(error, BadInput) else _in_data(cell, error)))
            continue
        duplicate = run if run in specs else None
        specs.setdefault(run, spec)
        if cell.budget is not None:
            budgets.setdefault(run, cell.budget)
        rows.append(Row(run, cell.labels, method_name(spec), 0, cell.why, duplicate))
    if mistakes:
        cell, error = mistakes[0]
        raise cell.blame(error, others=len(mistakes) - 1) from error
    from ablora.method.plan import bound_of  # late, as above

    bounds = {run: parts.once("bound", partial(bound_of, spec), *_shape(spec)) for run, spec in specs.items()}
    at_most = {run: bound for run, bound in bounds.items() if bound is not None}
    return Plan(tuple(rows), specs, parameters, budgets, at_most, data.items)


def _shape(spec: RunSpec) -> tuple[Any, ...]:
    """What decides how many parameters a run trains."""
    return spec.method, spec.model, spec.adapter, spec.rank


def method_name(spec: RunSpec) -> str:
    return getattr(spec.method, "name", type(spec.method).__name__)


def _in_data(cell: Cell, error: DataError) -> BadInput:
    tree = cell.tree.get("dataset")
    return BadInput("dataset", tree.get("name") if isinstance(tree, Mapping) else tree, str(error))


def _require_text(spec: RunSpec) -> None:
    """What an evaluation on a corpus needs: the text, and a model whose context holds its chunks."""
    from ablora.models.base import skeleton  # late, as above

    for name, task in spec.eval.tasks.items():
        if not hasattr(task, "corpus"):
            continue
        try:
            task.corpus.fingerprint()
            task.check_model(skeleton(spec.model.folder).config)
        except DataError as error:
            raise BadInput(f"eval.tasks.{name}.corpus", task.corpus.name, str(error)) from error
        except BadInput as error:
            raise error.under(f"eval.tasks.{name}") from error


SPLITS = ("train", "validation", "test")


class _Data:
    """Loads each distinct data set once; remembers the complaint of one that cannot be loaded."""

    def __init__(self) -> None:
        self.complaints: dict[Any, DataError | None] = {}
        self.items: dict[Any, dict[str, int]] = {}

    def require(self, dataset: Any) -> None:
        if dataset not in self.complaints:
            try:
                splits = dataset.load()
                self.items[dataset] = {name: len(getattr(splits, name)) for name in SPLITS}
                self.complaints[dataset] = None
            except DataError as error:
                self.complaints[dataset] = error
        if (complaint := self.complaints[dataset]) is not None:
            raise complaint


def derived_name(plan: Plan) -> str:
    """A study's name from its question: data set, swept axes, and six digits of the set of its runs."""
    spec = next(iter(plan.specs.values()))
    axes = dict.fromkeys(key for row in plan.rows for key in row.labels)
    dataset = getattr(spec.dataset, "name", type(spec.dataset).__name__.lower())
    words = [] if "dataset" in axes else [dataset]
    words += [re.split(r"[./]", key)[-1] for key in axes]
    digits = hashlib.sha256("".join(sorted(plan.specs)).encode()).hexdigest()[:6]
    slug = "-".join(re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_") for word in words)
    return f"{slug[:60]}-{digits}"
