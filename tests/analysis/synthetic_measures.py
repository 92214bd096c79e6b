"""Measure frames in the columns that `ablora analyse` writes, made from real small updates of random base weights.

The updates differ as the methods do: PiSSA's lies near W0's top directions, MiLoRA's near its bottom ones, LoRA's and
rsLoRA's rows near the random A0 that their seed draws, so that the two share it at equal seeds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from synthetic import Made, id_of

from ablora.store.roots import Roots

SHAPES = {
    "q_proj": (48, 48), "k_proj": (24, 48), "v_proj": (24, 48), "o_proj": (48, 48),
    "gate_proj": (96, 48), "up_proj": (96, 48), "down_proj": (48, 96),
}  # fmt: skip
"""(out, in) of each kind."""

BLOCK = {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}
MIXTURES = ("goat", "molora_topk")
EXPERTS = 2
SHARED_START = {"lora", "rslora"}


PHI_COLUMNS = ("id", "module", "layer", "kind", "part", "reason", "id_b", "part_b", "side", "i", "j", "phi", "null",
               "shared_start")  # fmt: skip


class Module(NamedTuple):
    name: str
    layer: int
    kind: str
    weight: np.ndarray
    left: np.ndarray
    right: np.ndarray
    """W0's singular vectors as columns, in descending order."""


class Update(NamedTuple):
    """One part of a module's update by its singular triplets; no vectors where it is zero."""

    part: str
    left: np.ndarray
    sigma: np.ndarray
    right: np.ndarray


@cache
def modules(layers: int, kinds: tuple[str, ...]) -> tuple[Module, ...]:
    rng = np.random.default_rng(5)
    out = []
    for layer in range(layers):
        for kind in kinds:
            m, n = SHAPES[kind]
            left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0][:, : min(m, n)] for d in (m, n))
            weight = (left * np.arange(1, min(m, n) + 1) ** -0.7) @ right.T
            name = f"model.layers.{layer}.{BLOCK.get(kind, 'self_attn')}.{kind}"
            out.append(Module(name, layer, kind, weight, left, right))
    return tuple(out)


