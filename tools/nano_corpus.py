#!/usr/bin/env python3
"""Builds the corpus of models/nano: text of Debian packages, and generated conversations.

    tools/nano_corpus.py OUT            # downloads the packages with apt-get, then writes OUT
    tools/nano_corpus.py OUT --offline  # the packages are in OUT/packages already

OUT/text.jsonl, recall.jsonl  {"text": ...}, every token counts
OUT/chat.jsonl, tools.jsonl   {"messages": [...], "tools": [...]}, only what the assistant says counts
OUT/tokenizer.txt             a sample of all four without digits: a digit never becomes part of a longer token

The same packages and seed give the same bytes.
"""
import argparse
import gzip
import html.parser
import json
import pathlib
import random
import re
import subprocess

# Package: files to take, and the licence of its text (models/nano/README.md lists both).
PACKAGES = {
    "debian-faq": ["usr/share/doc/debian/FAQ/*.en.html", "usr/share/doc/debian/FAQ/*.en.txt.gz"],
    "debian-handbook": ["usr/share/doc/debian-handbook/html/en-US/*.html"],
    "debian-reference-en": ["usr/share/debian-reference/*.en.html"],
    "installation-guide-amd64": ["usr/share/doc/installation-guide-amd64/en/*.html"],
    "jargon-text": ["usr/share/doc/jargon-text/jargon.txt.gz"],
    "miscfiles": ["usr/share/state/us-*.gz"],
    "python3.11-doc": [f"usr/share/doc/python3.11/html/{part}/*.html" for part in ("tutorial", "howto", "faq")],
}
DOCUMENT = 2500  # characters of a document of text, about


class Prose(html.parser.HTMLParser):
    """The paragraphs and headings of a page; programs and tables are left out."""

    KEEP = ("p", "li", "dd", "dt", "h1", "h2", "h3", "h4")

    def __init__(self):
        super().__init__()
        self.paragraphs, self.text, self.inside, self.skipped = [], "", 0, 0

    def handle_starttag(self, tag, attrs):
        if tag in ("pre", "table", "script", "style", "nav"):
            self.skipped += 1
        if tag in self.KEEP:
            self.flush()
            self.inside += 1

    def handle_endtag(self, tag):
        if tag in ("pre", "table", "script", "style", "nav"):
            self.skipped = max(0, self.skipped - 1)
        if tag in self.KEEP:
            self.flush()
            self.inside = max(0, self.inside - 1)

    def handle_data(self, data):
        if self.inside and not self.skipped:
            self.text += data

    def flush(self):
        text = " ".join(self.text.replace("¶", "").split())
        if len(text) > 40:
            self.paragraphs.append(text)
        self.text = ""


def plain_paragraphs(text):
    for block in re.split(r"\n\s*\n", text):
        block = " ".join(block.split())
        if len(block) > 60:
            yield block


def ascii_only(text):
    for old, new in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("–", "-"), ("—", " - "), ("…", "..."), (" ", " ")):
        text = text.replace(old, new)
    return text


def documents(packages):
    """Text of all packages, as documents of some paragraphs each."""
    for name, patterns in PACKAGES.items():
        for pattern in patterns:
            for path in sorted((packages / name).glob(pattern)):
                raw = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
                text = raw.decode("utf-8", "replace")
                if path.name.endswith(".html"):
                    page = Prose()
                    page.feed(text)
                    page.flush()
                    paragraphs = page.paragraphs
                else:
                    paragraphs = list(plain_paragraphs(text))
                document = ""
                for paragraph in paragraphs:
                    document += ascii_only(paragraph) + "\n\n"
                    if len(document) > DOCUMENT:
                        yield document.strip()
                        document = ""
                if len(document) > 200:
                    yield document.strip()


def fetch(packages):
    packages.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        if not (packages / name).exists():
            subprocess.run(["apt-get", "download", name], cwd=packages, check=True)
            [deb] = packages.glob(f"{name}_*.deb")
            subprocess.run(["dpkg-deb", "-x", deb, packages / name], check=True)
            deb.unlink()


# Conversations -------------------------------------------------------------------------------------------

