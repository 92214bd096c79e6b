"""Any tuner of Hugging Face PEFT as a method: what a run says of it, checked against PEFT itself.

PEFT is an optional dependency and imported late; what makes a model of this is `tuned.py`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ablora.method.structure._base import Factors
from ablora.spec import LABEL, AdapterSpec, BadInput, check

if TYPE_CHECKING:
    from peft import PeftConfig

TARGETS = "target_modules"
MANAGED = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
)  # fmt: skip
"""Fields of every PEFT configuration that are no choice of the user's here."""
ALONE = "is trained on the loss that PEFT's own forward makes of labels; here the loss is the trainer's"
REFUSED = {
    "ADALORA": "prunes by a schedule of its own: use method=adalora",
    "CPT": ALONE,
    "LILY": "routes by the mean of all tokens of a batch, so that a sequence's output depends on the others",
    "SHADOW": ALONE,
    "MULTITASK_PROMPT_TUNING": "needs a task id with every sequence",
    "POLY": "needs a task id with every sequence",
    "XLORA": "mixes LoRA adapters that were trained before, given by path",
}
"""Tuners that cannot be a run's method, and why."""
PLACES_OF_ITS_OWN = ("ADAPTION_PROMPT", "BOTTLENECK", "IA3", "LN_TUNING", "TRAINABLE_TOKENS")
"""Tuners of which the places are a part: without `target_modules` they keep their own, whatever the run's targets."""
IN_THE_BASES_DTYPE = ("ADAPTION_PROMPT", "LN_TUNING")
"""Tuners that train numbers of the base's dtype; the others' are float32 whatever the base."""
NOT_HERE: Mapping[str, Mapping[str, str]] = {
    "LORA": {
        "alora_invocation_tokens": "depends on tokens of the prompt, which PEFT finds in its own forward",
        "arrow_config": "routes among adapters that were trained before",
        "kasa_config": ALONE,
        "monteclora_config": ALONE,
        "megatron_config": "is for Megatron's layers",
    },
    "ADAMSS": {"use_asa": "masks by a schedule of its own, with a callback of transformers' Trainer"},
    "BOFT": {
        "boft_n_butterfly_factor": "counts for nothing but 1 where PEFT's CUDA kernel is not built, and PEFT goes on"
    },
}
"""Fields that must stay at PEFT's default, by tuner."""
DEFAULTS = (None, False, 1)
"""What those fields are at."""
NEEDS_DATA = {"eva": "eva", "corda": "corda_ipm", "lora_ga": "lora_ga"}
"""Starts of PEFT's LoRA that look at data in a call of their own, and the preset to use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peft:
    """One of PEFT's tuners, by PEFT's own name and with PEFT's own fields.

    `adapter.targets` says where layers go, unless `config` has `target_modules` (null there: PEFT's default for the
    model's architecture). Dropout is what `config` says, and falls on the tuner's own layers alone: a preset may have
    `${adapter.dropout}` there. A number of `config` may be `${rank}`; the run's own `rank` is null. Runs as a pack of
    one.

    Differs: the tuner gets a copy of the model's modules, so that the base stays what it is whatever the tuner does to
        it; parameters start, and draw, from generators of the run's seed.
    """

    has_rank: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    revision: ClassVar[int] = 1
    name: str = field(metadata=LABEL)
    tuner: str
    """Such as IA3, VERA, BOFT, PROMPT_TUNING (docs/peft_tuners.md), and BOTTLENECK, which is ablora's own."""
    config: dict = field(metadata=LABEL)  # in the id by `fingerprint`: a field at its default is the field left out
    """Fields of the tuner's configuration class; those that are left out have PEFT's defaults."""

    def __post_init__(self) -> None:
        known = tuners()
        legal = f"one of {', '.join(sorted(known.keys() - REFUSED.keys()))}"
        check(self.tuner not in REFUSED, "tuner", self.tuner, f"{legal}; {self.tuner} {REFUSED.get(self.tuner)}")
        check(self.tuner in known, "tuner", self.tuner, legal)
        own = fields_of(known[self.tuner])
        for key, value in self.config.items():
            named = f"{known[self.tuner].__name__} has {', '.join(own)}"
            check(key in own, f"config.{key}", value, f"an unknown field; {named}")
        for key, reason in NOT_HERE.get(self.tuner, {}).items():
            value = self.config.get(key)
            check(value in DEFAULTS, f"config.{key}", value, f"left at its default: it {reason}")
        self._check_start()
        self.configured()

    def _check_start(self) -> None:
        start = self.config.get("init_lora_weights")
        if not isinstance(start, str):
            return
        if start in NEEDS_DATA:
            check(
                False, "config.init_lora_weights", start, f"no start that looks at data: use method={NEEDS_DATA[start]}"
            )
        legal = "a start that PEFT finds again when it loads the adapter: pissa, without niter"
        check("niter" not in start, "config.init_lora_weights", start, legal)
        check(start != "loftq", "config.init_lora_weights", start, "no start that quantises the base")

    def check_run(self, adapter: AdapterSpec, dtype: str) -> None:
        """Refuse a dtype of its layers that a tuner does not know, and a base in whose dtype small steps get lost."""
        legal = "float32: PEFT's tuners compute in the dtype of their own parameters"
        check(adapter.compute_dtype == "float32", "adapter.compute_dtype", adapter.compute_dtype, legal)
        legal = f"float32: PEFT's {self.tuner} trains numbers of the base's dtype, and that loses small steps"
        check(dtype == "float32" or self.tuner not in IN_THE_BASES_DTYPE, "model.dtype", dtype, legal)

    @property
    def split_matters(self) -> bool:
        """Random draws are made per micro-batch; which tuners draw in training is not listed anywhere."""
        return True

    @property
    def takes_targets(self) -> bool:
        """Whether the run's `adapter.targets` says where the layers go."""
        return TARGETS in fields_of(tuners()[self.tuner]) and not (
            TARGETS in self.config or self.tuner in PLACES_OF_ITS_OWN
        )

    def configured(self, targets: Sequence[str] | None = None) -> "PeftConfig":
        """PEFT's configuration; `targets`: names of the layers, where `takes_targets`."""
        own = dict(self.config) if targets is None else {**self.config, TARGETS: list(targets)}
        try:
            return tuners()[self.tuner](task_type="CAUSAL_LM", **own)
        except Exception as error:  # whatever PEFT's checks raise
            raise BadInput("config", self.config, f"what PEFT's {self.tuner} takes; it says: {error}") from error

    def fingerprint(self) -> dict[str, Any]:
        """Every field of the configuration as PEFT completes it, but for those that are None: a default that another
        version of PEFT has changed gives another run."""
        out = plain(self.configured())
        if TARGETS in self.config:
            out[TARGETS] = out.get(TARGETS, "PEFT's own")
        return out

    def groups(self, roles: Mapping[str, list[Parameter]], lr: float) -> list[dict[str, Any]]:
        return [{"params": parameters, "lr": lr} for parameters in roles.values()]

    def step(self, optimizer: torch.optim.Optimizer, modules: Mapping[str, Factors]) -> dict[str, float]:
        optimizer.step()
        return {}

    def after_step(self, modules: Mapping[str, Factors], state: dict[str, Tensor], step: int, max_steps: int) -> None:
        pass


def tuners() -> "dict[str, type[PeftConfig]]":
    """Configuration classes by PEFT's names; BadInput where PEFT is not installed."""
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise BadInput("tuner", "peft", f"a library that is here: pip install ablora[peft] ({error})") from error
    import ablora.method.bottleneck  # noqa: F401 -- makes itself known

    return {str(getattr(kind, "value", kind)): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def fields_of(config: "type[PeftConfig]") -> list[str]:
    return [f.name for f in fields(config) if f.name not in MANAGED and f.init]


def plain(config: "PeftConfig") -> dict[str, Any]:
    """A configuration's own fields that are not None, as JSON holds them; sets in order."""
    tree = {k: v for k, v in config.to_dict().items() if k not in MANAGED and v is not None}
    return json.loads(json.dumps(tree, default=lambda v: sorted(v) if isinstance(v, set) else str(v)))
