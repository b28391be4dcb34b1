#!/usr/bin/env python3
"""A text in which something far back is worth knowing: every 59 bytes a mark of # and four letters.

    python tools/mark_corpus.py IN OUT

The letters are drawn anew every 32 marks and repeated in between. A model that can look further back than the
last mark knows all but the first of them; to one that cannot, each costs 4 ln 26 = 13 nats.
"""

from __future__ import annotations

import argparse
import random
import string
from pathlib import Path

SPACING, REPEATS = 59, 32


def marked(text: bytes) -> bytes:
    """The text with its marks."""
    rng = random.Random(1)
    out = bytearray()
    for n, at in enumerate(range(0, len(text), SPACING)):
        if n % REPEATS == 0:
            word = bytes(rng.choices(string.ascii_lowercase.encode(), k=4))
        out += b"#" + word + text[at : at + SPACING]
    return bytes(out)


def main() -> None:
    """Mark the text of one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.write_bytes(marked(args.text.read_bytes()))


if __name__ == "__main__":
    main()
