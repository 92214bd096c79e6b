"""Greedy generation, and whether the answer in it is the right one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria

from ablora.evals._base import Items, Outcome
from ablora.evals._kept import Kept, nothing
from ablora.method.adaptation import Adaptation
from ablora.models.base import Base
from ablora.spec import check

BATCH = 32
"""Prompts per run and batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Batched greedy decoding from the prompt; exact_match is the share of items whose extracted answer is right.

    Prompts are padded on the left; decoding stops at the end-of-text token or after `max_new_tokens`. What counts as
    the answer in a text, and as right, is the data set's rule (`extract`, `is_correct`). Greedy only: sampling would
    draw from a global generator and so depend on pack-mates.
    """

    revision: ClassVar[int] = 1
    split: Literal["train", "validation", "test"]
    max_items: int | None
    """The first so many items of the split; null: all."""
    max_new_tokens: int

    def __post_init__(self) -> None:
        check(self.max_items is None or self.max_items >= 1, "max_items", self.max_items, "null, or at least 1")
        check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "an integer of at least 1")

    @torch.no_grad()
    def run(
        self, base: Base, adapted: Adaptation, members: Sequence[Items], kept: Kept | None = None
    ) -> list[Outcome | None]:
        kept = kept or nothing(len(members))
        while any(len(done) < len(m.encoded) for m, done in zip(members, kept.found)):
            batch = [m.encoded[len(done) : len(done) + BATCH] for m, done in zip(members, kept.found)]
            prompts = [[e.input_ids[: e.answer_start] for e in mine] for mine in batch]
            kept.add(self._generate(base, adapted, prompts, kept.pause))
        return [_outcome(m, texts) if m.encoded else None for m, texts in zip(members, kept.found)]

    def _generate(
        self, base: Base, adapted: Adaptation, prompts: Sequence[Sequence[tuple[int, ...]]], pause: Callable[[], None]
    ) -> list[list[str]]:
        """New text per run and prompt; rows are run-major and, for the adapters, equally many per run."""
        most = max(map(len, prompts))
        flat = [prompt for run in prompts for prompt in [*run, *[(base.end_id,)] * (most - len(run))]]
        ids, mask = pad_left(flat, base.end_id)
        device = base.model.device
        out = adapted.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=base.end_id,
            pad_token_id=base.end_id,
            stopping_criteria=[_Pausing(pause)],
        )
        texts = base.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [texts[i * most : i * most + len(run)] for i, run in enumerate(prompts)]


class _Pausing(StoppingCriteria):
    """Never says that a text is complete; lets `pause` raise between two tokens."""

    def __init__(self, pause: Callable[[], None]):
        self._pause = pause

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._pause()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def pad_left(prompts: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (prompts, longest), padded on the left."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), fill)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids, mask


def _outcome(member: Items, texts: Sequence[str]) -> Outcome:
    records = []
    for example, text in zip(member.examples, texts):
        prediction = member.dataset.extract(text)
        correct = member.dataset.is_correct(prediction, example.target)
        found = {"item": example.item, "prediction": prediction, "target": example.target, "text": text}
        records.append({**found, "correct": correct})
    return Outcome({"exact_match": sum(r["correct"] for r in records) / len(records)}, records)
