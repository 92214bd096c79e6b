"""docs/methods.md, made from the presets and from what methods and axis values say of themselves.

python -m ablora.config.catalogue > docs/methods.md
"""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any, NamedTuple

from ablora.config.compose import Composer, resolve
from ablora.config.loader import conf_dir, open_loader
from ablora.spec import BadInput, RunSpec
from ablora.tree import build, locate

AXES = ("init", "scaling", "structure", "update")
RANK = 40
"""Divides into the experts of every preset; the counts of the table are at this rank on the embedded base."""
HEAD = f"""\
# Methods

Every named low-rank method is four choices; a preset in `conf/method/` names them and carries no code. Any value
crosses with any other (`method=lora method/init=svd_minor`); a combination that makes no sense is refused with those
that do. Below them are the methods that are no low-rank pair.

- *equation*: how the method acts on a token; where A and B start, s, and how gradients become steps are the choices',
  whose own equations follow the tables. A (r, n), B (m, r), W0 (m, n); rank `r` counts the directions of all experts.
- *trained*: numbers in a module (m, n), from the structure's own count. EVA and ALoRA share out the ranks of all
  modules: there r is the mean. *on pico*: on `model=pico` at `rank={RANK}`, counted as `ablora plan` does.
- *merges*: a single weight acts like base and method together. *PEFT*: PEFT loads the adapter that a run saves.
- *differs*: the choices whose text says where they are not what their sources have; all others are the sources'.

"""
WHO = r"[A-Z][\w-]+(?: and [A-Z][\w-]+| et al\.)?,?(?: \d{4},)? "
SOURCE = re.compile(rf"\. (?={WHO}arXiv:|arXiv:|[\w-]+/[\w-]+ )")
"""Where a header's reference begins: `Hu et al. 2021, arXiv:...`, `arXiv:...`, or a file of a repository."""


class Preset(NamedTuple):
    """One file of conf/method/, composed at rank `RANK`."""

    name: str
    about: str
    """What it is, in words."""
    source: str
    """The reference at the end of its header; "" where it has none."""
    tree: Mapping[str, Any]
    """The whole configuration."""

    @property
    def method(self) -> Mapping[str, Any]:
        return self.tree["method"]


@cache
def presets() -> tuple[Preset, ...]:
    """All of them, by name."""
    out = []
    with open_loader() as loader:
        composer = Composer(loader)
        for path in sorted((conf_dir() / "method").glob("*.yaml")):
            header = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            tree = resolve(composer.base([f"method={path.stem}", f"rank={RANK}"]))
            out.append(Preset(path.stem, *divided(header), tree))
    return tuple(out)


def divided(header: str) -> tuple[str, str]:
    """A header's words without the name before the colon, and its reference."""
    about, *source = SOURCE.split(header, maxsplit=1)
    return about.partition(": ")[2] or about, "".join(source)


def low_rank(found: Sequence[Preset]) -> Iterator[str]:
    """The table of methods of four choices."""
    yield (
        "| method | "
        + " | ".join(AXES)
        + " | equation | trained | on pico | merges | PEFT | what it is | source | differs |"
    )
    yield "|---" * (len(AXES) + 2) + "|---|---:|---|---|---|---|---|"
    for preset in found:
        method = build(preset.method)
        choices = [_choice(preset.method[axis]) for axis in AXES]
        values = [type(getattr(method, axis)) for axis in AXES]
        trained, merges, exports = _asked(method)
        differs = ", ".join(
            f"[{_file(v)}](#{_file(v)})" for v in values if _part(v, "Differs") not in ("", "nothing known.")
        )
        columns = [f"`{preset.name}`", *choices, f"`{equation(values[2])}`", f"`{trained}`", _count(preset.tree),
                   merges, exports, preset.about, preset.source, differs]  # fmt: skip
        yield f"| {' | '.join(columns)} |"


def others(found: Sequence[Preset]) -> Iterator[str]:
    """The table of the rest."""
    yield "| method | class | fields | equation | on pico | what it is | source |"
    yield "|---|---|---|---|---:|---|---|"
    for preset in found:
        kind = locate(preset.method["_target_"])
        own = {k: v for k, v in preset.method.items() if k not in ("_target_", "name")}
        inner = [locate(v["_target_"]) for v in own.values() if isinstance(v, Mapping) and "_target_" in v]
        said = next(filter(None, map(equation, [kind, *inner])), "")
        columns = [f"`{preset.name}`", f"[{kind.__name__}](#{kind.__name__.lower()})", _fields(own),
                   f"`{said}`" if said else "its tuner's" if "tuner" in own else "", _count(preset.tree),
                   preset.about, preset.source]  # fmt: skip
        yield f"| {' | '.join(columns)} |"


