"""What a pack's evaluations take at most, over what is there between steps."""

from collections.abc import Sequence

from ablora.evals._base import Evaluation
from ablora.evals.answer_loss import AnswerLoss
from ablora.evals.forgetting import ROW_TOKENS as TEXT_TOKENS
from ablora.evals.forgetting import SLICE_NUMBERS, Forgetting
from ablora.evals.generation import BATCH, Generation
from ablora.evals.routing import Routing
from ablora.models.base import skeleton
from ablora.models.passes import by_worth
from ablora.spec import RunSpec
from ablora.train.memory_lengths import of_chunks, of_prompts
from ablora.train.memory_trace import Passes

COPIES = 5
"""Of float64 log-probabilities that a slice of positions takes when a model is compared with its base."""
SCORES = 3
"""Of a step's scores in generation: the head's, their copy in float32, and the processors'."""


def looking_bytes(specs: Sequence[RunSpec], passes: Sequence[Passes], worth: int | None) -> int:
    """The largest of a pack's evaluations, which are made one after another; those of classes that are not known here
    are left out. `worth`: as of `models.passes.by_worth`, where an evaluation is cut into passes."""
    tasks = {name: task for spec in specs for name, task in spec.eval.tasks.items()}
    asked = {name: [(s, p) for s, p in zip(specs, passes) if name in s.eval.tasks] for name in tasks}
    return max((_of_task(task, asked[name], worth) for name, task in tasks.items()), default=0)


def shared_bytes(spec: RunSpec, passes: Passes) -> int:
    """What an evaluation takes once for all runs of a pack: forgetting's row of the base, and its slice of
    log-probabilities, whose size is bounded for all rows together."""
    texts = [task for task in spec.eval.tasks.values() if isinstance(task, Forgetting)]
    if not texts:
        return 0
    vocabulary = skeleton(spec.model.folder).config.get_text_config().vocab_size
    longest = max(max(task.chunk_tokens, TEXT_TOKENS) for task in texts)
    return passes.looking.at(longest) + 8 * COPIES * min(SLICE_NUMBERS, 2 * vocabulary * longest)


def _of_task(task: Evaluation, asked: Sequence[tuple[RunSpec, Passes]], worth: int | None) -> int:
    """One evaluation of the runs that have it."""
    match task:
        case AnswerLoss() | Routing():
            return _by_pass(task, asked, worth)
        case Generation():
            return sum(_generation(spec, passes, task) for spec, passes in asked)
        case Forgetting():
            return sum(passes.looking.at(max(task.chunk_tokens, TEXT_TOKENS)) for _, passes in asked)
        case _:
            return 0


def _by_pass(task: AnswerLoss | Routing, asked: Sequence[tuple[RunSpec, Passes]], worth: int | None) -> int:
    """The heaviest pass; its rows are as long as the longest."""
    chunks = [of_chunks(spec, task.split, task.max_items) for spec, _ in asked]
    heaviest = 0
    for own in by_worth([tokens for tokens, _ in chunks], worth):
        longest = max(chunks[i][0] for i in own)
        each = [max(asked[i][1].looking.at(longest), asked[i][1].scores.at(longest, chunks[i][1])) for i in own]
        heaviest = max(heaviest, sum(each))
    return heaviest


def _generation(spec: RunSpec, passes: Passes, task: Generation) -> int:
    """The most of reading the prompts, and of the last token with its cache, of which one layer is being copied."""
    config = skeleton(spec.model.folder).config.get_text_config()
    longest, items = of_prompts(spec, task.split, task.max_items)
    rows = min(BATCH, items)
    size = 2 if spec.model.dtype == "bfloat16" else 4
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * heads * head * size * rows
    reading = passes.looking.at(rows * longest) + per_token * config.num_hidden_layers * longest
    reading += rows * longest * longest * (1 + size)  # the mask, and its copy in the base's dtype
    writing = per_token * (config.num_hidden_layers + 1) * (longest + task.max_new_tokens)
    return max(reading, writing + SCORES * 4 * rows * config.vocab_size)
