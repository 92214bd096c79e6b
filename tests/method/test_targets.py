"""Which layers are adapted, and adapters on the layers of other architectures."""

from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from torch import nn
from transformers.pytorch_utils import Conv1D

from ablora.data.encode import Encoded
from ablora.method.export import load_adapter, merged_weights, save_adapter
from ablora.method.factors import expert_products, residual_weight
from ablora.method.layer import out_in, weight_of
from ablora.method.structure._base import Unmergeable
from ablora.method.targets import find_targets
from ablora.models.segments import packed_logits, use_segments
from ablora.spec import BadInput
from ablora.spectra.statistics import Gradients
from ablora.train.calibration import collect
from presets import method, names
from tiny import SEGMENTS, SIZES, adapt, disturb, ids, llama, logits


class Family(NamedTuple):
    model: str
    config: str
    sizes: dict[str, Any]
    modules: int
    """Linear layers without the head."""


TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 16, "patch_size": 8}  # fmt: skip
CAUSAL = {
    "llama": Family("LlamaForCausalLM", "LlamaConfig", SIZES, 14),
    "mistral": Family("MistralForCausalLM", "MistralConfig", SIZES, 14),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", SIZES, 14),
    "gemma": Family("GemmaForCausalLM", "GemmaConfig", SIZES | {"head_dim": 8}, 14),
    "gemma3": Family("Gemma3ForCausalLM", "Gemma3TextConfig", SIZES | {"head_dim": 8}, 14),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", SIZES | TOKENS, 8),
    "gpt_neox": Family("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZES, 8),
}
SEEING = {
    "bert": Family("BertModel", "BertConfig", SIZES, 13),
    "roberta": Family("RobertaForMaskedLM", "RobertaConfig", SIZES, 13),
    "vit": Family("ViTModel", "ViTConfig", VISION, 13),
    "clip": Family("CLIPVisionModel", "CLIPVisionConfig", VISION, 12),
}


def made(family: Family, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    """With weights of size 1/sqrt(n), and biases that are not zero."""
    config = getattr(hf, family.config)(**family.sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(hf, family.model)(config).to(dtype).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.mul_(8)
                elif name.endswith("bias"):
                    parameter.normal_()
    return model


def causal(name: str, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    model = made(CAUSAL[name], dtype)
    use_segments(model)
    return model


def gpt2(dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    return causal("gpt2", dtype)


def started_at_base(preset: str):
    """The preset; a mixture with all of its experts chosen."""
    return method(preset, "structure.top_k=8") if preset == "goat" else method(preset)


def zeroed_router(adapted) -> None:
    """A started mixture is the base in expectation over routers; with equal gates, at every token."""
    adapted.write(0, {k: torch.zeros_like(p) for k, p in adapted.parameters(0).items() if k.endswith("router")})


@pytest.mark.parametrize("preset", ["lora", "pissa", "goat"])
@pytest.mark.parametrize("family", CAUSAL)
def test_step_0_is_the_base_and_a_step_lowers_the_loss(family, preset):
    model = causal(family)
    before = logits(model)
    chosen = started_at_base(preset)
    adapted = adapt(model, chosen)
    zeroed_router(adapted)
    assert len(adapted.modules) == CAUSAL[family].modules
    assert torch.equal(logits(model), before)
    optimizer = torch.optim.SGD(chosen.update.groups(adapted.roles(0), 1e-3), lr=1e-3)
    losses = []
    for _ in range(2):
        out = packed_logits(model, ids(), SEGMENTS)[0, :-1]
        loss = nn.functional.cross_entropy(out, ids()[0, 1:])
        loss.backward()
        adapted.hand_out_gradients()
        optimizer.step()
        adapted.clear_gradients()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    with adapted.disabled():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("preset", ["lora", "pissa", "dora", "goat"])
def test_a_conv1d_is_the_base_at_step_0_in_bfloat16(preset):
    model = gpt2(torch.bfloat16)
    before = logits(model)
    zeroed_router(adapt(model, started_at_base(preset)))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("preset", ["lora", "pissa", "goat"])
@pytest.mark.parametrize("family", SEEING)
def test_encoders_and_vision_models_are_the_base_at_step_0(family, preset):
    model = made(SEEING[family])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    given = {"pixel_values": pixels} if "Vi" in SEEING[family].model else {"input_ids": ids(2)}
    with torch.no_grad():
        before = model(**given)[0]
        adapted = adapt(model, started_at_base(preset))
        zeroed_router(adapted)
        assert len(adapted.modules) == SEEING[family].modules
        assert torch.equal(model(**given)[0], before)
        disturb(adapted)
        assert not torch.equal(model(**given)[0], before)


@pytest.mark.parametrize("preset", ["lora", "pissa", "goat"])
def test_an_image_and_text_model_is_the_base_at_step_0(preset):
    towers: dict[str, Any] = {"vision_config": hf.CLIPVisionConfig(**SEEING["clip"].sizes)}
    towers["text_config"] = hf.LlamaConfig(**CAUSAL["llama"].sizes)
    config = hf.LlavaConfig(**towers, image_token_index=96, vision_feature_layer=-1)
    torch.manual_seed(0)
    model = hf.LlavaForConditionalGeneration(config).eval()
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    given = {"input_ids": torch.tensor([[5, 96, 96, 96, 96, 7, 9]]), "pixel_values": pixels}
    with torch.no_grad():
        before = model(**given).logits
        adapted = adapt(model, started_at_base(preset), targets=r"re:.*language_model.*_proj")
        zeroed_router(adapted)
        assert len(adapted.modules) == 14
        assert torch.equal(model(**given).logits, before)
    adapted.detach()
    everything = find_targets(model, "all-linear")
    assert len(everything) == 14 + 12 + 2
    assert "lm_head" not in everything


@pytest.mark.parametrize("preset", names())
def test_a_conv1d_is_the_linear_layer_of_its_transpose(preset):
    """In float64, outputs of GPT-2 with Conv1D and with nn.Linear in its place are equal after a disturbance."""
    stored, upright = gpt2(torch.float64), gpt2(torch.float64)
    for name, layer in find_targets(stored, "all-linear").items():
        assert isinstance(layer, Conv1D)
        linear = nn.Linear(layer.nx, layer.nf, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(layer.weight.mT)
            linear.bias.copy_(layer.bias)
        upright.set_submodule(name, linear)
    adapted = [adapt(model, method(preset), compute_dtype="float64") for model in (stored, upright)]
    other = {**adapted[1].parameters(0), **adapted[1].constants(0)}
    for name, tensor in {**adapted[0].parameters(0), **adapted[0].constants(0)}.items():
        torch.testing.assert_close(tensor.abs(), other[name].abs(), rtol=1e-4, atol=1e-6)
    adapted[0].write(0, {name: tensor.detach() for name, tensor in other.items()})
    for one in adapted:
        disturb(one)
    torch.testing.assert_close(logits(stored), logits(upright), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("preset", ["lora", "pissa", "dora", "goat"])
def test_a_conv1d_is_merged_as_it_is_stored_and_exported(preset, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    model = gpt2()
    adapted = adapt(model, method(preset))
    disturb(adapted)
    save_adapter(adapted, 0, tmp_path)
    fresh = gpt2()
    load_adapter(adapt(fresh, method(preset), seed=1), 0, tmp_path)
    assert torch.equal(logits(fresh), logits(model))
    if preset == "goat":
        with pytest.raises(Unmergeable):
            merged_weights(adapted, 0)
        return
    merged = gpt2()
    with torch.no_grad():
        for name, weight in merged_weights(adapted, 0).items():
            stored = merged.get_parameter(f"{name}.weight")
            assert weight.shape == stored.shape
            stored.copy_(weight)
        torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=2e-5)
        loaded = peft.PeftModel.from_pretrained(gpt2(), tmp_path)
        out = torch.cat([loaded(input_ids=part).logits for part in ids().split(SEGMENTS[0], dim=1)], dim=1)
    torch.testing.assert_close(out, logits(model), rtol=1e-5, atol=2e-5)


def test_a_conv1d_keeps_one_weight_in_memory():
    layer = Conv1D(6, 4)
    assert out_in(layer) == tuple(weight_of(layer).shape) == (6, 4)
    assert weight_of(layer).data_ptr() == layer.weight.data_ptr()
    adapted = adapt(gpt2(), method("pissa"), targets="c_attn")
    for name, layer in adapted.modules.items():
        whole = residual_weight(adapted, 0, name) + expert_products(adapted, 0, name)[0]
        torch.testing.assert_close(whole, layer.base.weight.mT)


def test_a_statistic_of_gradients_lies_as_the_weight_is_meant():
    model = gpt2()
    layer = find_targets(model, "attn.c_proj")["transformer.h.1.attn.c_proj"]
    item = Encoded((3, 4, 5), 2, "0")
    found = collect(model, {"c": layer}, Gradients(batch=1), [item]).of("c")["gradient"]
    layer.weight.requires_grad_(True)
    loss = nn.functional.cross_entropy(model(input_ids=torch.tensor([[3, 4]])).logits[0, 1:], torch.tensor([5]))
    (expected,) = torch.autograd.grad(loss, layer.weight)
    torch.testing.assert_close(found.float(), expected.mT)
    assert not torch.allclose(expected, expected.mT), "or the direction would not show"


def test_fused_projections_are_one_module():
    for name, entry, shape in (("gpt2", "c_attn", (96, 32)), ("gpt_neox", "query_key_value", (96, 32))):
        found = find_targets(causal(name), entry)
        assert len(found) == 2
        assert {out_in(layer) for layer in found.values()} == {shape}


def test_a_regular_expression_is_for_whole_names():
    model = llama()
    assert list(find_targets(model, r"re:.*\.1\.self_attn\.[qv]_proj")) == [
        "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj",
    ]  # fmt: skip
    assert len(find_targets(model, r"re:model\.layers\.0.*")) == 7, "norms and containers are passed over"
    assert len(find_targets(model, ("down_proj", r"re:.*layers\.0.*mlp.*"))) == 4
    with pytest.raises(BadInput, match=r"targets='re:q_proj'.*\(the first is model.layers.0.self_attn.q_proj\)"):
        find_targets(model, "re:q_proj")
    with pytest.raises(BadInput, match=r"re:\(q.*a regular expression \(missing \)"):
        find_targets(model, "re:(q")


@pytest.mark.parametrize(
    ("family", "entry", "said"),
    [
        ("llama", "lm_head", "lm_head is the output head"),
        ("llama", "embed_tokens", "model.embed_tokens is an embedding"),
        ("llama", "re:.*", "model.embed_tokens is an embedding"),
        ("gpt2", "lm_head", "lm_head is the output head, tied to transformer.wte"),
        ("gpt2", "wpe", "transformer.wpe is an embedding"),
        ("llama", "norm", "the end of a module's name.*down_proj, gate_proj"),
        ("llama", "proj", "the end of a module's name.*down_proj, gate_proj"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(family, entry, said):
    with pytest.raises(BadInput, match=rf"adapter.targets=.*{said}"):
        find_targets(causal(family), ("c_proj", entry) if family == "gpt2" else entry)


def test_layers_that_torch_does_not_call_are_not_adapted():
    model = nn.ModuleDict({"mixing": nn.MultiheadAttention(8, 2), "out": nn.Linear(8, 8), "cut": nn.Conv2d(3, 8, 2)})
    assert list(find_targets(model, "all-linear")) == ["out"]
    with pytest.raises(BadInput, match=r"mixing.out_proj is a layer whose weight torch's attention reads"):
        find_targets(model, "out_proj")
    with pytest.raises(BadInput, match=r"cut is a Conv2d"):
        find_targets(model, ("out", "cut"))
