"""Tiny models with every kind of change that a checkpoint has to carry."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from trimtab import formats
from trimtab.engine import surgery

VOCABULARY = 97


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def filled(model: PreTrainedModel) -> PreTrainedModel:
    """Weights from a fixed generator, whatever the process drew before."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.dim() > 1 or "bias" in name:
                parameter.copy_(values(*parameter.shape, seed=number))
    return model.eval()


def llama(layers: int = 3, tied: bool = True, **kwargs) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
        eos_token_id=None,
        **kwargs,
    )
    return filled(LlamaForCausalLM(config))


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64)
    return filled(GPT2LMHeadModel(config))


def mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
    )
    return filled(MixtralForCausalLM(config))


def grouped(weight: Tensor, bits: int = 4, group_size: int = 16) -> formats.Grouped:
    """Round to nearest, symmetric."""
    groups = weight.detach().float().view(weight.shape[0], -1, group_size)
    scale = (groups.abs().amax(-1) / (2 ** (bits - 1) - 1)).half()
    centre = 2 ** (bits - 1)
    codes = (groups / scale.float().unsqueeze(-1)).round().clamp(-centre, centre - 1) + centre
    return formats.Grouped(codes.to(torch.uint8).view(weight.shape), scale, None, bits, group_size)


def chain(weight: Tensor) -> formats.Chain:
    u, s, vt = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    return formats.Chain((formats.Dense((u * s)[:, :8].half()), formats.Dense(vt[:8].half())))


def total(weight: Tensor) -> formats.Sum:
    coarse = grouped(weight, bits=2)
    return formats.Sum((coarse, chain(weight.detach() - coarse.dense())))


def drop_layer(model: LlamaForCausalLM, number: int) -> None:
    kept = [layer for at, layer in enumerate(model.model.layers) if at != number]
    model.model.layers = nn.ModuleList(kept)
    for at, layer in enumerate(kept):
        layer.self_attn.layer_idx = at
    model.config.num_hidden_layers = len(kept)


def narrow_mlp(model: LlamaForCausalLM, layer: int, width: int) -> None:
    base = f"model.layers.{layer}.mlp"
    mlp = model.get_submodule(base)
    for name in ("gate_proj", "up_proj"):
        surgery.place(model, f"{base}.{name}", formats.Dense(getattr(mlp, name).weight.detach()[:width]))
    surgery.place(model, f"{base}.down_proj", formats.Dense(mlp.down_proj.weight.detach()[:, :width]))


def pack(model: PreTrainedModel, path: str, how: Callable[[Tensor], formats.LinearWeight] = grouped) -> None:
    module = model.get_submodule(path)
    transposed = type(module).__name__ == "Conv1D"
    weight = module.weight.detach().T.contiguous() if transposed else module.weight.detach()
    surgery.place(model, path, how(weight), module.bias, transposed)


def untie(model: PreTrainedModel) -> None:
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone() * 1.5)


def everything() -> LlamaForCausalLM:
    """A dropped layer, a narrowed MLP, packed matrices of several formats, a new bias, an untied head."""
    model = llama()
    drop_layer(model, 1)
    narrow_mlp(model, 0, 48)
    for name, how in (("q", grouped), ("k", chain), ("v", total)):
        pack(model, f"model.layers.1.self_attn.{name}_proj", how)
    output = model.model.layers[0].self_attn.o_proj
    surgery.place(model, "model.layers.0.self_attn.o_proj", formats.Dense(output.weight.detach()), values(32, seed=9))
    untie(model)
    pack(model, "lm_head")
    return model


def packed_gpt2() -> GPT2LMHeadModel:
    model = gpt2()
    pack(model, "transformer.h.0.attn.c_attn")
    mlp = model.transformer.h[1].mlp
    fc, proj = mlp.c_fc, mlp.c_proj
    surgery.place(
        model, "transformer.h.1.mlp.c_fc", formats.Dense(fc.weight.detach().T[:40]), fc.bias.detach()[:40], transposed=True
    )
    surgery.place(model, "transformer.h.1.mlp.c_proj", formats.Dense(proj.weight.detach().T[:, :40]), proj.bias, transposed=True)
    return model


def packed_mixtral() -> MixtralForCausalLM:
    model = mixtral()
    path = "model.layers.0.mlp.experts.gate_up_proj"
    for index, matrix in enumerate(model.get_parameter(path).detach().clone()):
        if index != 1:  # one expert stays as it was
            surgery.place(model, path, grouped(matrix, bits=3 + index), index=index)
    return model


MODELS = {"llama": everything, "gpt2": packed_gpt2, "mixtral": packed_mixtral}


def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(tokens()).logits


def plain_but_changed() -> LlamaForCausalLM:
    """Fewer layers and other values, but every matrix plain and of the shape that the config says."""
    model = llama()
    drop_layer(model, 0)
    matrix = model.model.layers[0].mlp.up_proj.weight.detach()
    surgery.place(model, "model.layers.0.mlp.up_proj", formats.Dense(matrix * (matrix.abs() > 0.2)))
    return model
