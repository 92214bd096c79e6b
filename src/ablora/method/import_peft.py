"""Adapters that PEFT saved, as factors by module: checked once, read module by module.

`adapter_model.safetensors` names them base_model.model.MODULE.lora_A.weight (r, in), .lora_B.weight (out, r),
.lora_magnitude_vector (out,) with DoRA; AdaLoRA's are .lora_A, .lora_B, .lora_E (r, 1). Of a Conv1D they are those of
the linear layer that it is. What they compute, with s of the configuration:

    LoRA  s B A     DoRA  diag(m / |V|) V - W0, V = W0 + s B A     AdaLoRA  s B diag(E) A
    an unconverted PiSSA or OLoRA  s (B A - B0 A0), B0 and A0 made again from W0 (huggingface/peft 0.21.2 does the same
    when it loads one: its `pissa_init` and `olora_init` run on the base before the factors are overwritten)
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from ablora.method.peft_config import CONFIG, PICKLED, TENSORS, Kind, PeftConfig, read_config
from ablora.spec import BadInput, check
from ablora.store.atomic import Corrupted
from ablora.store.tensor_file import TensorFile, open_checked, require_names, require_shape

PREFIX = "base_model.model."
ROLES: Mapping[Kind, Mapping[str, str]] = {
    "lora": {"A": "lora_A.weight", "B": "lora_B.weight"},
    "dora": {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"},
    "adalora": {"A": "lora_A", "B": "lora_B", "E": "lora_E"},
}
"""By kind, what a module's tensors are here and in PEFT's names."""
Shapes = Mapping[str, tuple[int, int]]
"""(out, in) of the base's linear layers by name."""


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """A folder that PEFT's `save_pretrained` wrote, or the PEFT layout of a run's adapter."""

    folder: Path
    config: PeftConfig
    file: TensorFile
    modules: tuple[str, ...]
    """Those that have factors, in the file's order: a rank that was pruned to 0 is none."""

    @property
    def kind(self) -> Kind:
        return self.config.kind

    @property
    def content(self) -> str:
        """sha256 of what decides its outputs: the tensors, and of the configuration what is read."""
        own = [(m, self.config.rank(m), self.config.scale(m)) for m in sorted(self.modules)]
        text = f"{self.kind} {self.config.residual} {self.file.sha256} {own}"
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, module: str) -> dict[str, Tensor]:
        """One module's tensors by role, rank first (`A`, `B`, `magnitude`, `E`), in float32."""
        names = {role: f"{PREFIX}{module}.{suffix}" for role, suffix in ROLES[self.kind].items()}
        tensors = self.file.read(names.values())
        out = {role: tensors[name].float() for role, name in names.items()}
        return {**out, "B": out["B"].mT.contiguous()}

    def require(self, base: Shapes, called: str) -> None:
        """Refuse a base that is not this adapter's: factors of a layer that it lacks or of other shapes, and layers
        that the configuration adapts and that have no factors here (a file that was cut by hand)."""
        for module in self.modules:
            if module not in base:
                raise BadInput(f"{self.file.path}: {module}", "absent", f"a linear module of the base {called}")
            for role, shape in self._shapes(module, *base[module]).items():
                name = f"{PREFIX}{module}.{ROLES[self.kind][role]}"
                require_shape(self.file, name, shape, f"as its rank in {CONFIG} and the base {called} say")
        own, targets = {*self.modules, *self._pruned()}, self.config.tree.get("target_modules")
        if targets != "all-linear" and (lost := [m for m in self.config.targets(base) if m not in own]):
            legal = f"factors of every layer that target_modules in {CONFIG} names; {len(lost)} have none"
            raise Corrupted(f"{self.file.path}: {PREFIX}{lost[0]}", "missing", legal)

    def _shapes(self, module: str, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        rank = self.config.rank(module)
        known = {"A": (rank, in_features), "B": (out_features, rank), "magnitude": (out_features,), "E": (rank, 1)}
        return {role: known[role] for role in ROLES[self.kind]}

    def _pruned(self) -> list[str]:
        return [m for m in _modules(self.file, self.kind) if m not in self.modules]


def open_peft(folder: Path) -> PeftAdapter:
    """The adapter in a folder; BadInput says what in it cannot be read, by name and with what would be legal."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise BadInput("adapter", str(folder), _legal(folder, name))
    return _opened(folder, *((folder / name).stat().st_mtime_ns for name in (CONFIG, TENSORS)))


def _legal(folder: Path, missing: str) -> str:
    if (folder / PICKLED).exists():
        return (f"a folder with {TENSORS}: {PICKLED} is a pickle, which can run code when it is read; save it again by "
                "PEFT's save_pretrained(..., safe_serialization=True)")  # fmt: skip
    if (folder / "ablora_adapter.json").exists():
        return "an adapter that PEFT can express: this run's is no single low-rank update (its files say `peft: false`)"
    return f"a folder that PEFT's save_pretrained wrote, with {CONFIG} and {TENSORS} ({missing} is not there)"


@cache
def _opened(folder: Path, *modified: int) -> PeftAdapter:
    config = read_config(folder)
    file = open_checked(folder / TENSORS)
    modules = _modules(file, config.kind)
    wanted = [f"{PREFIX}{module}.{suffix}" for module in modules for suffix in ROLES[config.kind].values()]
    require_names(file, wanted)
    first = ROLES[config.kind]["A"]
    own = tuple(module for module in modules if file.shapes[f"{PREFIX}{module}.{first}"][0] > 0)
    check(bool(own), str(file.path), "no factors", "at least one adapted module")
    return PeftAdapter(folder, config, file, own)


def _modules(file: TensorFile, kind: Kind) -> list[str]:
    """The modules that have a tensor; one that is no factor of a linear layer is refused by name."""
    suffixes = "|".join(map(re.escape, ROLES[kind].values()))
    pattern = re.compile(rf"{re.escape(PREFIX)}(.+)\.({suffixes})")
    found = {}
    for name in file.shapes:
        if (match := pattern.fullmatch(name)) is None:
            legal = f"{PREFIX}MODULE.{' or .'.join(ROLES[kind].values())}: of a {kind} adapter these alone are read"
            raise Corrupted(f"{file.path}: {name}", "not expected", legal + _hint(name))
        found[match[1]] = None
    return list(found)


def _hint(name: str) -> str:
    if "lora_embedding" in name:
        return " (this is a factor of an embedding: adapt linear layers only)"
    return " (this is a bias of the factors: lora_bias)" if name.endswith("lora_B.bias") else ""
