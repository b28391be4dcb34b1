"""Run a hadal checkpoint through Hugging Face transformers (DeepseekV4ForCausalLM).

An implementation of DeepSeek-V4 that shares no code with hadal, for comparison with
`hadal logits --numerics exact`: weights dequantised exactly to float32, no quantisation
simulation, one prefill without a cache, on the CPU. Meant for tiny checkpoints: everything is
held in float32.

    python tools/transformers_logits.py MODEL_DIR --tokens FILE --out FILE

reads a JSON array of token ids and writes safetensors with `logits` F32 [tokens, vocab], as
`hadal logits` does. tools/oracle_requirements.txt says what to install; docs/exactness.md says
what agrees and what does not.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4IndexerScorer

FP8_BLOCK = 128  # FP8 weights: one scale per 128 x 128 block
FP4_BLOCK = 32  # FP4 weights: one scale per 32 values along the input dimension
E2M1 = (
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
    -0.0,
    -0.5,
    -1.0,
    -1.5,
    -2.0,
    -3.0,
    -4.0,
    -6.0,
)

CSA_RATIO = 4
CSA = "compressed_sparse_attention"
HCA = "heavily_compressed_attention"

# Published tensor name -> name in transformers' state dict. Block names are given below
# `layers.L.` and `model.layers.L.`; routed experts, which transformers stores fused, are in slot().
TOP_LEVEL = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}
BLOCK = {
    "hc_attn_fn": "attn_hc.fn",
    "hc_attn_base": "attn_hc.base",
    "hc_attn_scale": "attn_hc.scale",
    "hc_ffn_fn": "ffn_hc.fn",
    "hc_ffn_base": "ffn_hc.base",
    "hc_ffn_scale": "ffn_hc.scale",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.compressor.ape": "self_attn.compressor.position_bias",
    "attn.compressor.wkv.weight": "self_attn.compressor.kv_proj.weight",
    "attn.compressor.wgate.weight": "self_attn.compressor.gate_proj.weight",
    "attn.compressor.norm.weight": "self_attn.compressor.kv_norm.weight",
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "attn.indexer.compressor.ape": "self_attn.compressor.indexer.position_bias",
    "attn.indexer.compressor.wkv.weight": "self_attn.compressor.indexer.kv_proj.weight",
    "attn.indexer.compressor.wgate.weight": "self_attn.compressor.indexer.gate_proj.weight",
    "attn.indexer.compressor.norm.weight": "self_attn.compressor.indexer.kv_norm.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
}
BLOCK_NAME = re.compile(r"layers\.(\d+)\.(.+)")
EXPERT_NAME = re.compile(r"ffn\.experts\.(\d+)\.w([123])\.weight")


def slot(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The part of transformers' tensors that holds the published tensor `name`, as a view.

    `state` maps transformers' names to tensors: a state dict, or gradients under the same names.
    Routed experts are slices of `gate_up_proj` [E, 2I, d] (w1 above w3) and `down_proj` [E, d, I].
    Raises KeyError for a name that this model does not have.
    """
    if name in TOP_LEVEL:
        return state[TOP_LEVEL[name]]
    block = BLOCK_NAME.fullmatch(name)
    if block is None:
        raise KeyError(name)
    prefix = f"model.layers.{block[1]}."
    expert = EXPERT_NAME.fullmatch(block[2])
    if expert is None:
        return state[prefix + BLOCK[block[2]]]
    index = int(expert[1])
    if expert[2] == "2":
        return state[prefix + "mlp.experts.down_proj"][index]
    gate, up = state[prefix + "mlp.experts.gate_up_proj"][index].chunk(2)
    return gate if expert[2] == "1" else up


