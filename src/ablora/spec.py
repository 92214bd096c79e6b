"""What a run is: frozen dataclasses, their canonical form, and the id that is also the run's folder.

A specification is a tree of frozen dataclasses. Axis values, data sets, models and evaluations are dataclasses of
their own (configuration and behaviour in one); this module handles them by their fields alone, so it imports
neither torch nor hydra, and adding a value needs no edit here.

Three field metadata keys steer identity:
  identity=False   the field never enters the id (labels, paths, how often to log)
  added=True       the field is younger than some finished runs: at its default it does not rename them
A class attribute `revision: int` is raised when a value's numbers change; a method `fingerprint()` gives the content
(of files, of weights) that stands in the id in place of a path.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

LABEL = {"identity": False}


class UserError(ValueError):
    """A user's mistake: one message, exit code 2, nothing queued."""


class BadInput(UserError):  # noqa: N818 -- what it is, as a user reads it in a traceback
    """A user's mistake: names the field, the value and what would be legal; the command ends with exit code 2."""

    def __init__(self, field_name: str, value: object, legal: str):
        self.field_name, self.value, self.legal = field_name, value, legal
        super().__init__(f"{field_name}={value!r} is not legal: {legal}")

    def under(self, prefix: str) -> "BadInput":
        """The same mistake, its field seen from one level up."""
        return type(self)(f"{prefix}.{self.field_name}" if prefix else self.field_name, self.value, self.legal)

    def __reduce__(self) -> tuple:
        return type(self), (self.field_name, self.value, self.legal)


def check(condition: bool, field_name: str, value: object, legal: str) -> None:
    if not condition:
        raise BadInput(field_name, value, legal)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSpec:
    """Where the factors go and how they compute: the same for every method that is compared."""

    targets: str | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the output head), or the last parts of module names: q_proj, v_proj, ..., or
    `re:` and a regular expression for a whole name."""
    dropout: float = 0.0
    """Probability of dropping an input feature of the adapter branch, in [0, 1)."""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """The dtype of the adapter branch. Factors and their optimizer are float32 (float64 with float64)."""

    def __post_init__(self) -> None:
        check(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "a probability in [0, 1)")
        check(bool(self.targets), "targets", self.targets, "all-linear, a list such as [q_proj,v_proj], or re:PATTERN")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSpec:
    """One training recipe. The loss of a step is the sum over its answer tokens divided by their number."""

    lr: float
    max_steps: int
    """Optimizer steps; 0: the start is evaluated and saved, nothing is trained."""
    batch_size: int
    """Examples per optimizer step."""
    micro_batch: int | None = None
    """Examples per forward and backward pass; null: the whole batch at once."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After warmup: to zero in a line, in a half cosine, or not at all."""
    warmup_steps: int = 0
    optimizer: Literal["adamw", "sgd", "adamw_hf"] = "adamw"
    """torch's AdamW, SGD without momentum, or transformers' former AdamW, which official programs step by."""
    correct_bias: bool = field(default=True, metadata={"added": True})
    """Of adamw_hf: whether its moments are corrected for their start at zero."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    """Largest global norm of a run's gradient; null: no clipping."""
    max_tokens: int = 512
    """Longest example (prompt and answer). A longer one is left out, counted and named in the run's record."""
    log_every: int = field(default=1, metadata=LABEL)
    checkpoint_every: int = field(default=50, metadata=LABEL)

    def __post_init__(self) -> None:
        check(self.lr > 0 and math.isfinite(self.lr), "lr", self.lr, "a positive number, such as 1e-3")
        check(self.max_steps >= 0, "max_steps", self.max_steps, "an integer of at least 0 (0: no training)")
        for name in ("batch_size", "max_tokens", "log_every", "checkpoint_every"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "an integer of at least 1")
        micro = self.micro_batch
        check(micro is None or 1 <= micro <= self.batch_size, "micro_batch", micro, "null, or 1 to train.batch_size")
        warm = self.warmup_steps >= 0 and (self.warmup_steps <= self.max_steps or self.max_steps == 0)
        check(warm, "warmup_steps", self.warmup_steps, "0 to train.max_steps")
        check(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        legal = "true; only train.optimizer=adamw_hf can do without"
        check(self.correct_bias or self.optimizer == "adamw_hf", "correct_bias", self.correct_bias, legal)
        check(self.eps > 0, "eps", self.eps, "a positive number")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number of at least 0")
        check(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "null, or a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSpec:
    """Which evaluations, and when: before the first step, after every `every` steps (0: none between), at the end."""

    tasks: Mapping[str, Any]
    every: int = 0
    at_start: bool = True

    def __post_init__(self) -> None:
        check(self.every >= 0, "every", self.every, "0, or a number of steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """The scientific configuration of one run; where and how it is executed is not part of it."""

    method: Any
    model: Any
    dataset: Any
    train: TrainSpec
    eval: EvalSpec
    adapter: AdapterSpec
    rank: int | None
    """Low-rank directions per adapted module, over all experts; null for a method without a rank."""
    seed: int

    def __post_init__(self) -> None:
        check(self.rank is None or self.rank >= 1, "rank", self.rank, "an integer of at least 1")
        if not getattr(self.method, "has_rank", True):  # so that a sweep over ranks runs such a method once
            object.__setattr__(self, "rank", None)
        check(self.seed >= 0, "seed", self.seed, "an integer of at least 0")


def canonical(value: Any, part: Callable[[Any], Any] | None = None) -> Any:
    """JSON form of a specification: equal specifications, and only equal ones, give equal text.

    `part` gives the forms of the outermost dataclass' fields: one that remembers shares them.
    """
    if is_dataclass(value) and not isinstance(value, type):
        form = part or canonical
        out: dict[str, Any] = {"kind": type(value).__name__}
        if (revision := getattr(type(value), "revision", None)) is not None:
            out["revision"] = revision
        for f in fields(value):
            own = getattr(value, f.name)
            if not f.metadata.get("identity", True) or (f.metadata.get("added") and own == f.default):
                continue
            out[f.name] = form(own)
        if (fingerprint := getattr(value, "fingerprint", None)) is not None:
            out["content"] = fingerprint()
        return out
    if isinstance(value, Mapping):
        return {key: canonical(own) for key, own in value.items()}
    if isinstance(value, (tuple, list)):
        return [canonical(own) for own in value]
    return value


def identity(spec: RunSpec, part: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """The canonical form that is hashed: `canonical`, without a micro-batch that cannot change a number.

    The split into micro-batches changes what a run learns only with dropout (masks are drawn per micro-step) or with
    a method whose penalty is not a sum over tokens (a mixture's balance loss): there it stays in.
    """
    out = canonical(spec, part)
    if not micro_batch_matters(spec):
        out["train"] = {key: value for key, value in out["train"].items() if key != "micro_batch"}
    return out


def micro_batch_matters(spec: RunSpec) -> bool:
    """Whether the cut into micro-batches changes what is learnt."""
    return spec.adapter.dropout != 0 or getattr(spec.method, "split_matters", False)


def run_id(spec: RunSpec) -> str:
    """12 hexadecimal digits (48 bits): among 10^5 runs two meet by chance with probability 2e-5."""
    return digest(text_of(identity(spec)))


def text_of(form: Any) -> str:
    """The text that is hashed."""
    return json.dumps(form, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
