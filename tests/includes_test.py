#!/usr/bin/env python3
"""Includes run one way (docs/architecture.md): fails on every include that goes against the arrows.

    tests/includes_test.py [ROOT]

Reads the #include lines of include/, src/, tests/, fuzz/ and bench/, and the links of hadal_room() in
CMakeLists.txt. Also fails where two files of src/ and include/ define a type of one name in one namespace:
what no file includes together the linker mixes up without a word. And where two sources of a room have the same
name in their unnamed namespaces, which HADAL_UNITY compiles together. First it proves, on a tree made for it, that it
can fail.
"""

import re
import sys
import tempfile
from pathlib import Path

# What each room may see besides itself and <hadal/...>.
ROOMS = {
    "base": set(),
    "tensor": {"base"},
    "formats": {"base", "tensor"},
    "ops": {"base", "tensor"},
    "dist": {"base", "tensor"},
    "text": {"base"},
    "model": {"base", "tensor", "formats", "ops"},
    "engine": {"base", "tensor", "formats", "ops", "model", "text"},
    "train": {"base", "tensor", "formats", "ops", "model", "dist", "text"},
    "plan": {"base", "tensor", "formats", "ops", "model"},
    "serve": {"base", "engine", "text"},
}
ROOMS["cli"] = set(ROOMS)

# Headers that one place alone may know: beginning of the name, where, in how many files at most.
ONLY_IN = [
    ("mpi.h", "src/dist/", 1),
    ("cuda", "src/ops/cuda/", 1000),
    ("boost/beast", "src/serve/", 1),
    ("CLI/", "src/cli/", 1000),
]
# The embedded model is bytes beside the rooms; these may ask for it.
SEES_EMBEDDED_MODEL = {"engine", "serve", "cli"}
# The tests of a room see what the room sees. These see more: recorded vectors and rotary tables.
EXTRA = {"tests/ops/kernel_vectors_test.cpp": {"formats", "model"}}
# What lies in tests/ itself serves every room above formats.
TEST_HELPERS = {"base", "tensor", "formats"}

INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
NAMESPACE = re.compile(r"(?:inline )?namespace\s*([\w:]*)\s*\{")
TYPE = re.compile(r"(?:struct|class|enum class|union)\s+(?:alignas\([^)]*\)\s*)?(\w+(?:::\w+)*)\b(?!\s*(?::[\s\w:]+)?;)")
# A constant, or a function with its parameters as far as they stand in the line.
CONSTANT = re.compile(r"(?:inline )?(?:constexpr|const) [^=;]*?\b(k[A-Z]\w*)\s*[=\[{]")
FUNCTION = re.compile(r"(?! |return|using|template|static_assert|HADAL_)[\w:<>,&*\[\] ]+?\b(\w+\([^;]*)$")
ROOM_CALL = re.compile(r"^hadal_room\((\w+)\s+DEPS\s+([^)]*)\)", re.MULTILINE)
SUFFIXES = {".h", ".cpp", ".inc", ".cu", ".cuh"}


def allowed_rooms(path: str) -> set[str] | None:
    """The rooms that the file may include from; None if it lies in a room that this test does not know."""
    top, _, rest = path.partition("/")
    room = rest.split("/")[0] if "/" in rest else None
    if top == "include":
        return set()
    if top in {"fuzz", "bench"}:
        return set(ROOMS) - {"cli"}
    if top == "tests" and room is None:
        return TEST_HELPERS
    if room not in ROOMS:
        return None
    return ROOMS[room] | {room} | EXTRA.get(path, set())