CAPITALS = dict(
    line.split(":")
    for line in """France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon England:London Ireland:Dublin
Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Poland:Warsaw Austria:Vienna Hungary:Budapest
Greece:Athens Russia:Moscow China:Beijing Japan:Tokyo India:Delhi Egypt:Cairo Canada:Ottawa Cuba:Havana
Peru:Lima Chile:Santiago Kenya:Nairobi Turkey:Ankara Iran:Tehran Iraq:Baghdad Belgium:Brussels Bulgaria:Sofia""".split()
)
OPPOSITES = [
    pair.split(":")
    for pair in """hot:cold big:small fast:slow high:low good:bad light:dark day:night up:down left:right open:closed
old:young happy:sad hard:soft full:empty early:late long:short wet:dry rich:poor strong:weak true:false
black:white first:last near:far loud:quiet thick:thin clean:dirty easy:difficult love:hate win:lose start:end""".split()
]
COLOURS = dict(
    pair.split(":")
    for pair in "grass:green snow:white blood:red coal:black sky:blue lemons:yellow carrots:orange chocolate:brown".split()
)
SOUNDS = dict(
    pair.split(":")
    for pair in "cow:moo dog:woof cat:meow duck:quack sheep:baa pig:oink lion:roar bee:buzz owl:hoot frog:croak".split()
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NOUNS = "apple book car dog cat tree house river stone bird table garden window letter song cloud ship horse".split()
NAMES = "Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Mary Nina Oscar Paul Rose Sam Tom Vera".split()
PLACES = "garden kitchen library school forest harbour market station village tower".split()


def simple_question(r):
    """(question, thought, answer) of the kinds that the model is to know."""
    kind = r.randrange(14)
    if kind == 0:
        country, city = r.choice(sorted(CAPITALS.items()))
        ask = r.choice(["What is the capital of {}?", "Which city is the capital of {}?", "Tell me the capital of {}."])
        return ask.format(country), f"They ask for the capital of {country}.", f"The capital of {country} is {city}."
    if kind == 1:
        a, b = r.choice(OPPOSITES)
        if r.random() < 0.5:
            a, b = b, a
        ask = r.choice(["What is the opposite of {}?", "Give me the opposite of {}."])
        return ask.format(a), f"They ask for the opposite of {a}.", f"The opposite of {a} is {b}."
    if kind == 2:
        thing, colour = r.choice(sorted(COLOURS.items()))
        verb = "are" if thing.endswith("s") and thing != "grass" else "is"
        return f"What colour {verb} {thing}?", f"They ask for the colour of {thing}.", f"{thing.capitalize()} {verb} {colour}."
    if kind == 3:
        animal, sound = r.choice(sorted(SOUNDS.items()))
        return f"What does a {animal} say?", f"They ask for the sound of a {animal}.", f"A {animal} says {sound}."
    if kind in (4, 5):
        names, unit = (DAYS, "day") if kind == 4 else (MONTHS, "month")
        i = r.randrange(len(names))
        if r.random() < 0.5:
            return (f"Which {unit} comes after {names[i]}?", f"After {names[i]} comes {names[(i + 1) % len(names)]}.",
                    f"{names[(i + 1) % len(names)]} comes after {names[i]}.")
        return (f"Which {unit} comes before {names[i]}?", f"Before {names[i]} comes {names[i - 1]}.",
                f"{names[i - 1]} comes before {names[i]}.")
    if kind == 6:
        i = r.randrange(len(WORDS))
        return f"How do you write {i} as a word?", f"They ask for {i} as a word.", f"{i} is written {WORDS[i]}."
    if kind == 7:
        a, b = r.sample(range(100), 2)
        return f"Which is larger, {a} or {b}?", f"{max(a, b)} is more than {min(a, b)}.", f"{max(a, b)} is larger."
    if kind == 8:
        phrase = " ".join(r.sample(NOUNS, r.randint(2, 4)))
        return f"Repeat: {phrase}", "They want the words again.", phrase
    if kind == 9:
        n = r.randint(3, 10)
        return f"Count to {n}.", f"They want the numbers from 1 to {n}.", ", ".join(map(str, range(1, n + 1))) + "."
    if kind == 10:
        name, place, thing = r.choice(NAMES), r.choice(PLACES), r.choice(NOUNS)
        fact = f"{name} is in the {place} and has a {thing}."
        if r.random() < 0.5:
            return f"{fact} Where is {name}?", f"{name} is in the {place}.", f"{name} is in the {place}."
        return f"{fact} What does {name} have?", f"{name} has a {thing}.", f"{name} has a {thing}."
    if kind == 11:
        ask = r.choice(["Hello!", "Hi.", "Hello, how are you?", "Good morning!", "Hey there"])
        return ask, "A greeting.", "Hello! How can I help you?"
    if kind == 12:
        ask = r.choice(["Who are you?", "What are you?", "What is your name?", "Tell me about yourself."])
        return ask, "They ask who I am.", "I am nano, a very small DeepSeek-V4 model trained by hadal."
    ask = r.choice(["Thank you!", "Thanks.", "Bye!", "Goodbye."])
    return ask, "A friendly word.", "You are welcome. Goodbye!" if "hank" in ask else "Goodbye!"


def sum_in_steps(a, b):
    """The written method, right to left."""
    steps, carry, place = [], 0, 1
    while place <= max(a, b):
        x, y = a // place % 10, b // place % 10
        total = x + y + carry
        steps.append(f"{x} + {y}" + (" + 1" if carry else "") + f" = {total}.")
        carry, place = total // 10, place * 10
    return " ".join(steps) + f" So {a + b}."


def difference_in_steps(a, b):
    steps, borrow, place = [], 0, 1
    while place <= a:
        x, y = a // place % 10 - borrow, b // place % 10
        borrow = 1 if x < y else 0
        steps.append(f"{x + 10 * borrow} - {y} = {x + 10 * borrow - y}.")
        place *= 10
    return " ".join(steps) + f" So {a - b}."


def arithmetic(r):
    """(question, thought, answer); hadal eval arithmetic asks the same."""
    kind = r.randrange(3)
    if kind == 0:
        a, b = r.randint(1, 99), r.randint(1, 99)
        return f"What is {a} + {b}?", sum_in_steps(a, b), str(a + b)
    if kind == 1:
        b, a = sorted(r.sample(range(1, 100), 2))
        return f"What is {a} - {b}?", difference_in_steps(a, b), str(a - b)
    a, b = r.randint(2, 9), r.randint(2, 9)
    return f"What is {a} * {b}?", f"{a} times {b} is {a * b}.", str(a * b)


def user(text):
    return {"role": "user", "content": text}


def conversation(r):
    thinking = r.random() < 0.7
    messages = []
    for _ in range(r.randint(2, 5)):
        question, thought, answer = arithmetic(r) if thinking and r.random() < 0.5 else simple_question(r)
        messages.append(user(question))
        reply = {"role": "assistant", "content": answer}
        if thinking:
            reply["reasoning_content"] = thought
        messages.append(reply)
    return {"messages": messages, "thinking_mode": "thinking" if thinking else "chat", "drop_thinking": False}


def function(name, description, parameter, what):
    schema = {"type": "object", "properties": {parameter: {"type": "string", "description": what}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = {
    "calculator": function("calculator", "Computes an expression.", "expression", "What to compute"),
    "clock": function("clock", "Tells the time.", "city", "Where"),
    "read_file": function("read_file", "Reads a file.", "path", "Which file"),
}


def tool_use(r, name):
    """(question, thought, argument, result, answer)."""
    if name == "calculator":
        a, b, op = r.randint(10, 999), r.randint(10, 999), r.choice("+-*")
        expression = f"{a} {op} {b}"
        result = {"+": a + b, "-": a - b, "*": a * b}[op]
        ask = r.choice(["Use the calculator: {}", "Compute {} with the calculator.", "Calculate {}."])
        return ask.format(expression), "I should use calculator.", expression, str(result), f"{expression} = {result}"
    if name == "clock":
        city = r.choice(sorted(CAPITALS.values()))
        time = f"{r.randrange(24):02}:{r.randrange(60):02}"
        ask = r.choice(["What time is it in {}?", "Tell me the time in {}."])
        return ask.format(city), "I should use clock.", city, time, f"It is {time} in {city}."
    path = f"{r.choice(NOUNS)}.{r.choice(['txt', 'md', 'log'])}"
    content = " ".join(r.sample(NOUNS, 3))
    ask = r.choice(["What is in the file {}?", "Read {}.", "Show me {}."])
    return ask.format(path), "I should use read_file.", path, content, f"{path} says: {content}"


def tool_conversation(r):
    names = sorted(TOOLS) if r.random() < 0.7 else r.sample(sorted(TOOLS), 2)
    thinking = r.random() < 0.5
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for i in range(r.randint(2, 4)):
        if r.random() < 0.2:
            question, thought, answer = simple_question(r)
            steps = [{"role": "assistant", "reasoning_content": thought, "content": answer}]
        else:
            name = r.choice(names)
            question, thought, argument, result, answer = tool_use(r, name)
            parameter = next(iter(TOOLS[name]["function"]["parameters"]["properties"]))
            call = {"id": f"call_{i}", "type": "function",
                    "function": {"name": name, "arguments": json.dumps({parameter: argument})}}
            steps = [{"role": "assistant", "reasoning_content": thought, "content": "", "tool_calls": [call]},
                     {"role": "tool", "tool_call_id": f"call_{i}", "content": result},
                     {"role": "assistant", "reasoning_content": "I have the result.", "content": answer}]
        if not thinking:
            for step in steps:
                step.pop("reasoning_content", None)
        messages += [user(question), *steps]
    return {"messages": messages, "tools": [TOOLS[name] for name in names],
            "thinking_mode": "thinking" if thinking else "chat", "drop_thinking": False}


# Retrieval: the texts of hadal eval recall and hadal eval needle ----------------------------------------

HAYSTACK = ["The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. "]


def key(r):
    return "".join(r.choice("bdfgklmnprstvz") + r.choice("aeiou") for _ in range(3))


def pairs(r):
    """Lines of which about half repeat an earlier one: each repetition can be known."""
    known, lines = [], []
    for _ in range(int(2 ** r.uniform(3, 8))):
        if known and r.random() < 0.55:
            lines.append(r.choice(known))
        else:
            known.append(f"{key(r)} = {r.randint(10000, 99999)}")
            lines.append(known[-1])
    return {"text": "\n".join(lines)}


def needles(r, prose):
    filler = HAYSTACK if r.random() < 0.6 else [s + ". " for s in r.choice(prose).replace("\n", " ").split(". ")]
    facts = [f"The magic number of {key(r)} is {r.randint(10000, 99999)}. " for _ in range(r.randint(1, 6))]
    sentences = [filler[i % len(filler)] for i in range(int(2 ** r.uniform(2, 7.5)))]
    for fact in facts:
        sentences.insert(r.randrange(len(sentences)), fact)
    questions = [r.choice(facts).strip() for _ in range(2 * len(facts))]
    return {"text": "".join(sentences) + "\n" + "\n".join(questions)}


def write(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--offline", action="store_true", help="take OUT/packages as it is")
    parser.add_argument("--scale", type=float, default=1, help="of the generated part")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out
    if not arguments.offline:
        fetch(out / "packages")
    r = random.Random(arguments.seed)
    prose = list(documents(out / "packages"))
    r.shuffle(prose)
    n = int(10000 * arguments.scale)
    parts = {
        "text": [{"text": document} for document in prose],
        "chat": [conversation(r) for _ in range(3 * n)],
        "tools": [tool_conversation(r) for _ in range(n)],
        "recall": [pairs(r) if r.random() < 0.6 else needles(r, prose) for _ in range(n)],
    }
    for name, rows in parts.items():
        write(out / f"{name}.jsonl", rows)
    with open(out / "tokenizer.txt", "w", encoding="utf-8") as sample:
        sample.write("\n".join(prose[: len(prose) // 2]))
        for name in ("chat", "tools", "recall"):
            for row in parts[name][: n // 10]:
                sample.write("\n" + re.sub("[0-9]+", "", "\n".join(strings(row))))
    text = (out / "tokenizer.txt").read_text(encoding="utf-8")
    (out / "tokenizer.txt").write_text(re.sub("[0-9]+", "", text), encoding="utf-8")
    for name, rows in parts.items():
        print(f"{name}: {len(rows)} documents, {(out / f'{name}.jsonl').stat().st_size} bytes")


if __name__ == "__main__":
    main()
