"""Compare a checkpoint's logits: transformers against hadal, or against a recorded golden file.

    python tools/compare_transformers.py MODEL_DIR --hadal BINARY [--tokens FILE]
    python tools/compare_transformers.py MODEL_DIR --golden FILE [--hadal BINARY]

Tokens are a JSON array, or the golden file's own, or pseudo-random ids. Exit status 1 when a
logit differs by more than the tolerance. docs/exactness.md explains what is compared.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from transformers_logits import CSA_RATIO, load_model, prefill_logits

Tensors = tuple[torch.Tensor, ...]


@dataclass
class Margin:
    """How far the closest top-k decision of one kind was from going the other way."""

    value: float = float("inf")
    layer: int = -1
    position: int = -1
    ties: int = 0

    def note(self, scores: torch.Tensor, k: int, layer: int) -> None:
        """Take the scores [positions, candidates] of a top-k; -inf marks no candidate.

        The margin of a position is the gap between its k-th and (k+1)-th score; an exact tie is
        counted apart.
        """
        if scores.shape[-1] <= k:
            return
        best = scores.topk(k + 1, dim=-1).values
        gaps = (best[:, k - 1] - best[:, k]).nan_to_num(nan=float("inf"))
        self.ties += int((gaps == 0).sum())
        gaps = gaps.masked_fill(gaps == 0, float("inf"))
        position = int(gaps.argmin())
        if gaps[position] < self.value:
            self.value = float(gaps[position])
            self.layer, self.position = layer, position

    def __str__(self) -> str:
        where = "" if self.layer < 0 else f" (layer {self.layer}, position {self.position})"
        return f"{self.value:.1e}{where}, {self.ties} ties"


class Selections:
    """Watches a model's routers and indexers for decisions that are close.

    Two correct implementations may decide a close one differently; every later logit then
    differs by far more than rounding.
    """

    def __init__(self, model: transformers.DeepseekV4ForCausalLM) -> None:
        self.router = Margin()
        self.indexer = Margin()
        for layer, block in enumerate(model.model.layers):
            if not block.mlp.is_hash:
                block.mlp.gate.register_forward_hook(self._router_hook(layer))
            indexer: Any = getattr(block.self_attn.compressor, "indexer", None)
            if indexer is not None:
                # prepend: the hook that breaks ties replaces the scores
                hook = self._indexer_hook(layer, indexer.index_topk)
                indexer.scorer.register_forward_hook(hook, prepend=True)

    def _router_hook(self, layer: int) -> Callable[..., None]:
        def hook(gate: Any, _inputs: Tensors, output: Tensors) -> None:
            biased = gate.score_fn(output[0]) + gate.e_score_correction_bias
            self.router.note(biased, gate.top_k, layer)

        return hook

    def _indexer_hook(self, layer: int, k: int) -> Callable[..., None]:
        def hook(_scorer: nn.Module, _inputs: Tensors, output: torch.Tensor) -> None:
            scores = output[0]  # [positions, rows]
            visible = (torch.arange(scores.shape[0]) + 1) // CSA_RATIO
            hidden = torch.arange(scores.shape[1]) >= visible[:, None]
            self.indexer.note(scores.masked_fill(hidden, float("-inf")), k, layer)

        return hook


def hadal_logits(binary: Path, model_dir: Path, tokens: list[int]) -> torch.Tensor:
    """Logits [tokens, vocab] of `hadal logits --numerics exact`."""
    with tempfile.TemporaryDirectory() as directory:
        token_file = Path(directory) / "tokens.json"
        out_file = Path(directory) / "logits.safetensors"
        token_file.write_text(json.dumps(tokens))
        options = ["-m", model_dir, "--tokens", token_file, "--out", out_file]
        command = [binary, "logits", *options, "--numerics", "exact"]
        subprocess.run([str(part) for part in command], check=True)
        return load_file(out_file)["logits"]


def agree(name: str, theirs: torch.Tensor, ours: torch.Tensor, args: argparse.Namespace) -> bool:
    """Print how far `theirs` is from transformers' logits `ours`; true if within the tolerance."""
    if theirs.shape != ours.shape:
        print(f"{name}: logits {list(theirs.shape)}, transformers has {list(ours.shape)}")
        return False
    difference = (theirs - ours).abs()
    worst = difference.amax(dim=1)  # [tokens]
    if args.per_position:
        for position, value in enumerate(worst.tolist()):
            print(f"{name} {position} {value:.3e}")
    beyond = (~(worst <= args.tolerance)).nonzero().flatten().tolist()  # NaN is beyond
    print(
        f"{name}: max |difference| {worst.max():.3e} at position {int(worst.argmax())}, "
        f"mean {difference.mean():.3e}, largest logit {ours.abs().max():.2f}"
    )
    if beyond:
        count = f"{len(beyond)} of {len(worst)} positions"
        print(f"{name}: {count} beyond {args.tolerance:g}, the first is {beyond[0]}")
    return not beyond


def parse_args() -> argparse.Namespace:
    """The command line; exits with status 2 when it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path, help="checkpoint directory")
    parser.add_argument("--hadal", type=Path, metavar="BINARY", help="compare with this binary")
    parser.add_argument("--golden", type=Path, metavar="FILE", help="compare with `prefill.logits`")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="JSON array of token ids")
    parser.add_argument("--count", type=int, default=300, help="pseudo-random tokens (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the pseudo-random tokens (0)")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="(1e-4)")
    parser.add_argument("--per-position", action="store_true", help="print every position's max")
    parser.add_argument(
        "--torch-ties",
        action="store_true",
        help="leave equal index scores to torch.topk instead of taking the lowest row first",
    )
    args = parser.parse_args()
    if args.hadal is None and args.golden is None:
        parser.error("nothing to compare with: give --hadal, --golden or both")
    if args.golden is not None and args.tokens is not None:
        parser.error("--golden brings its own tokens")
    return args


def main() -> int:
    """Compare; the exit status."""
    args = parse_args()
    model = load_model(args.model_dir, break_ties=not args.torch_ties)
    selections = Selections(model)
    golden = load_file(args.golden) if args.golden is not None else {}
    if golden:
        tokens = golden["tokens"].tolist()
    elif args.tokens is not None:
        tokens = json.loads(args.tokens.read_text())
    else:
        tokens = random.Random(args.seed).choices(range(model.config.vocab_size), k=args.count)

    ours = prefill_logits(model, tokens)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{args.model_dir}: {len(tokens)} tokens")
    print(f"closest router choice: {selections.router}")
    print(f"closest indexer choice: {selections.indexer}")
    good = True
    if golden:
        good &= agree("golden", golden["prefill.logits"], ours, args)
    if args.hadal is not None:
        good &= agree("hadal", hadal_logits(args.hadal, args.model_dir, tokens), ours, args)
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, IndexError, KeyError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"compare_transformers: {error}")
