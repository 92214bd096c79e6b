"""docs/methods.md, made from the presets and from what the axis values say of themselves.

python -m ablora.config.catalogue > docs/methods.md
"""

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ablora.config.compose import Composer, resolve
from ablora.config.loader import conf_dir, open_loader
from ablora.spec import BadInput, RunSpec
from ablora.tree import build, locate

AXES = ("init", "scaling", "structure", "update")
RANK = 40
"""Divides into the experts of every preset; the counts of the table are at this rank on the embedded base."""
HEAD = f"""\
# Methods

Every named method is four choices; a preset in `conf/method/` names them and carries no code. Any value crosses with
any other (`method=lora method/init=svd_minor`); a combination that makes no sense is refused with those that do.

`parameters`: trainable numbers on `model=pico` at `rank={RANK}` (all experts together), counted as `ablora plan` does.
`one weight`: whether a single weight acts like base and adapter together; then it merges, and PEFT loads its adapter.

"""


def presets() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(name, the first line of its file, its composed tree) of every preset."""
    with open_loader() as loader:
        composer = Composer(loader)
        for path in sorted((conf_dir() / "method").glob("*.yaml")):
            about = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            yield path.stem, about, resolve(composer.base([f"method={path.stem}", f"rank={RANK}"]))


def rows() -> Iterator[str]:
    """The table's lines."""
    yield "| method | " + " | ".join(AXES) + " | parameters | one weight | what it is |"
    yield "|---|" + "---|" * len(AXES) + "---:|---|---|"
    for name, about, tree in presets():
        method = tree["method"]
        choices = [_choice(method.get(axis)) for axis in AXES]
        what = about.partition(": ")[2] or about
        yield f"| `{name}` | {' | '.join(choices)} | {_count(tree)} | {_merges(method)} | {what} |"


def _choice(tree: Mapping[str, Any] | None) -> str:
    """A value by its file's name, with the fields that are plain numbers or words."""
    if tree is None:
        return ""
    name = tree["_target_"].split(".")[-2]
    own = ", ".join(f"{k}={v}" for k, v in tree.items() if k != "_target_" and isinstance(v, str | int | float))
    return f"`{name}`" + (f" ({own})" if own else "")


def _count(tree: Mapping[str, Any]) -> str:
    from ablora.method.plan import check_cell  # imports torch

    keys = ("method", "model", "dataset", "train", "eval", "adapter", "rank", "seed")
    try:
        return f"{check_cell(build({key: tree[key] for key in keys}, RunSpec)):,}"
    except BadInput as error:
        return f"({error})"


def _merges(method: Mapping[str, Any]) -> str:
    """Asked of the structure itself, on a small weight."""
    import torch

    from ablora.method.structure._base import Shape, Unmergeable

    if "structure" not in method:
        return "no"
    structure = build(method["structure"])
    out_features, in_features = 64, 48
    shape, weight = Shape(out_features, in_features, RANK), torch.ones(out_features, in_features)
    factors = {"A": torch.ones(RANK, in_features), "B": torch.ones(RANK, out_features)}
    params = {**factors, **structure.extra(shape, torch.Generator(), weight)}
    try:
        structure.merge(weight, params, {"scale": torch.ones(RANK), **structure.constants(shape, weight)})
    except Unmergeable:
        return "no"
    return "yes"


def values() -> Iterator[str]:
    """What each axis value says of itself: its docstring, which has equation, shapes, source and differences."""
    with open_loader() as loader:
        composer = Composer(loader)
        for axis in AXES:
            yield f"\n## {axis}\n"
            seen = set()
            for path in sorted((conf_dir() / "method" / axis).glob("*.yaml")):
                overrides = [f"method/{axis}={path.stem}"]
                target = composer.base(overrides)["method"][axis]["_target_"]
                if target not in seen:
                    seen.add(target)
                    yield f"### `{target.split('.')[-2]}`\n\n```\n{inspect.getdoc(locate(target))}\n```\n"


def text() -> str:
    """The whole document."""
    return HEAD + "\n".join(rows()) + "\n" + "\n".join(values())


if __name__ == "__main__":
    sys.stdout.write(text())
