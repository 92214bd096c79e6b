"""A pretended device: its tensors lie in the CPU's memory and are computed there, but may not meet the CPU's own.

    python elsewhere.py FOLDER PRESET...

trains each preset, alone where it has to be, on a small base that lives there: four steps with a crash after the
third, which the checkpoint of the second makes up for. The other devices that torch has need a machine that has them;
what can go wrong on one before it computes anything (a tensor that was forgotten on the CPU) goes wrong on this one.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
ATEN = torch.ops.aten
CROSSES = {ATEN._to_copy.default, ATEN.copy_.default}
"""What may have tensors of both."""


class Elsewhere(torch.Tensor):
    """A tensor that says it is on the device, around one of the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        out = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        out.held = held
        return out

    def tolist(self):  # torch refuses this to subclasses
        return self.cpu().tolist()

    def new_tensor(self, data, **kwargs):  # asks for a C++ device, as torch.tensor does
        return torch.tensor(data, dtype=self.dtype, device=self.device, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return compute(op, *args, **(kwargs or {}))


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The operator on the tensors inside; refused where one of the CPU's, no scalar, is among them."""
    flat, structure = tree.tree_flatten((args, kwargs))
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    own = [one for one in tensors if isinstance(one, Elsewhere)]
    if own and op not in CROSSES and any(one.dim() > 0 for one in tensors if not isinstance(one, Elsewhere)):
        raise RuntimeError(f"{op}: tensors of the cpu and of {NAME} meet")
    inside = [one.held if isinstance(one, Elsewhere) else torch.device("cpu") if isinstance(one, torch.device) else one
              for one in flat]  # fmt: skip
    there, named = tree.tree_unflatten(inside, structure)
    out = op(*there, **named)
    if (to := kwargs.get("device")) is not None and torch.device(to).type == "cpu":
        return out
    known = {id(one.held): one for one in own}  # what was written in place is the tensor that it was
    return tree.tree_map_only(torch.Tensor, lambda one: known[id(one)] if id(one) in known else Elsewhere(one), out)


def set_up() -> torch.library.Library:
    """Make the device known; once in a process, after models are loaded. It lasts as long as what this returns."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(compute, "PrivateUse1")
    torch.tensor = _made_here(torch.tensor)  # the real one asks for a C++ device
    torch.eye = _made_here(torch.eye)  # resizes what it writes to, which a wrapper cannot follow
    return library


def _made_here(make: Any) -> Any:
    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        out = make(*args, **kwargs)
        return out if device is None else out.to(device)

    return made


def train(folder: Path, base: Path, presets: list[str]) -> None:
    """Each preset to its result, through a crash; those that pack in one pack."""
    from dataclasses import replace

    from small import Interruption, Watcher, run, small_spec

    from ablora.store.roots import Roots
    from presets import fitting, method

    roots = Roots(folder / "runs", folder / "studies", folder / "cache")
    specs = [small_spec(base, preset, max_steps=4, batch_size=2, checkpoint_every=2) for preset in presets]
    specs = [replace(one, rank=fitting(one.method) if one.method.has_rank else None) for one in specs]
    alone = [name for name in presets if not method(name).packs]
    packs = [[s for s, name in zip(specs, presets) if name not in alone]]
    packs += [[s] for s, name in zip(specs, presets) if name in alone]
    for pack in filter(None, packs):
        try:
            run(roots, *pack, watcher=Watcher(crash_after=3))
        except Interruption:
            run(roots, *pack)


def main(folder: Path, presets: list[str]) -> None:
    from small import save_base

    from ablora.models.base import Local
    from ablora.train import execute

    base = save_base(folder / "base")
    loaded = execute._load(Local(name="small", path=str(base), dtype="float32"))
    keep = set_up()
    torch.nn.Module.to(loaded.model, NAME)
    train(folder, base, presets)
    assert loaded.model.device.type == NAME
    del keep


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(Path(sys.argv[1]), sys.argv[2:])
