"""Record golden logits of a tiny random DeepSeek-V3.2 from transformers' DeepseekV32.

    hadal init --config tests/data/v32/config.json --seed 3 --format f32 DIR
    python tools/record_v32.py DIR tests/data/v32/golden.json

Writes the tokens and, of some positions, the logits (docs/plan.md). The checkpoint itself is not
kept: `hadal init` gives the same bytes for the same seed everywhere. tools/oracle_requirements.txt
says what is needed.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import DeepseekV32Config, DeepseekV32ForCausalLM


def load_model(directory: Path) -> DeepseekV32ForCausalLM:
    """The checkpoint as a float32 model, eager throughout."""
    fields = json.loads((directory / "config.json").read_text())
    config = DeepseekV32Config.from_dict(fields)
    model = DeepseekV32ForCausalLM._from_config(
        config,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    tensors = load_file(directory / "model.safetensors")
    state = model.state_dict()
    filled = 0
    for name, value in tensors.items():
        if ".mlp.experts." in name:  # stacked in transformers: [E, 2 I, d] and [E, d, I]
            prefix, rest = name.split(".mlp.experts.")
            expert, part, _ = rest.split(".")
            stack = "down_proj" if part == "down_proj" else "gate_up_proj"
            place = state[f"{prefix}.mlp.experts.{stack}"][int(expert)]
            inter = config.moe_intermediate_size
            if part != "down_proj":
                place = place[:inter] if part == "gate_proj" else place[inter:]
        else:
            place = state[name]
        if place.shape != value.shape:
            raise ValueError(f"{name}: {list(value.shape)}, not {list(place.shape)}")
        place.copy_(value)
        filled += value.numel()
    if filled != sum(tensor.numel() for tensor in state.values()):
        raise ValueError("a parameter of the model has no tensor")
    return model.eval()


@torch.inference_mode()
def main() -> None:
    """Run the model on pseudo-random tokens and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=96, help="tokens (96)")
    parser.add_argument("--every", type=int, default=8, help="keep the logits of each n-th (8)")
    args = parser.parse_args()
    model = load_model(args.model_dir)
    tokens = random.Random(1).choices(range(model.config.vocab_size), k=args.count)
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    positions = list(range(args.every - 1, args.count, args.every))
    rows = [[round(x, 6) for x in logits[p].tolist()] for p in positions]
    golden = {"tokens": tokens, "positions": positions, "logits": rows}
    args.out.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