def equation(kind: type) -> str:
    """The line of a docstring that says what a token or a weight becomes, without its side conditions; "" if none."""
    lines = (inspect.getdoc(kind) or "").splitlines()
    found = [line.strip() for line in lines if line.startswith("y = ")] or [x for x in lines if " <- " in x]
    return re.split(r",?   |, from ", found[0])[0].rpartition(": ")[2].rstrip(".") if found else ""


def _part(kind: type, name: str) -> str:
    """A part of a docstring by its title, such as `Differs:`, to the next title."""
    text = inspect.getdoc(kind) or ""
    found = re.search(rf"^{name}: (.*?)(?=^\w[\w ]*: |\Z)", text, re.M | re.S)
    return " ".join(found[1].split()) if found else ""


def _file(kind: type) -> str:
    return kind.__module__.rpartition(".")[2]


def _choice(tree: Mapping[str, Any]) -> str:
    """A value by its file's name, with the fields that are not what its class has anyway."""
    kind = locate(tree["_target_"])
    usual = {f.name: f.default for f in fields(kind)}
    own = {k: v for k, v in tree.items() if k != "_target_" and v != usual.get(k, ...)}
    return f"`{_file(kind)}`" + (f" ({said})" if (said := _fields(own)) else "")


def _fields(own: Mapping[str, Any]) -> str:
    """Plain fields, and of nested values their own or the name of their file."""
    said = []
    for key, value in own.items():
        if isinstance(value, Mapping) and "_target_" in value:
            said.append(f"{key}={_choice(value)}")
        elif isinstance(value, Mapping):
            if inner := _fields(value):
                said.append(f"{key}: {inner}")
        elif value is not None:
            said.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    return ", ".join(said)


def _count(tree: Mapping[str, Any]) -> str:
    from ablora.method.plan import check_cell  # imports torch

    keys = ("method", "model", "dataset", "train", "eval", "adapter", "rank", "seed")
    try:
        return f"{check_cell(build({key: tree[key] for key in keys}, RunSpec)):,}"
    except BadInput as error:
        return f"({error})"


def _asked(method: Any) -> tuple[str, str, str]:
    """What a module trains, whether it merges and whether PEFT can hold it: asked of the method on a small layer."""
    import torch
    from torch import nn

    from ablora.method.attach import attach
    from ablora.method.export import merged_weights, peft_tensors
    from ablora.method.formula import formula
    from ablora.method.init._base import DataDriven
    from ablora.method.init.svd_principal import SvdPrincipal
    from ablora.method.member import Member
    from ablora.method.structure._base import Unmergeable
    from ablora.spec import AdapterSpec
    from ablora.spectra.library import Library

    known = replace(method, init=SvdPrincipal()) if isinstance(method.init, DataDriven) else method  # no data here
    layer = nn.Linear(48, 64, bias=False)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    adapted = attach(nn.Sequential(layer), [Member(known, RANK, AdapterSpec(targets=("0",)), 0)], Library(None))
    try:
        merged_weights(adapted, 0)
        merges = "yes"
    except Unmergeable:
        merges = "no"
    return str(formula(method)), merges, "no" if peft_tensors(adapted, 0) is None else "yes"


def values() -> Iterator[str]:
    """What each axis value says of itself: its docstring, which has equation, shapes, source and differences."""
    for axis in AXES:
        yield f"\n## {axis}\n"
        files = sorted((conf_dir() / "method" / axis).glob("*.yaml"))
        targets = [re.search(r"^_target_: (\S+)", path.read_text(encoding="utf-8"), re.M) for path in files]
        for kind in dict.fromkeys(locate(found[1]) for found in targets if found):
            yield _said(kind, _file(kind))


def _said(kind: type, title: str) -> str:
    return f"### `{title}`\n\n```\n{inspect.getdoc(kind)}\n```\n"


def text() -> str:
    """The whole document."""
    four = [preset for preset in presets() if "init" in preset.method]
    rest = [preset for preset in presets() if "init" not in preset.method]
    kinds = dict.fromkeys(locate(preset.method["_target_"]) for preset in rest)
    parts = [HEAD, "\n".join(low_rank(four)), "\n\n## Methods that are no four choices\n\n", "\n".join(others(rest)),
             "\n", "\n".join(values()), "\n## Other methods\n\n",
             "\n".join(_said(kind, kind.__name__) for kind in kinds)]  # fmt: skip
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(text())
