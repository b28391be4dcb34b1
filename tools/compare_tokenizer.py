#!/usr/bin/env python3
"""Compares hadal's tokenizer with the `tokenizers` library: the same ids, and how much faster.

At least 20 MB of mixed text is put together, always the same on the same machine: C headers, Python sources,
documentation, words made of the vocabulary's own tokens (all its languages), samples of many scripts, emoji
sequences, digits, white space, long words, control characters, every Unicode character, added tokens whole
and torn. Each piece goes through both, one after the other, on one thread each.

Without --specials hadal must give what the library gives when its added tokens are taken out of the file:
plain text never becomes an added token. Broken UTF-8, which the library does not take, must survive
`hadal tokenize | hadal detokenize`, and the valid stretches in it must get the library's ids.

    pip install tokenizers
    tools/compare_tokenizer.py --tokenizer tokenizer.json [--hadal build/release/hadal] [--megabytes 20]
    tools/compare_tokenizer.py --tokenizer tokenizer.json --write-golden tests/data/tokenizer_golden.json
"""

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import sysconfig
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import tokenizers  # noqa: E402  (after the environment that it reads)

PIECE = 1 << 20  # characters that go through both sides at once
LIBRARY_PIECE = 2000  # characters of the pieces that the library is timed on again: it is faster on short texts

SCRIPTS = {
    "latin": (0x61, 0x7A), "latin extended": (0xC0, 0x24F), "greek": (0x391, 0x3C9), "cyrillic": (0x410, 0x44F),
    "armenian": (0x531, 0x586), "hebrew": (0x5D0, 0x5EA), "arabic": (0x620, 0x64A), "devanagari": (0x904, 0x94D),
    "bengali": (0x985, 0x9CD), "tamil": (0xB83, 0xBCD), "thai": (0xE01, 0xE4E), "tibetan": (0xF40, 0xFBC),
    "georgian": (0x10D0, 0x10FF), "ethiopic": (0x1200, 0x137C), "khmer": (0x1780, 0x17D3), "hangul": (0xAC00, 0xD7A3),
    "hiragana": (0x3041, 0x309F), "katakana": (0x30A0, 0x30FF), "han": (0x4E00, 0x9FFF), "han ext b": (0x20000, 0x2A6DF),
    "new in unicode 16": (0x16D40, 0x16D79), "mathematical": (0x1D400, 0x1D7FF),
}
PUNCTUATION = list(" .,;:!?()[]{}<>/\\|\"'`~@#$%^&*-_=+") + list("，。、；：？！「」『』（）《》…—·・¿¡«»‹›„“”‘’")
EMOJI = ["😀", "🎉", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵", "❤️", "☃", "🫨", "🧑🏿‍🚀", "1️⃣", "🫩", "©", "™", "‼️"]
SPACES = [" ", "  ", "    ", "\t", "\n", "\r\n", "\n\n", " \n ", "\r", "\v", "\f", "\u0085", "\u00a0", "\u2003",
          "\u2028", "\u3000", "\u180e", "\u200b", "\ufeff", " " * 37, "\t" * 9, "\n" * 11]


def files_of(folders, suffixes, limit):
    """Text of the files under `folders`, in sorted order, up to about `limit` bytes."""
    parts, size = [], 0
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if size >= limit:
                return "".join(parts)
            if path.suffix not in suffixes or not path.is_file():
                continue
            text = path.read_bytes()[:400_000].decode("utf-8", errors="ignore")
            parts.append(text)
            size += len(text.encode())
    return "".join(parts)


def random_word(rng, script):
    first, last = SCRIPTS[script]
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 12)))


def scripts_sample(rng, n_words):
    words = []
    for _ in range(n_words // 20):
        script = rng.choice(list(SCRIPTS))
        for _ in range(20):
            words.append(random_word(rng, script))
            words.append(rng.choice(PUNCTUATION) if rng.random() < 0.3 else " ")
    return "".join(words)


def vocabulary_sample(rng, library, n_tokens):
    """Tokens of the vocabulary in stretches of neighbours, which are often of one language."""
    ids = [rng.randrange(library.get_vocab_size(with_added_tokens=False)) for _ in range(n_tokens)]
    return library.decode(ids, skip_special_tokens=False).replace("\ufffd", "")


def mixed_sample(rng, n_parts):
    parts = []
    for _ in range(n_parts):
        kind = rng.randrange(8)
        if kind == 0:
            parts.append(str(rng.randrange(10 ** rng.randint(1, 30))))
        elif kind == 1:
            parts.append(rng.choice(EMOJI) * rng.randint(1, 3))
        elif kind == 2:
            parts.append(rng.choice(SPACES))
        elif kind == 3:
            parts.append(chr(rng.randrange(0x20)))
        elif kind == 4:
            parts.append(rng.choice(PUNCTUATION) * rng.randint(1, 5))
        elif kind == 5:
            parts.append(random_word(rng, rng.choice(["latin", "latin", "cyrillic", "han", "katakana"])))
        elif kind == 6:
            parts.append(rng.choice(["'s", "'LL", "e\u0301", "ﬁ", "Ǆ", "½", "²", "Ⅷ", "٣", "१", "߁", "a\u0300\u0301"]))
        else:
            parts.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.choice([3, 8, 90, 300]))))
    return "".join(parts)


