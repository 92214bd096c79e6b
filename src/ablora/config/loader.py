"""Hydra's configuration loader over conf/, and its errors in our words."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablora.spec import BadInput, check

CONFIG = "config"
"""The primary file: conf/config.yaml."""


def conf_dir() -> Path:
    """The folder conf/: inside the package in an installed wheel, there a link to the repository's in a checkout."""
    return (Path(__file__).parents[1] / "conf").resolve()


@contextmanager
def open_loader(beside: Path | None = None) -> Iterator[ConfigLoader]:
    """A loader of our own over conf/, and over the user's own folder `beside` it (Hydra's --config-dir). Hydra keeps
    one loader per process, so it is given back at the end."""
    check(beside is None or beside.is_dir(), "--config-dir", str(beside), "a folder with method/, sweeps/, ... in it")
    with translated(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if beside is not None:
            path = loader.get_search_path()  # Hydra 1.3 has no public way to open one with more
            path.prepend("command-line", f"file://{beside.resolve()}", SearchPathQuery(provider="schema"))
            loader = ConfigLoaderImpl(path)
        yield loader


@contextmanager
def current_loader() -> Iterator[ConfigLoader]:
    """The loader of the Hydra application that is running; in a launcher's process, where there is none, our own."""
    if not GlobalHydra.instance().is_initialized():
        with open_loader() as loader:
            yield loader
    else:
        with translated():
            yield GlobalHydra.instance().config_loader()


@contextmanager
def translated() -> Iterator[None]:
    """Hydra's and OmegaConf's complaints about a user's input, as ours."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _as_bad_input(error) from error


def _as_bad_input(error: Exception) -> BadInput:
    said: BaseException = error
    while not str(said) and said.__cause__ is not None:  # the loader wraps OmegaConf's errors without their text
        said = said.__cause__
    text = " ".join(line.strip() for line in str(said).splitlines() if line.strip())
    if "Cannot merge DictConfig with ListConfig" in text:  # OmegaConf names the file and no key
        text += "; a mapping cannot replace a list that the file inherits, as of sweep.grid: write a list as well"
    return BadInput("override", getattr(said, "full_key", None) or "on the command line or in conf/", text)


def load(loader: ConfigLoader, overrides: list[str]) -> DictConfig:
    """Hydra's own composition of one cell."""
    with translated():
        return loader.load_configuration(CONFIG, overrides, run_mode=RunMode.RUN)


def plain(config: DictConfig, resolve: bool) -> dict[str, Any]:
    """The configuration as plain dicts and lists: nothing beyond this package sees anything else."""
    with translated():
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def parse(loader: ConfigLoader, arguments: list[str]) -> list[Override]:
    """The arguments by Hydra's grammar; one that it cannot read is named."""
    parser = OverridesParser.create(config_loader=loader)
    found = []
    for i, argument in enumerate(arguments):
        try:
            found.extend(parser.parse_overrides([argument]))
        except HydraException as error:
            reason = str(error).splitlines()[0].partition(" expecting {")[0].rstrip(".")
            hint = _meant(arguments, i) or f"key=value in Hydra's grammar ({reason})"
            raise BadInput("override", argument, hint) from error
    return found


def _meant(arguments: list[str], i: int) -> str:
    """What an argument that does not parse was probably meant to be; empty where nothing comes to mind."""
    argument = arguments[i]
    first = i if argument.endswith(",") else i - 1  # `method=lora, pissa`, `method=lora pissa`
    pair = arguments[max(first, 0) : first + 2]
    if len(pair) == 2 and "=" in pair[0] and "=" not in pair[1]:
        joined = f"{pair[0].rstrip(',')},{pair[1].strip(',')}"
        return f"key=value; several values of one key have commas and no spaces between them: {joined}"
    if "=" not in argument:
        return f"key=value, such as method=lora; did you mean {argument}=...?"
    key, _, values = argument.partition("=")
    parts = [part for part in values.split(",") if part.strip()]
    if parts and values.count(",") >= len(parts):  # a comma too many
        return f"key=value in Hydra's grammar, with a value on either side of each comma: {key}={','.join(parts)}"
    return ""


def is_group(loader: ConfigLoader, name: str) -> bool:
    return bool(loader.get_group_options(name) if "." not in name else ())


def require_choice(loader: ConfigLoader, group: str, value: str) -> None:
    """Refuse a value that the group has no file for; the message lists those it has."""
    options = sorted(loader.get_group_options(group))
    if value not in options:
        close = difflib.get_close_matches(value, options, n=1)
        meant = f"did you mean {group}={close[0]}? " if close else ""
        raise BadInput(group, value, f"{meant}one of {', '.join(options) or '(none exist)'}")
