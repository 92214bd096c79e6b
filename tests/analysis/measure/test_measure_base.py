"""Weights of a base, whichever way round they are stored."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ablora_analysis.measure.base_weights import BaseWeights
from tiny import SIZES


def test_a_conv1d_is_read_as_out_in(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(tmp_path)
    base = BaseWeights(tmp_path)
    for module in ("transformer.h.1.attn.c_proj", "transformer.h.0.mlp.c_fc"):
        stored = model.get_parameter(f"{module}.weight").detach()
        assert base.shape(module) == tuple(stored.mT.shape)
        assert torch.equal(base.weight(module), stored.mT)
