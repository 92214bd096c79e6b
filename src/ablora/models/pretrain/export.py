"""A training state as the folder that `AutoModelForCausalLM.from_pretrained` reads."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ablora.models.pretrain.recipe import Recipe
from ablora.models.pretrain.tokenizer import save_tokenizer
from ablora.models.pretrain.train import random_start


def load_state(checkpoint: Path | None, recipe: Recipe) -> LlamaForCausalLM:
    """The model of a checkpoint, or the random start."""
    model = random_start(recipe.seed)
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    return model


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """The model itself rounded to bfloat16, with its tokenizer: written aside, then each file renamed into place."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".aside-") as aside:
        model.bfloat16().save_pretrained(aside)
        save_tokenizer(tokenizer, Path(aside), model.config.max_position_embeddings)
        for path in sorted(Path(aside).iterdir()):
            shutil.copymode(__file__, path)
            os.replace(path, folder / path.name)
