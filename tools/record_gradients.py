#!/usr/bin/env python3
"""Records the gradients of a tiny model, by PyTorch's autograd, for tests/train/objective_test.cpp.

The model is written here a second time, after the report and docs/architecture.md and sharing no code with
hadal: float64 on the CPU, plain operations, no quantisation, whole sequences. It has every kind of block
(sliding, CSA, HCA; hash-routed and learned experts; MTP) and every loss.

    python tools/record_gradients.py [DIRECTORY]          (tests/data/gradients)

writes a checkpoint (config.json, model.safetensors: BF16 numbers, which are what float64 computes with) and
gradients.safetensors: the batch and, for the dense and for the sparse stage, the losses and the gradient of
every parameter, in float32. tools/oracle_requirements.txt says what to install.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 37,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 80,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 16,
    "o_groups": 2,
    "o_lora_rank": 12,
    "sliding_window": 6,
    "compress_ratios": [0, 4, 8, 0],
    "index_n_heads": 2,
    "index_head_dim": 32,
    "index_topk": 3,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 8,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "num_hash_layers": 1,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "swiglu_limit": 1.0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SEQUENCES, LENGTH = 2, 27
MTP_WEIGHT, BALANCE_WEIGHT, INDEX_WEIGHT = 0.3, 0.1, 0.7

Tensors = dict[str, torch.Tensor]


def shapes(c: dict) -> Iterator[tuple[str, list[int]]]:
    """Every parameter but the hash tables."""
    d, n = c["hidden_size"], c["hc_mult"]

    def hc_head(p: str) -> Iterator[tuple[str, list[int]]]:
        yield p + "hc_head_fn", [n, n * d]
        yield p + "hc_head_base", [n]
        yield p + "hc_head_scale", [1]

    def compressor(p: str, ratio: int, dim: int) -> Iterator[tuple[str, list[int]]]:
        wide = (2 if ratio == 4 else 1) * dim
        yield p + "ape", [ratio, wide]
        yield p + "wkv.weight", [wide, d]
        yield p + "wgate.weight", [wide, d]
        yield p + "norm.weight", [dim]

    def block(p: str, index: int) -> Iterator[tuple[str, list[int]]]:
        for mixer in ("hc_attn", "hc_ffn"):
            yield f"{p}{mixer}_fn", [(2 + n) * n, n * d]
            yield f"{p}{mixer}_base", [(2 + n) * n]
            yield f"{p}{mixer}_scale", [3]
        yield p + "attn_norm.weight", [d]
        yield p + "ffn_norm.weight", [d]
        heads, dim, lora = c["num_attention_heads"], c["head_dim"], c["q_lora_rank"]
        rank = c["o_groups"] * c["o_lora_rank"]
        yield p + "attn.attn_sink", [heads]
        yield p + "attn.wq_a.weight", [lora, d]
        yield p + "attn.q_norm.weight", [lora]
        yield p + "attn.wq_b.weight", [heads * dim, lora]
        yield p + "attn.wkv.weight", [dim, d]
        yield p + "attn.kv_norm.weight", [dim]
        yield p + "attn.wo_a.weight", [rank, heads * dim // c["o_groups"]]
        yield p + "attn.wo_b.weight", [d, rank]
        ratio = c["compress_ratios"][index]
        if ratio:
            yield from compressor(p + "attn.compressor.", ratio, dim)
        if ratio == 4:
            yield p + "attn.indexer.wq_b.weight", [c["index_n_heads"] * c["index_head_dim"], lora]
            yield p + "attn.indexer.weights_proj.weight", [c["index_n_heads"], d]
            yield from compressor(p + "attn.indexer.compressor.", ratio, c["index_head_dim"])
        yield p + "ffn.gate.weight", [c["n_routed_experts"], d]
        if index >= c["num_hash_layers"]:
            yield p + "ffn.gate.bias", [c["n_routed_experts"]]
        inter = c["moe_intermediate_size"]
        for e in [f"experts.{i}" for i in range(c["n_routed_experts"])] + ["shared_experts"]:
            yield f"{p}ffn.{e}.w1.weight", [inter, d]
            yield f"{p}ffn.{e}.w2.weight", [d, inter]
            yield f"{p}ffn.{e}.w3.weight", [inter, d]

    yield "embed.weight", [c["vocab_size"], d]
    yield "head.weight", [c["vocab_size"], d]
    yield "norm.weight", [d]
    yield from hc_head("")
    for i in range(c["num_hidden_layers"]):
        yield from block(f"layers.{i}.", i)
    yield "mtp.0.e_proj.weight", [d, d]
    yield "mtp.0.h_proj.weight", [d, d]
    yield "mtp.0.enorm.weight", [d]
    yield "mtp.0.hnorm.weight", [d]
    yield "mtp.0.norm.weight", [d]
    yield from hc_head("mtp.0.")
    yield from block("mtp.0.", c["num_hidden_layers"])


def draw(name: str, shape: list[int], rng: torch.Generator) -> torch.Tensor:
    """Values that put weight on every path: no gate shut, no softmax flat."""
    x = torch.randn(shape, generator=rng, dtype=torch.float32)
    if name.endswith("norm.weight"):
        return 1 + 0.2 * x
    if name.endswith("_scale"):
        return 0.7 + 0.2 * x
    if name.endswith(("_base", "ape", "attn_sink")):
        return 0.5 * x
    if name.endswith("gate.bias"):
        return 0.1 * x
    if name == "embed.weight":
        return x
    if name.endswith(("w1.weight", "w3.weight")):  # wide enough for the clamps to act
        return 1.5 * x / math.sqrt(shape[-1])
    return x / math.sqrt(shape[-1])


def frequencies(c: dict, compressed: bool) -> np.ndarray:
    """In float32, as the official code has them."""
    r, base = c["qk_rope_head_dim"], c["compress_rope_theta" if compressed else "rope_theta"]
    exponents = np.arange(0, r, 2, dtype=np.float32) / np.float32(r)
    freqs = np.float32(1) / np.power(float(base), exponents.astype(np.float64)).astype(np.float32)
    if not compressed:
        return freqs
    yarn = c["rope_scaling"]

    def dim(rotations: float) -> float:
        turns = yarn["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return r * math.log(turns) / (2 * math.log(base))

    low = max(0.0, math.floor(dim(yarn["beta_fast"])))
    high = min(r - 1.0, math.ceil(dim(yarn["beta_slow"])))
    if low == high:
        high += 0.001
    ramp = (np.arange(r // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
    return freqs / np.float32(yarn["factor"]) * (np.float32(1) - keep) + freqs * keep


class TinyModel:
    """The model and its losses; weights by published name."""

    def __init__(self, config: dict, weights: Tensors, tables: Tensors, sparse: bool) -> None:
        self.c, self.w, self.tables, self.sparse = config, weights, tables, sparse
        self.balance = torch.zeros((), dtype=torch.float64)
        self.index_kl = torch.zeros((), dtype=torch.float64)

    def rms(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return x if weight is None else x * weight

    def rope(self, x: torch.Tensor, positions: torch.Tensor, compressed: bool, sign: int = 1) -> torch.Tensor:
        """x: [B, T, heads, dim]; rotates pairs (2i, 2i+1) of the last r entries."""
        r = self.c["qk_rope_head_dim"]
        angles = positions.numpy().astype(np.float32)[:, None] * frequencies(self.c, compressed)[None]
        angle = torch.from_numpy(angles.astype(np.float64))[None, :, None]
        # hadal keeps cosines and sines in float32.
        cos, sin = angle.cos().float().double(), sign * angle.sin().float().double()
        head, tail = x[..., :-r], x[..., -r:]
        even, odd = tail[..., 0::2], tail[..., 1::2]
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        return torch.cat((head, rotated), -1)

    def hadamard(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.ones(1, 1, dtype=torch.float64)
        while h.shape[0] < x.shape[-1]:
            h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
        return x @ h * x.shape[-1] ** -0.5

    def hc_pre(self, x: torch.Tensor, p: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n, eps = self.c["hc_mult"], self.c["hc_eps"]
        v = self.rms(x.flatten(-2), None)
        mix = v @ self.w[p + "_fn"].T
        scale, base = self.w[p + "_scale"], self.w[p + "_base"]
        pre = torch.sigmoid(mix[..., :n] * scale[0] + base[:n]) + eps
        post = 2 * torch.sigmoid(mix[..., n : 2 * n] * scale[1] + base[n : 2 * n])
        comb = (mix[..., 2 * n :] * scale[2] + base[2 * n :]).unflatten(-1, (n, n))
        comb = comb.softmax(-1) + eps
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
        for _ in range(self.c["hc_sinkhorn_iters"] - 1):
            comb = comb / (comb.sum(-1, keepdim=True) + eps)
            comb = comb / (comb.sum(-2, keepdim=True) + eps)
        return torch.einsum("bti,btid->btd", pre, x), post, comb

    def hc_post(self, y: torch.Tensor, x: torch.Tensor, post: torch.Tensor, comb: torch.Tensor) -> torch.Tensor:
        return post[..., None] * y[:, :, None] + torch.einsum("btji,btjd->btid", comb, x)

    def hc_head(self, x: torch.Tensor, p: str) -> torch.Tensor:
        mix = self.rms(x.flatten(-2), None) @ self.w[p + "hc_head_fn"].T
        pre = torch.sigmoid(mix * self.w[p + "hc_head_scale"] + self.w[p + "hc_head_base"]) + self.c["hc_eps"]
        return torch.einsum("bti,btid->btd", pre, x)

    def compressor(self, x: torch.Tensor, p: str, m: int, dim: int) -> torch.Tensor:
        batch, length, _ = x.shape
        blocks = length // m
        k = x @ self.w[p + "wkv.weight"].T
        g = x @ self.w[p + "wgate.weight"].T + self.w[p + "ape"][torch.arange(length) % m]
        k = k[:, : blocks * m].unflatten(1, (blocks, m))
        g = g[:, : blocks * m].unflatten(1, (blocks, m))
        if m == 4:
            # The first half of the channels counts for the next block's row.
            none = torch.zeros(batch, 1, m, dim, dtype=k.dtype)
            before_k = torch.cat((none, k[:, :-1, :, :dim]), 1)
            before_g = torch.cat((none - math.inf, g[:, :-1, :, :dim]), 1)
            k = torch.cat((before_k, k[..., dim:]), 2)
            g = torch.cat((before_g, g[..., dim:]), 2)
        row = self.rms((k * g.softmax(2)).sum(2), self.w[p + "norm.weight"])
        return self.rope(row[:, :, None], torch.arange(blocks) * m, True)[:, :, 0]

    def attention(self, x: torch.Tensor, p: str, ratio: int) -> torch.Tensor:
        c = self.c
        batch, length, _ = x.shape
        heads, dim = c["num_attention_heads"], c["head_dim"]
        positions = torch.arange(length)
        qr = self.rms(x @ self.w[p + "wq_a.weight"].T, self.w[p + "q_norm.weight"])
        q = self.rms((qr @ self.w[p + "wq_b.weight"].T).unflatten(-1, (heads, dim)), None)
        q = self.rope(q, positions, ratio > 0)
        kv = self.rms(x @ self.w[p + "wkv.weight"].T, self.w[p + "kv_norm.weight"])
        kv = self.rope(kv[:, :, None], positions, ratio > 0)[:, :, 0]
        distance = positions[:, None] - positions[None]
        seen = ((distance >= 0) & (distance < c["sliding_window"])).expand(batch, -1, -1)
        scores = None
        if ratio:
            rows = self.compressor(x, p + "compressor.", ratio, dim)
            visible = torch.arange(rows.shape[1])[None] < ((positions + 1) // ratio)[:, None]
            visible = visible.expand(batch, -1, -1)
            if ratio == 4:
                scores = self.index_scores(x.detach(), qr.detach(), p + "indexer.", ratio)
                if self.sparse and rows.shape[1] > c["index_topk"]:
                    # Among equals, such as rows that no head's relu lets through, the first: a stable sort.
                    order = scores.masked_fill(~visible, -math.inf).sort(dim=-1, descending=True, stable=True).indices
                    best = order[..., : c["index_topk"]]
                    visible = visible & torch.zeros_like(visible).scatter(-1, best, True)
            kv = torch.cat((kv, rows), 1)
            seen = torch.cat((seen, visible), -1)
        a = torch.einsum("bthd,bjd->bthj", q, kv) / math.sqrt(dim)
        a = a.masked_fill(~seen[:, :, None], -math.inf)
        sink = self.w[p + "attn_sink"][None, None, :, None].expand(batch, length, -1, -1)
        prob = torch.cat((a, sink), -1).softmax(-1)[..., :-1]
        if scores is not None:
            self.index_loss(scores, visible, prob[..., length:].sum(2).detach())
        o = self.rope(torch.einsum("bthj,bjd->bthd", prob, kv), positions, ratio > 0, -1)
        groups, rank = c["o_groups"], c["o_lora_rank"]
        z = torch.einsum(
            "btgi,gri->btgr",
            o.flatten(-2).unflatten(-1, (groups, -1)),
            self.w[p + "wo_a.weight"].unflatten(0, (groups, rank)),
        )
        return z.flatten(-2) @ self.w[p + "wo_b.weight"].T

    def index_scores(self, x: torch.Tensor, qr: torch.Tensor, p: str, ratio: int) -> torch.Tensor:
        heads, dim = self.c["index_n_heads"], self.c["index_head_dim"]
        q = (qr @ self.w[p + "wq_b.weight"].T).unflatten(-1, (heads, dim))
        q = self.hadamard(self.rope(q, torch.arange(x.shape[1]), True))
        rows = self.hadamard(self.compressor(x, p + "compressor.", ratio, dim))
        weights = (x @ self.w[p + "weights_proj.weight"].T) * (dim * heads) ** -0.5
        return torch.einsum("bth,bthj->btj", weights, torch.einsum("bthd,bjd->bthj", q, rows).relu())

    def index_loss(self, scores: torch.Tensor, visible: torch.Tensor, mass: torch.Tensor) -> None:
        queries = visible.any(-1)
        target = (mass * visible)[queries]
        target = target / target.sum(-1, keepdim=True)
        log_r = scores.masked_fill(~visible, -math.inf)[queries].log_softmax(-1)
        log_r = log_r.masked_fill(~visible[queries], 0)
        kl = torch.special.xlogy(target, target).sum(-1) - (target * log_r).sum(-1)
        self.index_kl = self.index_kl + kl.mean()

    def moe(self, x: torch.Tensor, p: str, tokens: torch.Tensor) -> torch.Tensor:
        c = self.c
        k, experts, limit = c["num_experts_per_tok"], c["n_routed_experts"], c["swiglu_limit"]
        s = torch.nn.functional.softplus(x @ self.w[p + "gate.weight"].T).sqrt()
        if p + "gate.tid2eid" in self.tables:
            chosen = self.tables[p + "gate.tid2eid"][tokens]
        else:
            chosen = (s + self.w[p + "gate.bias"]).detach().topk(k, -1).indices
            f = torch.nn.functional.one_hot(chosen, experts).double().sum((1, 2)) * experts / (k * x.shape[1])
            share = (s / s.sum(-1, keepdim=True)).mean(1)
            self.balance = self.balance + (f * share).sum(-1).mean()
        weight = s.gather(-1, chosen)
        weight = weight / weight.sum(-1, keepdim=True) * c["routed_scaling_factor"]

        def expert(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            gate = (x @ self.w[f"{p}{name}.w1.weight"].T).clamp(max=limit)
            up = (x @ self.w[f"{p}{name}.w3.weight"].T).clamp(-limit, limit)
            return torch.nn.functional.silu(gate) * up, self.w[f"{p}{name}.w2.weight"]

        hidden, w2 = expert("shared_experts")
        out = hidden @ w2.T
        for e in range(experts):
            hidden, w2 = expert(f"experts.{e}")
            out = out + ((weight * (chosen == e)).sum(-1, keepdim=True) * hidden) @ w2.T
        return out

    def block(self, x: torch.Tensor, p: str, index: int, tokens: torch.Tensor) -> torch.Tensor:
        y, post, comb = self.hc_pre(x, p + "hc_attn")
        y = self.attention(self.rms(y, self.w[p + "attn_norm.weight"]), p + "attn.", self.c["compress_ratios"][index])
        x = self.hc_post(y, x, post, comb)
        y, post, comb = self.hc_pre(x, p + "hc_ffn")
        y = self.moe(self.rms(y, self.w[p + "ffn_norm.weight"]), p + "ffn.", tokens)
        return self.hc_post(y, x, post, comb)

    def logits(self, x: torch.Tensor, p: str) -> torch.Tensor:
        return self.rms(self.hc_head(x, p), self.w[p + "norm.weight"]) @ self.w["head.weight"].T

    def streams(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.w["embed.weight"][tokens][:, :, None].expand(-1, -1, self.c["hc_mult"], -1)
        for i in range(self.c["num_hidden_layers"]):
            x = self.block(x, f"layers.{i}.", i, tokens)
        return x

    def mtp_logits(self, x: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        p = "mtp.0."
        e = self.rms(self.w["embed.weight"][following], self.w[p + "enorm.weight"]) @ self.w[p + "e_proj.weight"].T
        h = self.rms(x, self.w[p + "hnorm.weight"]) @ self.w[p + "h_proj.weight"].T
        x = self.block(e[:, :, None] + h, p, self.c["num_hidden_layers"], following)
        return self.logits(x, p)

    def losses(self, tokens: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """tokens, counts: [B, T + 2]. Cross-entropy, MTP, balance, indexer."""
        length = tokens.shape[1] - 2
        x = self.streams(tokens[:, :length])

        def mean(logits: torch.Tensor, shift: int) -> torch.Tensor:
            target = tokens[:, shift : shift + length].flatten()
            each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target, reduction="none")
            return each[counts[:, shift : shift + length].flatten() > 0].mean()

        ce = mean(self.logits(x, ""), 1)
        mtp = mean(self.mtp_logits(x, tokens[:, 1 : length + 1]), 2)
        return ce, mtp, self.balance, self.index_kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("directory", nargs="?", type=Path, default=root / "tests" / "data" / "gradients")
    args = parser.parse_args()

    c = CONFIG
    rng = torch.Generator().manual_seed(4)
    weights = {name: draw(name, shape, rng).bfloat16() for name, shape in shapes(c)}
    experts, k = c["n_routed_experts"], c["num_experts_per_tok"]
    tables = {
        f"layers.{i}.ffn.gate.tid2eid": torch.stack([torch.randperm(experts, generator=rng)[:k] for _ in range(c["vocab_size"])])
        for i in range(c["num_hash_layers"])
    }
    tokens = torch.randint(c["vocab_size"], (SEQUENCES, LENGTH + 2), generator=rng)
    counts = (torch.rand(tokens.shape, generator=rng) < 0.8).to(torch.uint8)

    out: Tensors = {"tokens": tokens.to(torch.int32), "counts": counts}
    for stage in ("dense", "sparse"):
        leaves = {name: w.double().requires_grad_() for name, w in weights.items()}
        model = TinyModel(c, leaves, tables, stage == "sparse")
        ce, mtp, balance, index_kl = model.losses(tokens, counts)
        (ce + MTP_WEIGHT * mtp + BALANCE_WEIGHT * balance + INDEX_WEIGHT * index_kl).backward()
        out[f"{stage}.losses"] = torch.stack((ce, mtp, balance, index_kl)).detach().float()
        for name, w in leaves.items():
            if not name.endswith("gate.bias"):
                out[f"{stage}.gradient.{name}"] = w.grad.float()
        print(stage, [f"{x:.6f}" for x in out[f"{stage}.losses"].tolist()])

    args.directory.mkdir(parents=True, exist_ok=True)
    (args.directory / "config.json").write_text(json.dumps(c, indent=2) + "\n", encoding="utf-8")
    save_file(weights | tables, args.directory / "model.safetensors")
    save_file(out, args.directory / "gradients.safetensors")


if __name__ == "__main__":
    main()
