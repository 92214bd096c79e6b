"""`ablora run --help`: how a question is written, and what there is to choose from."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from ablora.config import loader

FORMS = """\
ablora run [-m] [--retry] KEY=VALUE ...       (ablora plan takes the same, and runs nothing)

  ablora run method=milora rank=8 train.lr=1e-3        one run
  ablora run -m method=lora,milora seed=0,1,2          a study: every combination of the values
  ablora run -m +sweeps=demo                           the study that sweeps/demo.yaml describes
  ablora run method=lora train=quick tracker=off       20 steps, to see that it works

What can be chosen by name (KEY=NAME, or with -m KEY=NAME,NAME):
"""
ENDING = """
Every key and its value: ablora run --cfg job, or of one group: ablora run --cfg job --package method
The same line again continues a study; with --retry it also tries failed runs again.
YAMLs of your own: --config-dir FOLDER, with FOLDER/method/NAME.yaml, FOLDER/sweeps/NAME.yaml, ...
Hydra's own flags: ablora run --hydra-help"""


def usage() -> str:
    """The text of the help, from the files of conf/."""
    groups = dict(_groups(loader.conf_dir(), ""))
    width = max(map(len, groups))
    lines = [
        textwrap.fill(", ".join(names), 96, initial_indent=f"  {group:<{width}}  ", subsequent_indent=" " * (width + 4))
        for group, names in groups.items()
    ]
    return "\n".join([FORMS, *lines, ENDING])


def _groups(folder: Path, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder of conf/ that holds files, by its name as an override writes it."""
    if prefix and (names := sorted(path.stem for path in folder.glob("*.yaml"))):
        yield ("+" if prefix == "sweeps" else "") + prefix, names
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _groups(path, f"{prefix}/{path.name}" if prefix else path.name)
