#!/usr/bin/env python3
"""Training speed and memory: hadal against PyTorch on the same model, in one run.

    python tools/compare_training.py --hadal BINARY --text FILE [--rounds 3] [--steps 20] [--batch 4]

The model is that of recipes/shakespeare.json without its MTP block, which transformers'
DeepseekV4 does not have; both sides start from one random checkpoint and read byte windows of
FILE. PyTorch runs transformers' model under bfloat16 autocast with float32 weights, Muon (ten
Newton-Schulz iterations in bfloat16, all experts of a layer in one batched product) and AdamW:
what hadal does. The two take turns, a round each, and never run at the same time; PyTorch's
steps are timed after a warm-up, hadal's are those of its metrics.jsonl but for the first of
each round. Medians are compared.

Memory is the peak of the resident set; for PyTorch also what it is above that of the bare
imports. tools/oracle_requirements.txt says what to install.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Matrices, by the names of transformers' parameters, that AdamW updates.
ADAMW = ("embed_tokens", "lm_head", "position_bias", "norm")


def write_recipe(args: argparse.Namespace, work: Path) -> Path:
    """A checkpoint to start from, the tokens, and a recipe over both."""
    recipe = json.loads((ROOT / "recipes" / "shakespeare.json").read_text())
    config = recipe["model"]["config"]
    config["num_nextn_predict_layers"] = 0
    config["compress_ratios"] = config["compress_ratios"][: config["num_hidden_layers"]]
    config["architectures"] = ["DeepseekV4ForCausalLM"]
    (work / "config.json").write_text(json.dumps(config))

    def hadal(*arguments: str | Path) -> None:
        subprocess.run([args.hadal, *map(str, arguments)], check=True, stderr=subprocess.DEVNULL)

    tokenizer = work / "tokenizer.json"
    hadal("init", "--config", work / "config.json", "--format", "f32", work / "model")
    hadal("tokenizer", "train", "--bare", "--vocab-size", "256", "-o", tokenizer, args.text)
    hadal("data", "build", "-t", tokenizer, "--no-marks", "-o", work / "data", args.text)
    recipe |= {
        "model": {"checkpoint": str(work / "model")},
        "data": {"train": [{"path": str(work / "data")}]},
        "steps": args.steps + 1,
        "batch": [{"from_step": 0, "tokens": args.batch * args.length}],
        "stages": [{"from_step": 0, "length": args.length, "attention": "dense"}],
        "learning_rate": {"peak": 3e-4},
    }
    del recipe["tokenizer"], recipe["evaluation"]
    recipe["snapshot"] = {"every": args.steps + 1, "keep": 1}
    path = work / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


def run_hadal(args: argparse.Namespace, recipe: Path, round_: int) -> tuple[list[dict], float]:
    """The metrics of the steps after the first, and the peak of memory in MB."""
    run = recipe.parent / f"run-{round_}"
    command = [args.hadal, "train", str(recipe), "--run", str(run), "--threads", str(args.threads)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:  # what wait4 says counts this process too, from before the exec
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak = max(peak, int(line.split()[1]) / 1024)
        time.sleep(0.02)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return steps[1:], peak


class Torch:
    """The other side."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        import torch
        from torch import nn
        from transformers_logits import load_model

        self.torch, self.batch, self.length = torch, args.batch, args.length
        torch.set_num_threads(args.threads)
        self.imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.model = load_model(work / "model", break_ties=False).train()
        for layer in self.model.model.layers:  # the dense stage: CSA layers see every row
            if hasattr(layer.self_attn.compressor, "indexer"):
                layer.self_attn.compressor.indexer.index_topk = args.length
        self.matrices, others = [], []
        for name, p in self.model.named_parameters():
            p.requires_grad_()
            indexer = ".indexer." in name
            if indexer:  # not trained in the dense stage
                p.requires_grad_(False)
            elif p.ndim >= 2 and not any(part in name for part in ADAMW):
                self.matrices.append((p, torch.zeros_like(p), name.endswith("gate_up_proj")))
            else:
                others.append(p)
        self.adamw = torch.optim.AdamW(
            others, lr=3e-4, betas=(0.9, 0.95), eps=1e-20, weight_decay=0.1, fused=True
        )
        self.loss = nn.functional.cross_entropy
        data = torch.frombuffer(bytearray(Path(args.text).read_bytes()), dtype=torch.uint8)
        # Ids as hadal's byte tokenizer has them.
        vocab = json.loads((work / "tokenizer.json").read_text())["model"]["vocab"]
        printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
        rest = [b for b in range(256) if b not in printable]
        ids = torch.empty(256, dtype=torch.long)
        for i, byte in enumerate(printable + rest):
            ids[byte] = i
        assert len(vocab) == 256
        self.tokens = ids[data.long()]
        self.generator = torch.Generator().manual_seed(1)
        self.count = sum(p.numel() for p in self.model.parameters())

    def newton_schulz(self, x):  # noqa: ANN001, ANN201
        """Of a matrix, or of a stack of them."""
        y = x.bfloat16()
        wide = y.shape[-2] <= y.shape[-1]
        if not wide:
            y = y.transpose(-2, -1)
        y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-30)
        for a, b, c in 8 * [(3.4445, -4.7750, 2.0315)] + 2 * [(2.0, -1.5, 0.5)]:
            s = y @ y.transpose(-2, -1)
            y = a * y + (b * s + c * s @ s) @ y
        return y if wide else y.transpose(-2, -1)

    def step(self) -> tuple[float, float]:
        """One step: its loss, its seconds."""
        torch = self.torch
        last = len(self.tokens) - self.length - 1
        starts = torch.randint(last, (self.batch,), generator=self.generator).tolist()
        windows = torch.stack([self.tokens[s : s + self.length + 1] for s in starts])
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(windows[:, :-1], use_cache=False).logits
        loss = self.loss(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        trained = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        with torch.no_grad():
            for p, momentum, halves in self.matrices:
                if p.grad is None:
                    continue
                momentum.mul_(0.95).add_(p.grad)
                update = p.grad + 0.95 * momentum
                if halves:  # w1 above w3
                    e, two, d = update.shape
                    update = update.view(e * 2, two // 2, d)
                shape = update.shape[-2:]
                update = self.newton_schulz(update).float().reshape(p.shape)
                p.mul_(1 - 3e-4 * 0.1).add_(update, alpha=-3e-4 * 0.18 * max(shape) ** 0.5)
        self.adamw.step()
        self.model.zero_grad(set_to_none=True)
        return loss.item(), time.perf_counter() - begin

    def peak(self) -> float:
        """Of this process, in MB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hadal", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        recipe = write_recipe(args, work)
        other = Torch(args, work)
        for _ in range(3):  # warm-up
            other.step()
        ours, theirs, memory = [], [], 0.0
        for round_ in range(args.rounds):
            steps, peak = run_hadal(args, recipe, round_)
            memory = max(memory, peak)
            times = [args.batch * args.length / s["tokens_per_s"] for s in steps]
            ours += times
            timed = [other.step() for _ in range(args.steps)]
            theirs += [t for _, t in timed]
            torch_time = statistics.median([t for _, t in timed])
            print(
                f"round {round_}: hadal {statistics.median(times):.3f} s a step "
                f"(ce {steps[-1]['ce']:.2f}), PyTorch {torch_time:.3f} s (ce {timed[-1][0]:.2f})"
            )
        a, b = (args.batch * args.length / statistics.median(t) for t in (ours, theirs))
        size = f"{args.batch} x {args.length} tokens a step"
        print(f"{other.count} parameters, {size}, {args.threads} threads")
        print(f"tokens/s: hadal {a:.0f}, PyTorch {b:.0f}: {a / b:.2f} times")
        print(
            f"peak memory, MB: hadal {memory:.0f}, PyTorch {other.peak():.0f} "
            f"({other.peak() - other.imports:.0f} above its imports)"
        )


if __name__ == "__main__":
    main()
