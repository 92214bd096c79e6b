"""What the command line leaves to Hydra's own application: its help, its completion, its sweepers and launchers."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ablora.config.entry import hydra_main
from ablora.spec import check

HELP = {"--help", "-h", "--hydra-help", "--version", "--info", "-i", "--shell-completion", "-sc"}
SHOW = {"--cfg", "-c", "--resolve", "--package", "-p"}
WHERE = {"--config-name", "-cn", "--config-path", "-cp", "--run", "-r", "--experimental-rerun"}


def is_hydras(argument: str) -> bool:
    """Whether an argument of `ablora run` is one of Hydra's flags or sets something of Hydra's own."""
    return argument.partition("=")[0] in HELP | SHOW | WHERE or argument.lstrip("+~").startswith(("hydra/", "hydra."))


def own_conf(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments without `--config-dir FOLDER`, and the folder."""
    rest, folder = list(arguments), None
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            check(bool(equals) or i + 1 < len(arguments), flag, "", "followed by a folder")
            folder = Path(value if equals else arguments[i + 1])
            del rest[i : i + (1 if equals else 2)]
            break
    return rest, folder


def hand_over(arguments: Sequence[str], commands: Sequence[str] = ("run",)) -> int:
    """Run Hydra's application on the arguments; it reads them, and the line to complete, from the process.

    A line to complete, `ablora run -m method=`, is rid of the words that are ours: Hydra parses the whole of it.
    """
    if line := os.environ.get("COMP_LINE"):
        program, *words = line.split(" ")
        os.environ["COMP_LINE"] = " ".join([program, *(w for w in words if w not in (*commands, "-m", "--multirun"))])
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    sys.argv = [sys.argv[0], *flags, *(argument for argument in arguments if argument not in flags)]
    try:
        hydra_main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