def check_include(root: Path, file: Path, angled: bool, target: str) -> str | None:
    """What is wrong with this line of `file`, or None."""
    path = file.relative_to(root).as_posix()
    for prefix, home, _ in ONLY_IN:
        if target.startswith(prefix) and path.startswith(("src/", "include/")) and not path.startswith(home):
            return f"<{target}> belongs in {home} alone"
    if path.startswith("include/"):
        standard = angled and re.fullmatch(r"[a-z_0-9]+", target)
        if standard or (angled and (target == "tl/expected.hpp" or target.startswith("hadal/"))):
            return None
        return f"a public header sees <hadal/...>, the standard library and <tl/expected.hpp>, not {target}"
    allowed = allowed_rooms(path)
    if allowed is None:
        return f"{path.split('/')[1]} is not a room; add it to {Path(__file__).name}"
    if angled:
        return None
    if target == "embedded_model.h":
        rooms = f"only {', '.join(sorted(SEES_EMBEDDED_MODEL))} may see the embedded model"
        return None if SEES_EMBEDDED_MODEL & {path.split("/")[1]} else rooms
    if path.startswith(("tests/", "fuzz/", "bench/")) and (
        (root / "tests" / target).exists() or (file.parent / target).exists()
    ):  # a helper of the tests; of which room decides as for a room's own header
        helper = root / "tests" / target
        home = (helper if helper.exists() else file.parent / target).resolve().relative_to(root.resolve())
        room = home.parts[1] if len(home.parts) > 2 else None
    elif "/" not in target or target.startswith("."):
        return f'"{target}" does not name a room: write "room/header.h"'
    else:
        room = target.split("/")[0]
    if room is None or room in allowed:
        return None
    return f'"{target}": may include from {", ".join(sorted(allowed)) or "no room"} only'


