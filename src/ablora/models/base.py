"""Base models: the one that ships with the package, and any in a local folder."""

from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from ablora.models.content import content_of
from ablora.models.device import device
from ablora.models.segments import use_segments
from ablora.models.staging import near
from ablora.spec import LABEL, BadInput, check

Dtype = Literal["float32", "bfloat16"]
EMBEDDED = ("pico",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """A base whose weights are part of the package (its card: models/pico/README.md)."""

    revision: ClassVar[int] = 1
    name: str = field(metadata=LABEL)
    dtype: Dtype

    def __post_init__(self) -> None:
        check(self.name in EMBEDDED, "name", self.name, f"one of {', '.join(EMBEDDED)}; others by model=local")

    @property
    def folder(self) -> Path:
        return Path(__file__).parent / self.name

    def fingerprint(self) -> str:
        return content_of(near(self.folder))


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """A base in a folder that transformers' `save_pretrained` wrote: config, tokenizer, safetensors."""

    revision: ClassVar[int] = 1
    name: str = field(metadata=LABEL)
    path: str | None = field(metadata=LABEL)
    dtype: Dtype

    def __post_init__(self) -> None:
        check(self.path is not None, "path", None, "the folder of a model, as save_pretrained writes it")
        there = Path(self.path or "").expanduser()
        check((there / "config.json").is_file(), "path", self.path, "a folder with config.json and *.safetensors")
        check(any(there.glob("*.safetensors")), "path", self.path, "a folder with *.safetensors (no pickled weights)")

    @property
    def folder(self) -> Path:
        return Path(self.path or "").expanduser()

    def fingerprint(self) -> str:
        return content_of(near(self.folder))


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base: frozen, in eval mode, attention cut by sequence where segment lengths are given."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        end = self.tokenizer.eos_token_id
        check(isinstance(end, int), "model", end, "a tokenizer with one end-of-text token")
        return cast(int, end)


def load(spec: Embedded | Local) -> Base:
    """The model, on the process's device, and its tokenizer; from local files alone, and remote code is never run."""
    disable_progress_bar()
    folder = near(spec.folder)
    dtype = getattr(torch, spec.dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, attn_implementation="sdpa"
    )
    torch.nn.Module.to(model.requires_grad_(False).eval(), device())
    use_segments(model)
    return Base(model, tokenizer)


@cache
def skeleton(folder: Path) -> PreTrainedModel:
    """The model's modules without weights (meta device): shapes for planning, in milliseconds."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise BadInput("model", str(folder), f"a causal language model that transformers knows ({error})") from error


@lru_cache(maxsize=8)
def without_weights(spec: Embedded | Local) -> Base:
    """The skeleton and its tokenizer: enough to tokenise data, without reading a weight."""
    return Base(skeleton(spec.folder), AutoTokenizer.from_pretrained(spec.folder, local_files_only=True))
