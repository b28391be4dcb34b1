#!/usr/bin/env python3
"""Copies the recorded vectors that the tests need into tests/data/reference.

The full set (about 40 MB) is more than a clone should carry: the unquantised twin of t2-m2 and, in m1, the
intermediates inside the layers are left out. Nothing that is copied is changed.

    python3 tools/make_test_data.py REFERENCE_DIRECTORY
"""

import json
import shutil
import struct
import sys
from pathlib import Path


def copy_without(source: Path, target: Path, prefix: str) -> None:
    """Copies a safetensors file without the tensors whose names start with `prefix`."""
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    kept, body = {}, b""
    for name, entry in header.items():
        if name == "__metadata__":
            kept[name] = entry
        elif not name.startswith(prefix):
            begin, end = entry["data_offsets"]
            kept[name] = entry | {"data_offsets": [len(body), len(body) + end - begin]}
            body += data[8 + length + begin : 8 + length + end]
    text = json.dumps(kept, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    target.write_bytes(struct.pack("<Q", len(text)) + text + body)


def main() -> None:
    reference = Path(sys.argv[1])
    out = Path(__file__).resolve().parent.parent / "tests" / "data" / "reference"
    shutil.rmtree(out, ignore_errors=True)
    for model in ("t1-m2", "t2-m2"):
        (out / "models" / model).mkdir(parents=True)
        for file in sorted((reference / "models" / model).iterdir()):
            target = out / "models" / model / file.name
            if model == "t1-m2" and file.name == "golden.m1.safetensors":
                copy_without(file, target, "short.")
            elif file.name.startswith("golden.") and file.suffix == ".json":
                continue
            else:
                shutil.copyfile(file, target)
    shutil.copyfile(reference / "kernels.safetensors", out / "kernels.safetensors")


if __name__ == "__main__":
    main()
