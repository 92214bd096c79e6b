"""A start from factors that were trained before, by PEFT or here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from ablora.method.import_peft import PeftAdapter, open_peft
from ablora.method.init._base import Site, Start, Triplets
from ablora.method.init._singular import balanced
from ablora.method.init.qr import Qr
from ablora.method.structure.adalora import Adalora
from ablora.method.structure.dora import Dora
from ablora.method.structure.pair import Pair
from ablora.spec import LABEL, BadInput, check

STRUCTURES = {"lora": Pair, "dora": Dora, "adalora": Adalora}


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """Go on from an adapter that PEFT saved, or from a run's own: the first step sees the function that was saved.

    A, B, DoRA's m and AdaLoRA's E are the file's; s is the one of its configuration, and the scaling axis is not asked.
    What was trained in another form keeps its function:
      PiSSA, OLoRA not converted:  s (B A - B0 A0), B0 and A0 made again from W0 (`svd_principal`, `qr`)
      AdaLoRA:  s B diag(E) A without its pruned directions
    Step 0 is therefore the saved model and not the base. Modules that the adapter does not have get none.

    Source: huggingface/peft 0.21.2 tuners/lora/layer.py, tuners/lora/dora.py, tuners/adalora/layer.py (formats and
        scales).
    Differs: the base weight stays as it is; from PEFT's own loading by the rounding of its residual weight. Optimizer
        states, dropout and AdaLoRA's sensitivities are no part of an adapter: the run's own begin anew. Of MiCA, which
        holds B still in PEFT, both factors are trained here. AdaLoRA's penalty is a mean over modules with directions;
        PEFT's counts those that were pruned to none.
    """

    revision: ClassVar[int] = 1
    path: str | None = field(metadata=LABEL)
    """A folder with adapter_config.json and adapter_model.safetensors, such as runs/ID/adapter."""

    def __post_init__(self) -> None:
        check(self.path is not None, "path", None, "the folder of an adapter, as PEFT's save_pretrained writes it")

    @property
    def adapter(self) -> PeftAdapter:
        """The checked adapter."""
        try:
            return open_peft(Path(self.path or "").expanduser())
        except BadInput as error:
            raise BadInput("method.init.path", self.path, str(error)) from error

    def fingerprint(self) -> str:
        return self.adapter.content

    def require(self, structure: Any, rank: int | None, base: Mapping[str, tuple[int, int]]) -> None:
        """Refuse a structure, a rank, targets or a base that are not the adapter's."""
        adapter, wanted = self.adapter, STRUCTURES[self.adapter.kind]
        legal = f"{adapter.kind}, which {adapter.folder} holds (method={adapter.kind} method/init=saved)"
        check(isinstance(structure, wanted), "method.structure", type(structure).__name__, legal)
        own = adapter.config.base_rank
        legal = f"{own}, the rank of the adapter in {adapter.folder}; or null, which takes it from there"
        check(rank is None or rank == own, "rank", rank, legal)
        structure.check_rank(own)
        legal = f"targets that cover the adapter's modules: {_ends(adapter.modules)} (of a base that has them)"
        check(all(module in base for module in adapter.modules), "adapter.targets", _ends(base), legal)
        adapter.require(base, "that the run names")

    def rank(self, module: str) -> int:
        """Directions in one module; 0: the adapter has nothing there."""
        adapter = self.adapter
        return adapter.config.rank(module) if module in adapter.modules else 0

    def scale(self, module: str) -> float:
        """s of one module."""
        return self.adapter.config.scale(module)

    def indices(self, site: Site) -> Int[Tensor, " rank"] | None:
        return torch.arange(site.rank) if self.adapter.config.residual == "pissa" else None

    def __call__(self, site: Site, triplets: Triplets | None) -> Start:
        adapter = self.adapter
        learnt = adapter.read(site.module)
        if adapter.kind == "adalora":  # a B0 tells the structure that e is E and not 1 + E; it subtracts no start
            return Start(learnt["A"], learnt["B"], learnt)
        match adapter.config.residual:
            case "pissa":
                assert triplets is not None
                return balanced(triplets, site.scale)._replace(learnt=learnt)
            case "olora":
                return Qr()(site, None)._replace(learnt=learnt)
            case _:
                return Start(learnt["A"], None, learnt)


def _ends(modules: Iterable[str]) -> str:
    """The ends of the modules' names, as `adapter.targets` takes them."""
    return f"[{','.join(sorted({module.rpartition('.')[2] for module in modules}))}]"
