"""Adapters that real PEFT makes and saves, of every kind that is read here, with factors moved as training would."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import (
    AdaLoraConfig,
    EvaConfig,
    LoraConfig,
    LoraGAConfig,
    PeftModel,
    get_peft_model,
    initialize_lora_eva_weights,
    preprocess_loraga,
)
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor
from transformers import PreTrainedModel

from tiny import ids, llama

Ready = Callable[[PreTrainedModel, Any], PeftModel]
TARGETS = ["q_proj", "down_proj"]


class Made(NamedTuple):
    """How one kind of adapter comes about."""

    options: dict[str, Any]
    ready: Ready = get_peft_model  # type: ignore[assignment]
    convert: bool = False
    config: type = LoraConfig
    kind: str = "lora"


def _batches() -> Iterator[dict[str, Tensor]]:
    for row in ids(4):
        yield {"input_ids": row[None, :24], "labels": row[None, :24], "attention_mask": torch.ones(1, 24)}


def _eva(model: PreTrainedModel, config: Any) -> PeftModel:
    tuned = get_peft_model(model, config)
    data = [{"input_ids": row[None, :24], "attention_mask": torch.ones(1, 24)} for row in ids(4)]
    initialize_lora_eva_weights(tuned, data, show_progress_bar=False)
    return tuned  # type: ignore[return-value]


def _corda(model: PreTrainedModel, config: Any) -> PeftModel:
    def run() -> None:
        with torch.no_grad():
            for row in ids(4):
                model(input_ids=row[None, :24])

    preprocess_corda(model, config, run_model=run)
    return get_peft_model(model, config)  # type: ignore[return-value]


def _lora_ga(model: PreTrainedModel, config: Any) -> PeftModel:
    def step() -> None:
        for batch in _batches():
            model(**batch).loss.backward()

    model.requires_grad_(True)
    preprocess_loraga(model, config, step)
    return get_peft_model(model, config)  # type: ignore[return-value]


def _pruned(model: PreTrainedModel, config: Any) -> PeftModel:
    """AdaLoRA behind its last mask: ranks differ by module."""
    tuned: Any = get_peft_model(model, config)
    moved(tuned)
    for batch in _batches():
        tuned(**batch).loss.backward()
    tuned.base_model.update_and_allocate(0)
    tuned.base_model.update_and_allocate(config.total_step)
    tuned.zero_grad()
    return tuned


ADALORA = {"init_r": 4, "target_r": 2, "total_step": 10, "task_type": "CAUSAL_LM"}
MADE = {
    "lora": Made({}),
    "rslora": Made({"use_rslora": True}),
    "gaussian": Made({"init_lora_weights": "gaussian"}),
    "orthogonal": Made({"init_lora_weights": "orthogonal"}),
    "mica": Made({"init_lora_weights": "mica"}),
    "random": Made({"init_lora_weights": False}),
    "patterns": Made(
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3}, "alpha_pattern": {r"layers\.0\..*q_proj": 40}}
    ),
    "rs_alphas": Made({"alpha_pattern": {r"model\.layers\.0\..*q_proj": 40}, "use_rslora": True}),
    "layers": Made({"layers_to_transform": [1], "exclude_modules": ["layers.1.mlp.down_proj"]}),
    "expression": Made({"target_modules": r".*\.[01]\.self_attn\.[qv]_proj"}),
    "pissa": Made({"init_lora_weights": "pissa"}),
    "pissa_converted": Made({"init_lora_weights": "pissa"}, convert=True),
    "rspissa_converted": Made({"init_lora_weights": "pissa", "use_rslora": True}, convert=True),
    "olora": Made({"init_lora_weights": "olora"}),
    "olora_converted": Made({"init_lora_weights": "olora"}, convert=True),
    "corda_converted": Made({"init_lora_weights": "corda", "corda_config": CordaConfig()}, _corda, convert=True),
    "lora_ga_converted": Made(
        {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}, _lora_ga, convert=True
    ),
    "eva": Made({"init_lora_weights": "eva", "eva_config": EvaConfig(rho=2.0)}, _eva),
    "dora": Made({"use_dora": True}, kind="dora"),
    "rsdora": Made({"use_dora": True, "use_rslora": True}, kind="dora"),
    "dora_pissa": Made({"use_dora": True, "init_lora_weights": "pissa"}, kind="dora"),
    "adalora": Made(ADALORA, config=AdaLoraConfig, kind="adalora"),
    "adalora_pruned": Made(ADALORA, _pruned, config=AdaLoraConfig, kind="adalora"),
}


def moved(model: Any) -> None:
    """Every factor moved at random, as training would."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))


def make(name: str, folder: Path, base: Callable[[], PreTrainedModel] = llama, **options: Any) -> Path:
    """A folder that PEFT saved."""
    made = MADE[name]
    own = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **made.options, **options}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model: Any = made.ready(base(), made.config(**own))
        converted = {}
        if made.convert:
            config = model.peft_config["default"]
            config.init_lora_weights, start = True, config.init_lora_weights
            model.save_pretrained(folder / "initial")
            config.init_lora_weights = start
            converted = {"path_initial_model_for_weight_conversion": str(folder / "initial")}
        if made.ready is not _pruned:
            moved(model)
        model.save_pretrained(folder / "saved", **converted)
    return folder / "saved"


def loaded(folder: Path, base: Callable[[], PreTrainedModel] = llama, **options: Any) -> Any:
    """The adapter as PEFT loads it onto a fresh base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base(), str(folder), **options)
