"""The recipe's numbers: architecture, optimizers, schedule, mix. Nothing here runs."""

from dataclasses import dataclass

from transformers import LlamaConfig

from ablora.models.pretrain.tokenizer import VOCAB_TOKENS

# Epochs of each kind in one epoch of the mix: prose is 3 % of topics and 22 % of docstrings otherwise.
REPEATS = {"topic": 3, "docstrings": 2, "source": 1}

POSITIVE = ("steps", "window_tokens", "batch_windows", "micro_windows", "log_every_steps", "checkpoint_every_steps")


@dataclass(frozen=True)
class Recipe:
    """What the run depends on; `threads` and paths are not here, since they change rounding alone."""

    seed: int = 0
    steps: int = 2000
    decay_steps: int = 1000
    warmup_steps: int = 80
    window_tokens: int = 512
    batch_windows: int = 8
    micro_windows: int = 4  # eager attention: 7.1k tokens/s a core at 4, 5.8k at 8 (cache); sdpa: 5.9k
    adamw_lr: float = 2e-3
    matrix_decay: float = 0.1
    clip_norm: float = 1.0
    dtype: str = "bfloat16"
    log_every_steps: int = 50
    checkpoint_every_steps: int = 100

    def __post_init__(self) -> None:
        for field in POSITIVE:
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be 1 or more")
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype={self.dtype!r}: must be bfloat16 or float32")

    @property
    def step_tokens(self) -> int:
        """Tokens in one optimizer step."""
        return self.batch_windows * self.window_tokens


def learning_rate_factor(recipe: Recipe, step: int) -> float:
    """Warmup, stable, linear to zero over the last `decay_steps` (Hu et al. 2024, MiniCPM, section 4).

    The stable part does not know `steps`, so a checkpoint from before the decay may be continued to another length.
    """
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    return min(warm, (recipe.steps - step) / max(1, min(recipe.decay_steps, recipe.steps)))


def pico_config(context_tokens: int = 1024) -> LlamaConfig:
    """Llama, 4 layers of width 192, 3 heads of 64, MLP 512, tied embeddings of 2048 pieces: 2,164,416 parameters."""
    return LlamaConfig(
        vocab_size=VOCAB_TOKENS,
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        intermediate_size=512,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        attention_dropout=0.0,
    )
