"""Methods as the configuration composes them: `method("goat", "structure.top_k=1")`."""

from functools import cache
from typing import Any

from ablora.config.compose import Composer, resolve
from ablora.config.loader import conf_dir, open_loader
from ablora.method.full_moe import FullMoE
from ablora.method.lowrank import LowRank
from ablora.tree import build


@cache
def method(name: str, *overrides: str) -> Any:
    """The preset conf/method/<name>.yaml; overrides are relative to `method` (`init=svd_minor` for a group)."""
    groups = [f"method/{o}" if _is_axis(o) else f"method.{o}" for o in overrides]
    with open_loader() as loader:
        return build(resolve(Composer(loader).base([f"method={name}", *groups]))["method"])


def _is_axis(override: str) -> bool:
    return override.partition("=")[0] in ("init", "scaling", "structure", "update")


def fitting(chosen: LowRank | FullMoE | None, least: int = 8) -> int:
    """The smallest rank of at least `least` that the method's experts divide."""
    experts = 1 if chosen is None else chosen.structure.experts
    return -(-least // experts) * experts


def every() -> list[str]:
    """Every preset there is: a new one is under test the moment its YAML exists."""
    return sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))


def names() -> list[str]:
    """The low-rank ones, of four choices."""
    return [name for name in every() if isinstance(method(name), LowRank)]


def packed() -> list[str]:
    """Those whose runs share a base's forward pass: the low-rank ones, and others that the same layers serve."""
    return [name for name in every() if method(name).packs]


def others() -> list[str]:
    """Those that are no four choices."""
    return [name for name in every() if not isinstance(method(name), LowRank)]


def axis_values(axis: str) -> list[str]:
    """Those that need nothing of the user; one with a mandatory field has its tests where there is a file for it."""
    files = sorted((conf_dir() / "method" / axis).glob("*.yaml"))
    return [path.stem for path in files if "???" not in path.read_text()]