def dequantise(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The exact float32 value of an FP8 or packed FP4 weight [out, in] under its UE8M0 scale.

    Every product of an E4M3 or E2M1 value and a power of two in range is a float32 number, so
    nothing is rounded.
    """
    factor = scale.float()
    if weight.dtype == torch.float8_e4m3fn:
        values = weight.float()
        factor = factor.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    else:  # two E2M1 codes a byte, even input index in the low nibble
        codes = weight.view(torch.uint8).long()
        values = torch.tensor(E2M1)[torch.stack((codes & 15, codes >> 4), -1)].flatten(1)
        factor = factor.repeat_interleave(FP4_BLOCK, 1)
    return values * factor[: values.shape[0], : values.shape[1]]


def read_checkpoint(model_dir: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and value of every weight of the main model, dequantised to float32.

    Integer tables keep their type. MTP blocks, which transformers does not have, are left out.
    """
    files = sorted(model_dir.glob("*.safetensors"))
    index = model_dir / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        files = [model_dir / name for name in sorted(set(weight_map.values()))]
    elif (model_dir / "model.safetensors").exists():
        files = [model_dir / "model.safetensors"]
    shards = [safe_open(file, framework="pt") for file in files]
    home = {name: shard for shard in shards for name in shard.keys()}  # noqa: SIM118
    for name, shard in home.items():
        if name.endswith(".scale") or name.startswith("mtp."):
            continue
        tensor = shard.get_tensor(name)
        scale_name = name.removesuffix("weight") + "scale"
        if scale_name in home:
            yield name, dequantise(tensor, home[scale_name].get_tensor(scale_name))
        else:
            yield name, tensor.float() if tensor.is_floating_point() else tensor


def build_config(model_dir: Path) -> DeepseekV4Config:
    """transformers' configuration for a published config.json.

    Raises ValueError for what hadal can run and transformers cannot express.
    """
    fields: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
    fields.pop("quantization_config", None)  # the weights arrive dequantised
    if fields.get("n_shared_experts", 1) != 1:
        raise ValueError("transformers has exactly one shared expert")
    if not (fields.get("rope_scaling") or {}).get("original_max_position_embeddings"):
        fields.pop("rope_scaling", None)  # no YaRN
    ratios = fields.pop("compress_ratios", None)
    if ratios is not None:
        ratios = ratios[: fields["num_hidden_layers"]]
        hca = {ratio for ratio in ratios if ratio not in (0, CSA_RATIO)}
        if len(hca) > 1:
            raise ValueError(f"transformers has one ratio for all HCA layers, not {sorted(hca)}")
        kinds = {0: "sliding_attention", CSA_RATIO: CSA}
        fields["layer_types"] = [kinds.get(ratio, HCA) for ratio in ratios]
        fields["compress_rates"] = {CSA: CSA_RATIO, HCA: hca.pop() if hca else 128}
    return DeepseekV4Config.from_dict(fields)


def rank_scores(
    _scorer: torch.nn.Module, _inputs: tuple[Any, ...], scores: torch.Tensor
) -> torch.Tensor:
    """A forward hook that replaces index scores [B, S, T] by minus their rank, a strict order.

    Of equal scores the lower row ranks higher. The indexer uses its scores for nothing but the
    top-k, so this decides ties and changes nothing else.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return -order.argsort(dim=-1).to(scores.dtype)


def load_model(model_dir: str | Path, *, break_ties: bool = True) -> DeepseekV4ForCausalLM:
    """The checkpoint as a float32 transformers model in evaluation mode, eager throughout.

    With `break_ties` equal index scores are taken lowest row first, as hadal takes them;
    torch.topk, which transformers and the official code use, promises no order. Ties are common
    in freshly initialised models, where a row that all heads of the indexer reject scores
    exactly 0.

    Raises ValueError for a tensor without a place in the model, a shape that does not fit or a
    parameter that no tensor filled.
    """
    model_dir = Path(model_dir)
    model = DeepseekV4ForCausalLM._from_config(
        build_config(model_dir),
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    state = model.state_dict()
    missing = sum(tensor.numel() for tensor in state.values())
    for name, value in read_checkpoint(model_dir):
        try:
            place = slot(state, name)
        except KeyError:
            raise ValueError(f"{name}: transformers has no place for this tensor") from None
        if place.shape != value.shape:
            raise ValueError(f"{name}: shape {list(value.shape)}, not {list(place.shape)}")
        place.copy_(value)
        missing -= value.numel()
    if missing != 0:
        raise ValueError(f"{model_dir}: {missing} of transformers' parameters have no tensor")
    if break_ties:
        for module in model.modules():
            if isinstance(module, DeepseekV4IndexerScorer):
                module.register_forward_hook(rank_scores)
    return model.eval()


@torch.inference_mode()
def prefill_logits(model: DeepseekV4ForCausalLM, tokens: Sequence[int]) -> torch.Tensor:
    """Logits [tokens, vocab] of one prefill without a cache."""
    return model(torch.tensor([list(tokens)]), use_cache=False).logits[0]


def main() -> None:
    """Run the checkpoint on the tokens and write the logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--tokens", type=Path, required=True, help="JSON array of token ids")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    args = parser.parse_args()
    tokens = json.loads(args.tokens.read_text())
    logits = prefill_logits(load_model(args.model_dir), tokens)
    save_file({"logits": logits.contiguous()}, args.out)


if __name__ == "__main__":
    main()
