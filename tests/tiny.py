"""Small bases with random weights, and what tests do with them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from ablora.data.encode import Encoded
from ablora.method.attach import Adapted, attach
from ablora.method.full_moe import FullMoE
from ablora.method.init._base import DataDriven
from ablora.method.lowrank import LowRank
from ablora.method.member import Member
from ablora.method.targets import find_targets
from ablora.models.segments import packed_logits, use_segments
from ablora.spec import AdapterSpec
from ablora.spectra.library import Library
from ablora.spectra.statistics import Collected
from ablora.train.calibration import choose, collect
from presets import fitting

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attn_implementation": "sdpa",
}
SEGMENTS = [[20, 31, 13]]


def llama(dtype: torch.dtype = torch.float32, **sizes: int) -> PreTrainedModel:
    return _ready(LlamaForCausalLM, LlamaConfig, dtype, **sizes)


def qwen(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """An architecture with biases on q, k and v."""
    model = _ready(Qwen2ForCausalLM, Qwen2Config, dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    return model


def _ready(cls: type, config: type, dtype: torch.dtype, **sizes: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(config(**{**SIZES, **sizes})).to(dtype).eval()
    # Weights of size 1/sqrt(n), as training leaves them; 0.02 (the default) would hide errors behind small outputs.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    use_segments(model)
    return model


def ids(rows: int = 1) -> Tensor:
    return torch.randint(1, 97, (rows, 64), generator=torch.Generator().manual_seed(5))


def logits(model: PreTrainedModel, rows: int = 1) -> Tensor:
    with torch.no_grad():
        return packed_logits(model, ids(rows), SEGMENTS * rows)


def made_up(seed: int, count: int = 24) -> tuple[Encoded, ...]:
    """Sequences whose answers (9 tokens) follow a rule, so that there is something to learn."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        prompt = torch.randint(1, 96, (int(torch.randint(6, 12, (1,), generator=g)),), generator=g).tolist()
        answer = [(3 * t + 1) % 96 for t in (prompt * 2)[:9]]
        out.append(Encoded((*prompt, *answer), len(prompt), str(i)))
    return tuple(out)


def calibrated(
    model: PreTrainedModel, method: LowRank | FullMoE | None, adapter: AdapterSpec, items: Sequence[Encoded]
) -> Collected | None:
    """What the method's start asks to know of some items; None: nothing."""
    if not isinstance(method, LowRank) or not isinstance(method.init, DataDriven):
        return None
    chosen = choose(items, method.init.calibration)
    return collect(model, find_targets(model, adapter.targets), method.init.statistic(), chosen)


def adapt(
    model: PreTrainedModel, *methods: LowRank | FullMoE, rank: int | None = None, seed: int = 0, **adapter: object
) -> Adapted:
    """Of rank 8 by default, or the next that the experts divide."""
    spec = AdapterSpec(**adapter)  # type: ignore[arg-type]
    members = [Member(m, rank or fitting(m), spec, seed, calibrated(model, m, spec, made_up(0))) for m in methods]
    return attach(model, members, Library(None))


def disturb(adapted: Adapted, member: int = 0, size: float = 1e-2) -> None:
    """Move every trainable tensor by a random amount, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapted.parameters(member).values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