def every_character():
    valid = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    return "".join(f" {c}x1{c}!\n" for c in valid)


def added_tokens_sample(rng, library, n_parts):
    contents = [token.content for token in library.get_added_tokens_decoder().values()]
    parts = []
    for _ in range(n_parts):
        content = rng.choice(contents)
        if rng.random() < 0.4:  # torn
            content = content[rng.randrange(len(content)):][:rng.randint(1, 12)]
        parts.append(content if rng.random() < 0.7 else rng.choice(PUNCTUATION + ["a", "词", "\n"]))
    return "".join(parts)


def corpus(library, n_bytes):
    """(name, text) of at least `n_bytes` in all."""
    stdlib = sysconfig.get_paths()["stdlib"]
    rng = random.Random(20260424)
    quarter = n_bytes // 4
    texts = [
        ("python sources", files_of([stdlib], {".py"}, quarter)),
        ("headers and documents", files_of(["/usr/include", "/usr/share/doc", "/usr/share/perl"],
                                           {".h", ".hpp", "", ".txt", ".md", ".html", ".pm", ".pod"}, quarter)),
        ("vocabulary", vocabulary_sample(rng, library, quarter // 5)),
        ("scripts", scripts_sample(rng, quarter // 30)),
        ("mixed", mixed_sample(rng, quarter // 50)),
        ("added tokens", added_tokens_sample(rng, library, quarter // 50)),
        ("every character", every_character()),
    ]
    missing = n_bytes - sum(len(text.encode()) for _, text in texts)
    if missing > 0:  # a machine without headers
        texts.append(("more of the vocabulary", vocabulary_sample(rng, library, missing // 4)))
    return texts


def hadal_ids(args, data, specials=True):
    """Ids of `data` (bytes) and the seconds the encoding took."""
    command = [args.hadal, "tokenize", "-m", args.tokenizer, "--ids", "--stats"] + ["--specials"] * specials
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"hadal tokenize: {done.stderr.decode()}")
    seconds = float(re.search(rb"in ([0-9.]+) s", done.stderr).group(1))
    return json.loads(done.stdout), seconds


def first_difference(library, ours, theirs):
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    show = [library.decode(ids[max(at - 3, 0):at + 5], skip_special_tokens=False) for ids in (ours, theirs)]
    return f"token {at}: hadal {ours[at:at + 5]} {show[0]!r}, library {theirs[at:at + 5]} {show[1]!r}"


def compare_text(args, library):
    totals = dict(bytes=0, ids=0, differing=0, hadal=0.0, library=0.0, library_short=0.0)
    for name, text in corpus(library, args.megabytes * 1_000_000):
        size, n_ids, differing, ours_s, theirs_s, short_s = len(text.encode()), 0, 0, 0.0, 0.0, 0.0
        for begin in range(0, len(text), PIECE):
            piece = text[begin:begin + PIECE]
            ours, seconds = hadal_ids(args, piece.encode())
            ours_s += seconds
            start = time.perf_counter()
            theirs = library.encode(piece).ids
            theirs_s += time.perf_counter() - start
            start = time.perf_counter()
            for i in range(0, len(piece), LIBRARY_PIECE):
                library.encode(piece[i:i + LIBRARY_PIECE])
            short_s += time.perf_counter() - start
            n_ids += len(theirs)
            if ours != theirs:
                differing += 1
                print(f"DIFFERS in {name}: {first_difference(library, ours, theirs)}")
        best = min(theirs_s, short_s)
        print(f"{name:24} {size / 1e6:6.2f} MB {n_ids:9d} ids  hadal {size / ours_s / 1e6:6.2f} MB/s  "
              f"library {size / theirs_s / 1e6:5.2f} MB/s, in short texts {size / short_s / 1e6:5.2f}  "
              f"ratio {best / ours_s:5.1f}  {'equal' if differing == 0 else 'DIFFERENT'}")
        for key, value in zip(totals, (size, n_ids, differing, ours_s, theirs_s, short_s)):
            totals[key] += value
    best = min(totals["library"], totals["library_short"])
    print(f"{'all':24} {totals['bytes'] / 1e6:6.2f} MB {totals['ids']:9d} ids  "
          f"hadal {totals['bytes'] / totals['hadal'] / 1e6:6.2f} MB/s  "
          f"library {totals['bytes'] / totals['library'] / 1e6:5.2f} MB/s, "
          f"in short texts {totals['bytes'] / totals['library_short'] / 1e6:5.2f}  ratio {best / totals['hadal']:5.1f}")
    return totals["differing"] == 0 and totals["bytes"] >= args.megabytes * 1_000_000


def compare_plain(args, library):
    description = json.loads(pathlib.Path(args.tokenizer).read_text(encoding="utf-8"))
    description["added_tokens"] = []
    without_added = tokenizers.Tokenizer.from_str(json.dumps(description))
    text = added_tokens_sample(random.Random(7), library, 50_000)
    ours, _ = hadal_ids(args, text.encode(), specials=False)
    theirs = without_added.encode(text).ids
    equal = ours == theirs and not set(ours) & set(library.get_added_tokens_decoder())
    print(f"added tokens in plain text: {len(text.encode())} bytes, {len(ours)} ids, {'equal' if equal else 'DIFFERENT'}")
    return equal


def broken_sample(rng, n_parts):
    """Valid stretches and invalid runs in turn: [(bytes, valid)]."""
    invalid = [b"\xff", b"\xfe\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80\xbf\x80", b"\xe4\xbd",
               b"\xf0\x9f\x98", b"\xc3", b"\xf8\x88\x80\x80\x80"]
    parts = []
    for _ in range(n_parts):
        valid = mixed_sample(rng, rng.randint(1, 6)).encode()
        parts += [(valid, True), (rng.choice(invalid) * rng.randint(1, 3), False)]
    return parts


def compare_broken(args, library):
    rng = random.Random(5)
    parts = broken_sample(rng, 20_000)
    data = b"".join(part for part, _ in parts)
    ours, _ = hadal_ids(args, data)
    back = subprocess.run([args.hadal, "detokenize", "-m", args.tokenizer], input=json.dumps(ours).encode(),
                          capture_output=True, check=True).stdout
    survived = back == data
    at, equal, stretches = 0, 0, 0
    alphabet = {c: b for b, c in enumerate_bytes()}
    added = set(library.get_added_tokens_decoder())
    size_of = [None] * library.get_vocab_size()
    for token, token_id in library.get_vocab().items():
        size_of[token_id] = len(token.encode()) if token_id in added else sum(1 for c in token if c in alphabet)
    for part, valid in parts:
        taken, size = [], 0
        while size < len(part):
            taken.append(ours[at])
            size += size_of[ours[at]]
            at += 1
        if valid:
            stretches += 1
            equal += taken == library.encode(part.decode()).ids
    print(f"broken UTF-8: {len(data)} bytes, round trip {'exact' if survived else 'BROKEN'}, "
          f"{equal} of {stretches} valid stretches equal")
    return survived and equal == stretches


def enumerate_bytes():
    """(byte, character) of the byte alphabet."""
    others = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            yield byte, chr(byte)
        else:
            yield byte, chr(0x100 + others)
            others += 1


def write_golden(library, path):
    """A few hundred short texts and the library's ids for them, added tokens recognised."""
    rng = random.Random(11)
    texts = ["", " ", "\n", "Hello, world!", "It's 12345678 o'clock", "  leading", "trailing  ", "a  b   c\n\n  d\t\te",
             "你好，世界", "こんにちは世界カタカナー", "Привет мир", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
             "안녕하세요 세계", "👩‍👩‍👧‍👦🏳️‍🌈", "🫨🫩", "\u180e \u3000\u0085", "int main() { return 0; }\r\n", "x=1;y=22;z=333;w=4444",
             "<｜begin▁of▁sentence｜>You are<｜User｜>Hi<｜Assistant｜></think>Hello<｜end▁of▁sentence｜>",
             "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n</｜DSML｜invoke>", "<｜User", "｜User｜>", "<think", "<|EOT|>",
             "<dsml:x></dsml:x>", "a" * 100, "ab" * 70, "0" * 25, "!" * 50, " " * 130, "\n" * 20]
    while len(texts) < 300:
        kind = len(texts) % 4
        if kind == 0:
            texts.append(mixed_sample(rng, 4)[:60])
        elif kind == 1:
            texts.append(scripts_sample(rng, 20)[:25])
        elif kind == 2:
            texts.append(vocabulary_sample(rng, library, 8)[:60])
        else:
            texts.append(added_tokens_sample(rng, library, 4)[:60])
    cases = [{"text": text, "ids": library.encode(text).ids} for text in texts]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    pathlib.Path(path).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="the tokenizer.json to compare with")
    parser.add_argument("--hadal", default="build/release/hadal", help="the hadal binary")
    parser.add_argument("--megabytes", type=int, default=20, help="at least this much text (default 20)")
    parser.add_argument("--write-golden", metavar="FILE", help="write recorded ids instead, for the tests")
    args = parser.parse_args()
    library = tokenizers.Tokenizer.from_file(args.tokenizer)
    if args.write_golden:
        write_golden(library, args.write_golden)
        return
    equal = compare_text(args, library)
    equal &= compare_plain(args, library)
    equal &= compare_broken(args, library)
    if not equal:
        sys.exit("the tokenizers differ")


if __name__ == "__main__":
    main()
