"""Speed of Hugging Face transformers (DeepseekV4ForCausalLM) on a slice of DeepSeek-V4 Flash.

The other side of the comparison in docs/cuda.md: the first layers of the model with random BF16
weights on the first CUDA device, decode with a cache and prefill, timed with synchronisation.

    python tools/bench_transformers.py CONFIG_JSON [--layers 4] [--prefill 8192] [--context 4096]

CONFIG_JSON is the config.json that `hadal init --preset flash --layers N` writes. Prints one line
of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prefill", type=int, default=8192)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16)
    arguments = parser.parse_args()

    fields = json.loads(arguments.config.read_text())
    fields.pop("quantization_config", None)
    fields["num_hidden_layers"] = arguments.layers
    fields["compress_ratios"] = fields["compress_ratios"][: arguments.layers]
    fields["num_nextn_predict_layers"] = 0
    config = DeepseekV4Config.from_dict(fields)
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = DeepseekV4ForCausalLM(config).eval()

    def ids(count: int) -> torch.Tensor:
        return torch.randint(0, config.vocab_size, (1, count), device="cuda")

    def timed(step: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.inference_mode():
        prefills = [
            timed(lambda: model(ids(arguments.prefill), use_cache=True, logits_to_keep=1))
            for _ in range(3)
        ]
        out = model(ids(arguments.context), use_cache=True, logits_to_keep=1)
        cache = out.past_key_values

        def decode() -> None:
            model(ids(1), past_key_values=cache, use_cache=True, logits_to_keep=1)

        steps = [timed(decode) for _ in range(arguments.tokens)]
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name(),
                "layers": arguments.layers,
                "prefill_tokens_per_s": arguments.prefill / min(prefills[1:]),
                "decode_tokens_per_s": 1 / statistics.median(steps[2:]),
            }
        )
    )


if __name__ == "__main__":
    main()
