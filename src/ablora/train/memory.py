"""How much memory the training of a pack takes at most, from specifications and the lengths of its data alone.

The peak is that of one process: itself, the base, every run's own tensors, and the larger of a training step and an
evaluation. What a step keeps and makes is counted, not fitted: the same code runs once on tensors without data
(meta), over two layers of the base, and every storage is followed from its birth to its death (`memory_trace`). The
numbers are sums of what was asked for; an allocator's rounding and holes come on top.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from ablora.method.lowrank import LowRank
from ablora.models.base import skeleton
from ablora.models.passes import by_worth
from ablora.spec import RunSpec, check
from ablora.train.memory_evals import looking_bytes, shared_bytes
from ablora.train.memory_lengths import of_batches
from ablora.train.memory_model import base_bytes, displaced
from ablora.train.memory_trace import passes, sizes

PROCESS = 500 * 2**20
"""Python with torch, transformers and ablora, before a base is loaded."""
OF_A_PASS = ("activations", "logits", "backward")
"""Parts of `Memory` that only the runs have which go through the base together."""
MOMENTS = {"adamw": 2, "adamw_hf": 2, "sgd": 0}
"""Tensors of a trained one's size that an optimizer keeps."""
STEP = 4
"""Bytes of the count of steps that torch's optimizers keep with every tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What a pack takes, in bytes, by what it is for. Parts of several runs add up, but for `process` and `base`."""

    process: int
    base: int
    """The base's weights, once for all runs."""
    trained: int
    """Factors, or whatever the runs train."""
    fixed: int
    """Copies of the start, scales, masks, and factors that are held still."""
    optimizer: int
    gradients: int
    """As far as they are there beside the rest of a step: all of them where it takes several passes. In a single pass
    they come as activations go, so that the step is the more of its begin (no gradients) and its end (all of them, and
    what one layer takes); they count as far as that is more."""
    activations: int
    """What the forward pass of the longest micro-batch keeps for its backward pass."""
    logits: int
    """What the head makes at the labels, over the activations."""
    backward: int
    """What the backward pass makes at most, over the activations."""
    evaluation: int
    """The largest evaluation, over what is there between steps."""

    @property
    def standing_bytes(self) -> int:
        """What is there between steps."""
        return self.process + self.base + self.trained + self.fixed + self.optimizer

    @property
    def step_bytes(self) -> int:
        """The most that a training step adds to it."""
        return self.gradients + self.activations + max(self.logits, self.backward)

    @property
    def peak_bytes(self) -> int:
        """The most that the process holds at once."""
        return self.standing_bytes + max(self.step_bytes, self.evaluation)


def predict(specs: Sequence[RunSpec], worth: int | None = None) -> Memory:
    """The memory of training runs as one pack, in bytes; no weight is read.

    `worth`: the tokens of a pass (`models.passes`); None: all runs go through the base together, as on a GPU, which is
    the most that they may take. Every row of a pass is as long as the longest, and runs that one product serves have
    its largest rank, which is why a pack can take more than its runs by themselves do.

    The first run of a kind (method, model, targets) costs 0.5 to 2 s, further ones microseconds. Data are tokenised
    as far as 2,048 items of a split.

    Differs: a data-driven start's pass and decompositions before the first step are not in it, nor evaluations that
    `memory_evals` does not know, nor a checkpoint while it is written.
    """
    check(len(specs) > 0, "specs", specs, "at least one run")
    tokens = [_length(spec)[0] for spec in specs]
    by_pass = [
        _summed([_of_run(specs[i], _widened(specs[i], specs), max(tokens[j] for j in own)) for i in own])
        for own in by_worth(tokens, worth)
    ]
    heaviest = max(by_pass, key=lambda part: part.step_bytes - part.gradients)
    summed = asdict(_summed(by_pass)) | {name: getattr(heaviest, name) for name in OF_A_PASS}
    if len(by_pass) == 1 and not any(_is_cut(spec) for spec in specs):
        begin = heaviest.step_bytes - heaviest.gradients
        end = heaviest.gradients + heaviest.activations // _layers(specs[0]) + heaviest.backward
        summed["gradients"] = max(0, end - begin)
    looking = looking_bytes(specs, [passes(_widened(spec, specs)) for spec in specs], worth)
    summed["evaluation"] = looking + max(shared_bytes(spec, passes(spec)) for spec in specs)
    base = base_bytes(specs[0].model.folder, specs[0].model.dtype)
    return Memory(**{**summed, "process": PROCESS, "base": base})


def _summed(parts: Sequence[Memory]) -> Memory:
    return Memory(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(Memory)})


def suggest_micro_batch(specs: Sequence[RunSpec], limit_bytes: int) -> int | None:
    """The largest micro-batch, the same for all of a pack's runs, at which its peak is predicted within a limit; None
    where not even one example at a time fits. A run whose batch is smaller takes that whole."""
    sizes_ = range(1, max(spec.train.batch_size for spec in specs) + 1)
    fitting = [size for size in sizes_ if predict([_cut(s, size) for s in specs]).peak_bytes <= limit_bytes]
    return max(fitting, default=None)


def _cut(spec: RunSpec, size: int) -> RunSpec:
    return replace(spec, train=replace(spec.train, micro_batch=min(size, spec.train.batch_size)))


def _layers(spec: RunSpec) -> int:
    """Of the base; one where its configuration does not say, which makes the end of a pass larger."""
    config = skeleton(spec.model.folder).config.get_text_config()
    return getattr(config, "num_hidden_layers", None) or 1


def _is_cut(spec: RunSpec) -> bool:
    """Whether its batch takes several passes."""
    return (spec.train.micro_batch or spec.train.batch_size) < spec.train.batch_size


def _length(spec: RunSpec) -> tuple[int, int]:
    return of_batches(spec) if spec.train.max_steps > 0 else (0, 0)


def _widened(spec: RunSpec, specs: Sequence[RunSpec]) -> RunSpec:
    """The run at the rank that its tensors are padded to."""
    if not isinstance(spec.method, LowRank):
        return spec
    return replace(spec, rank=max(other.rank or 0 for other in specs if _together(spec, other)) or None)


def _together(one: RunSpec, other: RunSpec) -> bool:
    """Whether one product serves both."""
    if not isinstance(other.method, LowRank):
        return False
    keys = [(s.method.structure.group(), displaced(s.method.init)) for s in (one, other)]
    return keys[0] == keys[1]


def _of_run(spec: RunSpec, wide: RunSpec, tokens: int) -> Memory:
    """A run's parts in a pack whose rows have so many tokens."""
    own, padded, found = sizes(spec), sizes(wide), passes(wide)
    labels = _length(spec)[1]
    kept, counts = found.kept.at(tokens), own.tensors * STEP if spec.train.optimizer == "adamw" else 0
    return Memory(
        process=0,
        base=0,
        trained=padded.trained,
        fixed=padded.fixed,
        optimizer=MOMENTS[spec.train.optimizer] * own.trained + counts,
        gradients=padded.trained,
        activations=kept if tokens else 0,
        logits=found.head.at(tokens, labels) if tokens else 0,
        backward=max(0, found.backward.at(tokens) - kept) + found.head_gradients.at(tokens) if tokens else 0,
        evaluation=0,  # of the pack as a whole
    )