def names(text: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Line and full name of each type that the text defines at the level of a namespace, and of each type, constant
    and function in an unnamed one. Relies on the project's format: no indentation there, and
    `}  // namespace NAME` at the end."""
    found: list[tuple[int, str]] = []
    hidden: list[tuple[int, str]] = []
    namespaces: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if match := NAMESPACE.match(line):
            if "}" not in line:
                namespaces.append(match[1])
        elif line.startswith("}  // namespace") and namespaces:
            namespaces.pop()
        elif "" not in namespaces:
            if match := TYPE.match(line):
                found.append((number, "::".join([*namespaces, match[1]])))
        elif match := TYPE.match(line) or CONSTANT.match(line) or FUNCTION.match(line):
            hidden.append((number, "::".join([*filter(None, namespaces), match[1]])))
    return found, hidden


def problems(root: Path) -> list[str]:
    """Every include and link below `root` that goes against the arrows, and every second definition of a type,
    as "file:line: what"."""
    found = []
    homes: dict[str, list[str]] = {}
    defined: dict[str, str] = {}  # by the full name of a type
    folders = ("include", "src", "tests", "fuzz", "bench")
    for file in sorted(p for folder in folders for p in (root / folder).rglob("*") if p.suffix in SUFFIXES):
        path = file.relative_to(root).as_posix()
        text = file.read_text(encoding="utf-8")
        if path.startswith(("include/", "src/")) and file.suffix != ".inc":
            visible, hidden = names(text)
            if path.startswith("src/") and file.suffix == ".cpp" and not path.startswith("src/ops/"):
                for number, name in hidden:
                    key = f"{path.split('/')[1]}: {name}"
                    if defined.setdefault(key, path) != path:
                        found.append(f"{path}:{number}: {defined[key]} has {name} in its unnamed namespace too")
            for number, name in visible:
                if defined.setdefault(name, path) != path:
                    found.append(f"{path}:{number}: {defined[name]} defines {name} too")
        for number, line in enumerate(text.splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            problem = check_include(root, file, match[1] == "<", match[2])
            if problem:
                found.append(f"{path}:{number}: {problem}")
            for prefix, home, _ in ONLY_IN:
                if match[2].startswith(prefix) and path.startswith(home):
                    homes.setdefault(prefix, []).append(f"{path}:{number}")
    for prefix, _, most in ONLY_IN:
        files = sorted({where.split(":")[0] for where in homes.get(prefix, [])})
        if len(files) > most:
            found.append(f"{homes[prefix][-1]}: <{prefix}...> belongs in one file, and {files[0]} has it")
    cmake = root / "CMakeLists.txt"
    text = cmake.read_text(encoding="utf-8") if cmake.exists() else ""
    for match in ROOM_CALL.finditer(text):
        room = match[1]
        for linked in re.findall(r"hadal::(\w+)", match[2]):
            if linked not in ROOMS.get(room, set()):
                line = text[: match.start()].count("\n") + 1
                found.append(f"CMakeLists.txt:{line}: room {room} links hadal::{linked}")
    return found


def check_that_it_can_fail() -> None:
    """A tree with right and wrong lines of each kind must give exactly the wrong ones."""
    tree = {
        "CMakeLists.txt": "hadal_room(base DEPS fmt::fmt)\nhadal_room(tensor DEPS hadal::base hadal::ops)\n",
        "include/hadal/c.h": '#include <vector>\n#include <hadal/error.h>\n#include "base/log.h"\n#include <fmt/core.h>\n',
        "src/base/a.h": '#include <vector>\n  # include "tensor/dtype.h"\n',
        "src/model/b.cpp": '#include "base/log.h"\n#include "engine/a.h"\n#include <mpi.h>\n#include "text/utf8.h"\n',
        "src/dist/one.cpp": "#include <mpi.h>\n",
        "src/dist/two.cpp": "#include <mpi.h>\n",
        "src/text/d.cpp": '#include "embedded_model.h"\n#include "utf8.h"\n',
        "src/text/k.h": "namespace hadal {\nstruct Row;\nstruct Row {\n  struct Part {};\n};\n}  // namespace hadal\n",
        "src/text/l.cpp": "namespace hadal {\nnamespace {\nstruct Row {};\n}  // namespace\nstruct Part {};\n}  // namespace hadal\n",
        "src/text/o.cpp": "namespace hadal {\nnamespace {\nstruct Row {};\nconstexpr int kA = 1;\nint f(int a) {\n}\nint f(char a) {\n}\n}  // namespace\n}  // namespace hadal\n",
        "src/text/p.cpp": "namespace hadal {\nnamespace {\nconstexpr int kA = 2, kB = 1;\nint f(char a) {\n}\n}  // namespace\n}  // namespace hadal\n",
        "src/base/p.cpp": "namespace hadal {\nnamespace {\nconstexpr int kA = 2;\n}  // namespace\n}  // namespace hadal\n",
        "src/text/m.cpp": "namespace hadal::a {\nstruct Row {};\n}  // namespace hadal::a\n",
        "src/text/n.cpp": "namespace hadal {\nenum class Row { a };\n}  // namespace hadal\n",
        "src/attic/e.cpp": '#include "base/log.h"\n',
        "tests/helper.h": '#include "formats/safetensors.h"\n#include "model/model.h"\n',
        "tests/text/cases.h": "#include <string>\n",
        "tests/text/f_test.cpp": '#include "helper.h"\n#include "cases.h"\n#include "model/model.h"\n',
        "tests/tensor/g_test.cpp": '#include "text/cases.h"\n',
        "tests/cli/h_test.cpp": '#include "text/cases.h"\n#include "model/model.h"\n',
        "fuzz/i_fuzz.cpp": '#include "model/model.h"\n#include "cli/command.h"\n',
    }
    wrong = [
        "CMakeLists.txt:2",
        "fuzz/i_fuzz.cpp:2",
        "include/hadal/c.h:3",
        "include/hadal/c.h:4",
        "src/attic/e.cpp:1",
        "src/base/a.h:2",
        "src/dist/two.cpp:1",
        "src/model/b.cpp:2",
        "src/model/b.cpp:3",
        "src/model/b.cpp:4",
        "src/text/d.cpp:1",
        "src/text/d.cpp:2",
        "src/text/n.cpp:2",
        "src/text/o.cpp:3",
        "src/text/p.cpp:3",
        "src/text/p.cpp:4",
        "tests/helper.h:2",
        "tests/tensor/g_test.cpp:1",
        "tests/text/f_test.cpp:3",
    ]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for path, text in tree.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        found = sorted(problem.split(": ")[0] for problem in problems(root))
    if found != wrong:
        missed, false = sorted(set(wrong) - set(found)), sorted(set(found) - set(wrong))
        sys.exit(f"includes_test.py is broken: missed {missed}, complained without reason of {false}")


def main() -> int:
    check_that_it_can_fail()
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = problems(root)
    print("\n".join(found) if found else "every include follows the arrows, every name has one definition")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
