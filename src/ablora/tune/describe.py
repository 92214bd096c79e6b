"""`ablora plan` of a search: what it would try, and nothing done."""

from collections.abc import Iterator, Sequence

from ablora.store.roots import Roots
from ablora.study.cell import Cell
from ablora.study.confounds import confounds, require_none
from ablora.study.execution import Execution
from ablora.study.manifest import study_folder
from ablora.study.plan import derived_name, make
from ablora.tune import frozen
from ablora.tune.frozen import Search
from ablora.tune.settings import Fair
from ablora.tune.space import Dimension
from ablora.tune.storage import points_of, require_installed, require_pruning_possible


def describe_search(search: Search, corners: Sequence[Cell], execution: Execution, strict: bool) -> Iterator[str]:
    """Lines of text: arms and trials, the space, who proposes and ends trials, and in what compared arms differ."""
    require_installed(search.tuner)
    require_pruning_possible(search)
    plan = make(corners)
    if strict:
        require_none(plan)
    study = study_folder(Roots.from_environment(), execution.study or derived_name(plan))
    frozen.require_same(study, search)
    tuner = search.tuner
    counts = [len(points_of(search, arm)) for arm in search.arms]
    yield f"study {study.name}{' (exists)' if study.search.exists() else ''}"
    yield f"arms: {len(search.arms)}, with {_span(counts)} trials each, {sum(counts)} in all"
    for arm, count in zip(search.arms, counts):
        steps = [variant.tree["train"]["max_steps"] for variant in arm.variants]
        yield f"  {arm.name}: {count} trials of at most {_span(steps)} steps"
    yield "space:"
    yield from (f"  {_said(one)}" for one in search.space)
    goal = ", ".join(f"{metric} ({direction})" for metric, direction in zip(tuner.metrics, tuner.directions))
    yield f"objective: {goal}"
    yield f"sampler {tuner.sampler}, pruner {tuner.pruner}, storage {tuner.storage or study.journal}"
    if search.protocol is not None:
        yield from _protocol(search.protocol, len(search.arms))
    found = confounds(plan)
    if found:
        yield "compared arms differ beside the method (--strict refuses them):"
    yield from (f"  {one}" for one in found)


def _protocol(protocol: Fair, arms: int) -> Iterator[str]:
    yield (f"a best {protocol.axis} on the border moves it by {protocol.factor:g}, {protocol.extensions} times at "
           "most; an arm whose best is still there is not ranked")  # fmt: skip
    seeds, runs = ", ".join(map(str, protocol.seeds)), arms * len(protocol.seeds)
    yield f"then confirm: {arms} arms at their best {protocol.axis}, seeds {seeds}: {runs} runs, all that is reported"


def _said(one: Dimension) -> str:
    when = f" when {', '.join(f'{key} is {_or(values)}' for key, values in one.when.items())}" if one.when else ""
    if one.choices:
        return f"{one.key}: {_or(one.choices)}{when}"
    if one.values:
        return f"{one.key}: {_or(one.values)}{when}"
    kind = " ".join(filter(None, ("whole" if one.whole else "", "log" if one.log else "")))
    return f"{one.key}: {one.low:g} to {one.high:g}{f' ({kind})' if kind else ''}{when}"


def _or(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _span(numbers: Sequence[int]) -> str:
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))
