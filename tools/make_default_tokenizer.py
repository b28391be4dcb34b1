#!/usr/bin/env python3
"""Writes models/default/tokenizer.json: the tokenizer of the small embedded model.

It is DeepSeek-V4's tokenizer without the merges: the same pre-tokeniser, the same first ids (BOS 0, EOS 1,
padding 2, then the 256 bytes in the order of the byte alphabet), and the same added tokens with the same
flags, moved down to follow the bytes. 320 ids in all, the last ones reserved as the real file reserves its own.

    tools/make_default_tokenizer.py [OUT]
"""

import json
import pathlib
import sys

N_IDS = 320

# Special in the real file: control tokens in every library, never shown.
SPECIAL = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]

# Ids 128800 to 128846 of the real file, in its order, without its placeholders.
ADDED = [
    "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>", "<｜begin▁of▁repo▁name｜>", "<｜end▁of▁repo▁name｜>", "<｜begin▁of▁file▁name｜>",
    "<｜end▁of▁file▁name｜>", "<｜begin▁of▁file｜>", "<｜end▁of▁file｜>", "<think>", "</think>", "｜DSML｜",
    "<｜begin▁sys｜>", "<｜end▁sys｜>", "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>", "<｜authority｜>",
    "<｜domain｜>", "<｜task｜>", "<｜political｜>", "<｜entity｜>", "<｜title｜>", "<｜safety｜>", "<｜answer｜>",
    "<｜search｜>", "<dsml:", "</dsml:", "<｜search▁begin｜>", "<｜search▁end｜>", "<｜extracted_url｜>",
    "<｜read_url｜>", "<｜end_of_query｜>",
]
SPECIAL_AMONG_ADDED = {"<｜end_of_query｜>"}

SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" + "\r\n" + r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    + r""" ?[\p{P}\p{S}]+[""" + "\r\n" + r"""]*|\s*[""" + "\r\n" + r"""]+|\s+(?!\S)|\s+""",
]


def byte_alphabet():
    """The character that stands for each byte, printable ones first."""
    printable = [b for b in range(256) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(len(others))]


def added_token(token_id, content, special):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": not special, "special": special}


def default_tokenizer():
    vocab = {token: i for i, token in enumerate(SPECIAL + byte_alphabet())}
    added = [added_token(i, content, True) for i, content in enumerate(SPECIAL)]
    for token_id, content in enumerate(ADDED, len(vocab)):
        added.append(added_token(token_id, content, content in SPECIAL_AMONG_ADDED))
    first_reserved = len(vocab) + len(ADDED)
    for token_id in range(first_reserved, N_IDS):
        added.append(added_token(token_id, f"<｜place▁holder▁no▁{token_id - first_reserved}｜>", True))

    splits = [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
              for regex in SPLITS]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits + [
            byte_level | {"add_prefix_space": False, "use_regex": False}]},
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": vocab, "merges": []},
    }


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "models" / "default" / "tokenizer.json"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(default_tokenizer(), ensure_ascii=False, indent=1)
    out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
