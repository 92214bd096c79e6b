"""One run of a PEFT tuner, as an `Adaptation`: layers put into the model, or virtual tokens before every sequence."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ablora.method.adaptation import ModuleRecord
from ablora.method.dropout import Draw
from ablora.method.export import save_exact, save_tensors
from ablora.method.peft_tuner import Peft, plain
from ablora.method.structure._base import Factors, Stats
from ablora.method.twin import make, records, seeded
from ablora.models.rows import PAD, Rows, head_of, last_states
from ablora.spec import AdapterSpec, check
from ablora.store.atomic import write_json


def tune(base: PreTrainedModel, method: Peft, adapter: AdapterSpec, seed: int) -> "Tuned":
    """The run's model: `Prompted` where PEFT learns a prompt."""
    return (Prompted if method.configured().is_prompt_learning else Tuned)(base, method, adapter, seed)


class Tuned:
    """A tuner whose layers act on tokens, so that a row of several sequences goes through the model as it is."""

    def __init__(self, base: PreTrainedModel, method: Peft, adapter: AdapterSpec, seed: int):
        method.check_run(adapter, str(base.dtype).removeprefix("torch."))
        base.requires_grad_(False).eval()
        self.base, self.method = base, method
        with seeded(base.device, "init", seed, method.tuner):
            self.twin = make(base, method, adapter.targets)
        self.trained = self.twin.trained()
        assert all(p.dtype == torch.float32 for p in self.trained.values()), f"{method.tuner} is IN_THE_BASES_DTYPE"
        self.records: list[dict[str, ModuleRecord]] = [records(self.twin)]

    def parameters(self, member: int) -> dict[str, Parameter]:
        return self.trained

    def roles(self, member: int) -> dict[str, list[Parameter]]:
        return {self.method.tuner: list(self.trained.values())}

    def factors(self, member: int) -> Mapping[str, Factors]:
        return {}

    def hidden(
        self, rows: Rows, draws: Sequence[Draw] | None = None, beside_base: bool = False
    ) -> Float[Tensor, "runs tokens width"]:
        """The run's row, and the base's from a pass of its own through the base itself."""
        with self._drawing(draws):
            own = self._states(rows.part(slice(0, 1)))
        if not beside_base:
            return own
        return torch.cat([own, last_states(self.base, rows.part(slice(1, 2))).to(own.dtype)])

    def _states(self, row: Rows) -> Float[Tensor, "1 tokens width"]:
        return last_states(self.twin.model, row)

    @contextmanager
    def _drawing(self, draws: Sequence[Draw] | None) -> Iterator[None]:
        """With draws the tuner's own modules are in train mode, and torch's generators at the state of the micro-step;
        the model's modules never are, as with every other method."""
        if draws is None:
            yield
            return
        draw = draws[0]
        self._train(True)
        try:
            with seeded(self.base.device, "dropout", draw.seed, draw.step, draw.micro):
                yield
        finally:
            self._train(False)

    def _train(self, on: bool) -> None:
        for module in self.twin.added:
            module.training = on

    def logits(self, hidden: Float[Tensor, "*rows width"], beside_base: bool = False) -> Float[Tensor, "*rows vocab"]:
        """Each row's own head: a tuner may be at the twin's."""
        if not beside_base:
            return head_of(self.twin.model)(hidden)
        own = head_of(self.twin.model)(hidden[:-1])
        return torch.cat([own, head_of(self.base)(hidden[-1:].to(self.base.dtype)).to(own.dtype)])

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Any, self.twin.model).generate(**inputs)

    def stats(self, member: int) -> Mapping[str, Stats]:
        return {}

    def penalty(self, member: int) -> Tensor | None:
        return None

    def clear_gradients(self) -> None:
        for parameter in self.trained.values():
            parameter.grad = None

    def hand_out_gradients(self) -> None:
        """Each parameter has its own; one that the loss does not reach keeps none."""

    def save(self, member: int, folder: Path) -> None:
        """PEFT's layout, as its `save_pretrained` writes it, and beside it what was trained, by the run's own names."""
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(self.twin.tuned, save_embedding_layers=False)
        config = self.twin.tuned.active_peft_config
        own = {"task_type": "CAUSAL_LM", "peft_type": self.method.tuner, "peft_version": config.peft_version}
        own |= {"inference_mode": True, "base_model_name_or_path": None}
        save_tensors(folder / "adapter_model.safetensors", tensors)
        write_json(folder / "adapter_config.json", {**plain(config), **own})
        save_exact(folder, self.trained, self.records[member], peft=True)

    def keep(self, members: Sequence[int]) -> None:
        raise AssertionError("a pack of one run has nobody to let go")

    def detach(self) -> None:
        """The base was not touched."""


class Prompted(Tuned):
    """A tuner that learns what stands before every sequence: virtual tokens, or keys and values of them."""

    @property
    def _virtual_tokens(self) -> int:
        return cast(Any, self.twin.tuned.active_peft_config).num_virtual_tokens

    def _states(self, row: Rows) -> Float[Tensor, "1 tokens width"]:
        """The row's sequences as a batch through PEFT's own forward, padded behind where nothing looks, and the states
        of their own tokens back in the row's order."""
        sequences = row.ids[0].split(row.segments[0])
        self._require_context(max(map(len, sequences)))
        ids = pad_sequence(list(sequences), batch_first=True, padding_value=PAD)
        real = pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True)
        states: list[Tensor] = []
        model = self.twin.model
        hooks = [
            model.base_model.register_forward_hook(lambda _, __, out: states.append(out.last_hidden_state)),
            head_of(model).register_forward_pre_hook(lambda _, args: (args[0][:, -1:],)),  # these logits are not used
        ]
        try:
            self.twin.tuned(input_ids=ids, attention_mask=real, use_cache=self._in_cache)
        finally:
            for hook in hooks:
                hook.remove()
        (found,) = states
        own = found[:, found.shape[1] - ids.shape[1] :]
        return own[real.bool()][None]

    @property
    def _in_cache(self) -> bool:
        """Whether the prompt is given as past keys and values."""
        return self.method.tuner in ("PREFIX_TUNING", "CARTRIDGE")

    def _require_context(self, longest: int) -> None:
        context = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        legal = f"at most {context} tokens, the context of the model, with a sequence's {longest}"
        fits = context is None or longest + self._virtual_tokens <= context
        check(fits, "method.config.num_virtual_tokens", self._virtual_tokens, legal)

    def generate(self, **inputs: Any) -> Tensor:
        """Prompts of equal length together: padding would stand between the virtual tokens and the prompt."""
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        lengths, width = mask.sum(1), ids.shape[1]
        self._require_context(width + inputs["max_new_tokens"])
        out = ids.new_full((len(ids), width + inputs["max_new_tokens"]), inputs["pad_token_id"])
        out[:, :width] = ids
        for length in lengths.unique().tolist():
            at = (lengths == length).nonzero()[:, 0]
            alone = {"input_ids": ids[at, width - length :], "attention_mask": mask[at, width - length :]}
            with warnings.catch_warnings():  # of position ids that PEFT leaves out: without padding they are its own
                warnings.filterwarnings("ignore", "Position ids are not supported")
                new = self.twin.tuned.generate(**alone, **inputs)[:, length:]
            out[at, width : width + new.shape[1]] = new
        return out
