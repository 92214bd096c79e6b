"""Bytes that are alive while a piece of a program runs on tensors without data (meta)."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts every storage that an operation makes, from its birth to its last reference: what the same program's
    allocator would hold, without its rounding and holes.

    Storages of `known` tensors (weights, factors) are left out, and so are views, which make none.
    """

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.bytes = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._known = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            for leaf in (tensor,) if isinstance(tensor, Tensor) else tree_leaves(tensor):
                if isinstance(leaf, Tensor):
                    self._born(leaf)
        return out

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._known or not (size := storage.nbytes()):
            return
        self._sizes[key] = size
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._died, key).atexit = False

    def _died(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)

    def since(self) -> int:
        """The peak since the last call, which begins a new one."""
        peak, self.peak = self.peak, self.bytes
        return peak
