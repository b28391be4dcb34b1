#!/usr/bin/env python3
"""Small runs that differ in one thing: mHC, the optimizer, the kinds of attention.

    python tools/ablate.py --hadal BINARY --data DIRECTORY [--steps 400] [--seeds 2] [--jobs 2]

DIRECTORY holds byte shards and held_out/, as the first two commands of docs/training.md make
them. Every variant sees the same sequences of 512 bytes; the window of attention is 32, so what
lies further back is to be had through compressed rows alone. Prints a Markdown table of the
losses on held-out windows.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def base(args: argparse.Namespace) -> dict:
    """A 1.5M-parameter model at context 512."""
    recipe = json.loads((ROOT / "recipes" / "shakespeare.json").read_text())
    recipe["model"]["config"] |= {
        "hidden_size": 128,
        "head_dim": 96,
        "qk_rope_head_dim": 32,
        "q_lora_rank": 64,
        "o_lora_rank": 64,
        "index_head_dim": 32,
        "moe_intermediate_size": 64,
        "sliding_window": 32,
    }
    del recipe["tokenizer"]
    return recipe | {
        "data": {"train": [{"path": str(args.data)}], "validation": str(args.data / "held_out")},
        "steps": args.steps,
        "batch": [{"from_step": 0, "tokens": 1024}],
        "stages": [{"from_step": 0, "length": 512, "attention": "dense"}],
        "learning_rate": {
            "peak": 1.5e-3,
            "final": 1.5e-4,
            "warmup_steps": 50,
            "decay_from": args.steps // 2,
        },
        "snapshot": {"every": args.steps, "keep": 1},
        "evaluation": {"every": 0, "windows": 200},
    }


def no_mhc(recipe: dict) -> None:
    recipe["model"]["config"]["hc_mult"] = 1


def adamw(recipe: dict) -> None:
    recipe["optimizer"] = {"kind": "adamw"}


def sliding(recipe: dict) -> None:
    recipe["model"]["config"]["compress_ratios"] = [0, 0, 0, 0]


def uniform(recipe: dict) -> None:
    recipe["initial"] = {"comb": "uniform"}


VARIANTS: dict[str, Callable[[dict], None]] = {
    "all of it": lambda recipe: None,
    "mHC off (one stream)": no_mhc,
    "mHC's mixing uniform at the start": uniform,
    "AdamW for every matrix": adamw,
    "all sliding (window 32)": sliding,
}


def run(args: argparse.Namespace, name: str, seed: int) -> tuple[float, float, int]:
    """Held-out cross-entropies and the number of parameters."""
    recipe = copy.deepcopy(base(args))
    VARIANTS[name](recipe)
    recipe |= {"name": "ablation", "seed": seed}
    with tempfile.TemporaryDirectory() as work:
        path, directory = Path(work) / "recipe.json", Path(work) / "run"
        path.write_text(json.dumps(recipe))
        subprocess.run(
            [args.hadal, "train", path, "--run", directory, "--threads", "1"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
        # A snapshot's header: 24 bytes, then JSON (docs/training_files.md).
        header = next((directory / "snapshots").iterdir()).open("rb").read(1 << 16)
        arrays = json.JSONDecoder().raw_decode(header[24:].decode("utf-8", "ignore"))[0]["arrays"]
        weights = next(a["bytes"] for a in arrays if a["name"] == "weights")
    return last["validation"]["ce"], last["validation"]["mtp"], weights // 4


def main() -> None:
    """Run every variant with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hadal", required=True)
    parser.add_argument("--data", required=True, type=lambda p: Path(p).resolve())
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    jobs = [(name, seed) for seed in range(args.seeds) for name in VARIANTS]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda job: run(args, *job), jobs))

    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    print("| variant | parameters | next token | MTP |\n|---|---|---|---|")
    for name in VARIANTS:
        own = [result for job, result in zip(jobs, results, strict=True) if job[0] == name]
        ce, mtp, parameters = zip(*own, strict=True)
        print(f"| {name} | {parameters[0] / 1e6:.2f}M | {spread(ce)} | {spread(mtp)} |")


if __name__ == "__main__":
    main()
