"""A base model's weights, one module at a time from its safetensors files; the model is not built."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ablora.models.base import EMBEDDED, Embedded, content_of, skeleton
from ablora.spec import BadInput, check


@dataclass(frozen=True)
class BaseWeights:
    """A folder as transformers' `save_pretrained` writes it; weights in `dtype`, or as they are stored (None).

    The dtype is the one that a run computed with, so that a decomposition of a run's start is found again in the cache.
    """

    folder: Path
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        found = self.folder.is_dir() and any(self.folder.glob("*.safetensors"))
        legal = f"a folder with the base model's *.safetensors, or one of {', '.join(EMBEDDED)}"
        check(found, "base", str(self.folder), legal)

    @cached_property
    def _places(self) -> dict[str, tuple[Path, tuple[int, ...]]]:
        """The file and the shape of every tensor."""
        out = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    out |= {name: (path, tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise BadInput("base", str(path), f"a whole safetensors file ({error})") from error
        return out

    @cached_property
    def _stored_in_out(self) -> frozenset[str]:
        """Modules whose stored weight is W^T: GPT-2's Conv1D. Looked for in causal language models only."""
        try:
            modules = list(skeleton(self.folder).named_modules()) if (self.folder / "config.json").is_file() else []
        except BadInput:
            modules = []
        return frozenset(name for name, module in modules if isinstance(module, Conv1D))

    @cached_property
    def fingerprint(self) -> str:
        return content_of(self.folder)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every module whose weight is a matrix."""
        modules = [name.removesuffix(".weight") for name in self._places if name.endswith(".weight")]
        return {module: shape for module in modules if (shape := self.shape(module)) is not None}

    def shape(self, module: str) -> tuple[int, int] | None:
        """(out, in) of a linear module's weight; None where the base has no such matrix."""
        _, shape = self._places.get(f"{module}.weight", (None, ()))
        if len(shape) != 2:
            return None
        return (shape[1], shape[0]) if self.turned(module) else (shape[0], shape[1])

    def turned(self, module: str) -> bool:
        """Whether the file holds W^T."""
        return module in self._stored_in_out

    def weight(self, module: str) -> Float[Tensor, "out in"]:
        name = f"{module}.weight"
        path, _ = self._places[name]
        with safe_open(path, "pt") as file:
            weight = file.get_tensor(name)
        check(bool(torch.isfinite(weight).all()), "base", f"{path}: {name}", "finite weights")
        if self.turned(module):
            weight = weight.mT.contiguous()
        return weight if self.dtype is None else weight.to(self.dtype)


def base_folder(given: str | Path) -> Path:
    """The folder of a base that is given by path or by an embedded base's name."""
    if str(given) in EMBEDDED and not Path(given).is_dir():
        return Embedded(name=str(given), dtype="float32").folder
    return Path(given).expanduser()