def updates(made: Made, module: Module, rank: int) -> list[Update]:
    """The module's update; of a mixture the expected one and each expert's."""
    if made.method not in MIXTURES:
        return [_svd("update", _dense(made, module, rank, 0), rank)]
    own = [_dense(made, module, rank // EXPERTS, e) for e in range(EXPERTS)]
    experts = [_svd(f"expert {e}", dense, rank // EXPERTS) for e, dense in enumerate(own)]
    return [_svd("expected", np.mean(own, axis=0), rank), *experts]


def _dense(made: Made, module: Module, rank: int, expert: int) -> np.ndarray:
    noise = np.random.default_rng([made.seed, expert, *module.name.encode(), *made.method.encode()])
    stream = "A0" if made.method in SHARED_START else made.method
    start = np.random.default_rng([made.seed, expert, *module.name.encode(), *stream.encode()])
    m, n = module.weight.shape
    left, right = noise.normal(size=(m, rank)), start.normal(size=(rank, n))
    if made.method == "pissa":
        left, right = module.left[:, :rank] + 0.06 * left, module.right[:, :rank].T + 0.06 * right
    elif made.method == "milora":
        left, right = module.left[:, -rank:] + 0.25 * left, module.right[:, -rank:].T + 0.25 * right
    else:
        shared = np.random.default_rng([*module.name.encode()]).normal(size=(m, 2))
        left[:, :2] = 2 * shared + left[:, :2]  # what the task asks for: two directions that every seed finds
    return 0.02 * (1 + 0.3 * module.layer) * left @ right


def _svd(part: str, dense: np.ndarray, rank: int) -> Update:
    left, sigma, right = np.linalg.svd(dense, full_matrices=False)
    num = int((sigma > 1e-9).sum())
    kept = min(num, rank)
    return Update(part, left[:, :kept], sigma[:num], right[:kept].T)


def phi(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """phi(i, j) for all i, j: (columns of a, columns of b)."""
    i, j = np.arange(1, a.shape[1] + 1)[:, None], np.arange(1, b.shape[1] + 1)[None]
    return ((a.T @ b) ** 2).cumsum(0).cumsum(1) / np.minimum(i, j)


@cache
def band(dim: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """2.5 % and 97.5 % points of phi(i, j) of random subspaces, from 200 draws."""
    rng = np.random.default_rng(3)
    one = np.eye(dim)[:, :rank]
    draws = [phi(one, np.linalg.qr(rng.normal(size=(dim, rank)))[0]) for _ in range(200)]
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return low, high


class Measures(NamedTuple):
    subspace: pd.DataFrame
    phi: pd.DataFrame
    projection: pd.DataFrame
    spectrum: pd.DataFrame


def measures(runs: Sequence[Made], layers: int = 2, kinds: Sequence[str] = ("q_proj", "v_proj")) -> Measures:
    """The four frames of these runs."""
    found = modules(layers, tuple(kinds))
    own = {id_of(m): {mod.name: updates(m, mod, m.rank or 4) for mod in found} for m in runs}
    ranks = {id_of(m): m.rank or 4 for m in runs}
    rows: tuple[list[Mapping[str, Any]], ...] = ([], [], [])
    for made in runs:
        for mod in found:
            for update in own[id_of(made)][mod.name]:
                head = {"id": id_of(made), "module": mod.name, "layer": mod.layer, "kind": mod.kind,
                        "part": update.part, "reason": "",
                        "gates": "measured" if update.part == "expected" else ""}  # fmt: skip
                rows[0].extend(head | row for row in _against(mod, update))
                rows[1].extend(head | row for row in _projection(mod, update, ranks[id_of(made)]))
                rows[2].extend(head | row for row in _spectrum(mod, update))
    return Measures(pd.DataFrame(rows[0]), _pairs(runs, found, own), pd.DataFrame(rows[1]), pd.DataFrame(rows[2]))


def _against(mod: Module, update: Update) -> Iterator[dict[str, Any]]:
    r = update.left.shape[1]
    rng = np.random.default_rng([*mod.name.encode()])
    for side, own, base in (("left", update.left, mod.left), ("right", update.right, mod.right)):
        low, high = band(own.shape[0], r)
        drawn = np.linalg.qr(rng.normal(size=(own.shape[0], r)))[0]
        for against, other in (("top", base[:, :r]), ("bottom", base[:, -r:]), ("random", drawn)):
            yield {"side": side, "against": against, "i": r, "j": r, "phi": phi(own, other)[-1, -1],
                   "null": r / own.shape[0], "null_low": low[-1, -1], "null_high": high[-1, -1]}  # fmt: skip


def _projection(mod: Module, update: Update, rank: int) -> Iterator[dict[str, Any]]:
    m, n = mod.weight.shape
    rng = np.random.default_rng([1, *mod.name.encode()])
    drawn = [np.linalg.qr(rng.normal(size=(d, rank)))[0] for d in (m, n)]
    kept = update.left.shape[1]
    dense = (update.left * update.sigma[:kept]) @ update.right.T
    for basis, left, right in (("update", update.left, update.right),
                               ("top", mod.left[:, :rank], mod.right[:, :rank]), ("random", *drawn)):  # fmt: skip
        norm_w, norm_update = (float(np.linalg.norm(left.T @ x @ right)) for x in (mod.weight, dense))
        yield {"basis": basis, "rank": left.shape[1], "norm_w": norm_w, "norm_update": norm_update,
               "amplification": norm_update / norm_w,
               "expected_random": float(np.linalg.norm(mod.weight)) * left.shape[1] / np.sqrt(m * n)}  # fmt: skip


def _spectrum(mod: Module, update: Update) -> Iterator[dict[str, Any]]:
    s, share = update.sigma, update.sigma / update.sigma.sum()
    values = {"frobenius": np.linalg.norm(s), "spectral": s[0], "stable_rank": (s**2).sum() / s[0] ** 2,
              "entropy_rank": np.exp(-(share * np.log(share)).sum()),
              "relative": np.linalg.norm(s) / np.linalg.norm(mod.weight)}  # fmt: skip
    yield from ({"measure": name, "value": float(value)} for name, value in values.items())


def _pairs(runs: Sequence[Made], found: Iterable[Module], own: Mapping[str, Any]) -> pd.DataFrame:
    """Whole updates only: a method with itself and with others at unequal seeds, and at equal seeds."""
    parts = []
    for a, b in combinations(sorted(runs, key=id_of), 2):
        shared = a.seed == b.seed and {a.method, b.method} <= SHARED_START
        for mod in found:
            one, two = own[id_of(a)][mod.name][0], own[id_of(b)][mod.name][0]
            for side, u, v in (("left", one.left, two.left), ("right", one.right, two.right)):
                values = phi(u, v)
                i, j = (index.ravel() + 1 for index in np.indices(values.shape))
                parts.append(pd.DataFrame({
                    "id": id_of(a), "module": mod.name, "layer": mod.layer, "kind": mod.kind, "part": one.part,
                    "reason": "", "id_b": id_of(b), "part_b": two.part, "side": side, "i": i, "j": j,
                    "phi": values.ravel(), "null": np.maximum(i, j) / u.shape[0],
                    "shared_start": shared,
                }))  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=pd.Index(PHI_COLUMNS))


def write_measures(roots: Roots, study: str, found: Measures) -> None:
    folder = roots.studies / study / "measures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in found._asdict().items():
        frame.to_parquet(folder / f"{name}.parquet", index=False)
