#!/usr/bin/env python3
"""Small runs that differ in one thing: mHC, the optimizer, the kinds of attention.

    python tools/ablate.py --hadal BINARY [--seeds 1337,7] [--jobs 2] [RECIPE...]

Without recipes: all of recipes/ablation, whose data the first two commands of docs/training.md make. Each is
trained once with every seed, on one thread. Prints a Markdown table of the losses on held-out windows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def seeded(path: Path, seed: int) -> dict:
    """The recipe with another seed, and paths that hold wherever it lies."""
    recipe = json.loads(path.read_text())
    data = recipe["data"]
    for source in data["train"]:
        source["path"] = str((path.parent / source["path"]).resolve())
    data["validation"] = str((path.parent / data["validation"]).resolve())
    return recipe | {"seed": seed}


def run(hadal: str, path: Path, seed: int) -> tuple[float, float, int]:
    """Held-out cross-entropies and the number of parameters."""
    with tempfile.TemporaryDirectory() as work:
        recipe, directory = Path(work) / "recipe.json", Path(work) / "run"
        recipe.write_text(json.dumps(seeded(path, seed)))
        subprocess.run(
            [hadal, "train", recipe, "--run", directory, "--threads", "1"],
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
    """Run every recipe with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("--hadal", required=True)
    parser.add_argument("--seeds", default="1337,7")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    recipes = args.recipes or sorted((ROOT / "recipes" / "ablation").glob("*.json"))
    jobs = [(recipe, seed) for seed in map(int, args.seeds.split(",")) for recipe in recipes]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda job: run(args.hadal, *job), jobs))

    print("| recipe | parameters | next token | MTP |\n|---|---|---|---|")
    for recipe in recipes:
        own = [result for job, result in zip(jobs, results, strict=True) if job[0] == recipe]
        ce, mtp, parameters = zip(*own, strict=True)
        losses = " | ".join(
            f"{statistics.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in (ce, mtp)
        )
        print(f"| {recipe.stem} | {parameters[0] / 1e6:.2f}M | {losses} |")


if __name__ == "__main__":
    main()
