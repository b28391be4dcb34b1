"""Conversations and outputs of a model, made from a seed: each as a request of the three APIs, and as what the model
then writes. The same conversation means the same in all of them, as far as an API can say it."""

import json
from dataclasses import dataclass, field
from random import Random

DSML = "｜DSML｜"
APIS = ("chat", "messages", "responses")
WORDS = ["Hallo", "tea", "42", "x<y", "{}", "naïve", "🌍", "北京", "a\tb", "#", "\\n", '"q"', "`ls -la 2>&1`", "<b>", "&amp;",
         "</div>", "", " ", "end.", "tool", "<think", "｜", "null", "http://a/b?c=d&e"]
TYPES = [
    ("text", {"type": "string", "description": "what"}),
    ("n", {"type": "integer", "minimum": 0}),
    ("ratio", {"type": "number", "default": 1.0}),
    ("yes", {"type": "boolean"}),
    ("list", {"type": "array", "items": {"type": "string"}}),
    ("map", {"type": "object", "properties": {"k": {"type": "string"}}}),
    ("unit", {"type": "string", "enum": ["a", "b"]}),
    ("any", {}),
]


@dataclass
class Call:
    id: str
    name: str
    arguments: dict


@dataclass
class Turn:
    role: str  # system, user, assistant, tool
    texts: list[str]
    reasoning: str | None = None
    calls: list[Call] = field(default_factory=list)
    call_id: str = ""


@dataclass
class Case:
    turns: list[Turn]
    tools: list[dict]  # of the chat API
    tool_choice: str | None = None  # auto, none, required
    thinking: bool | None = None
    effort: str | None = None
    json_object: bool = False
    prefix: bool = False
    stop: list[str] = field(default_factory=list)
    stream: bool = True
    output: str = ""

    def thinks(self) -> bool:
        return self.thinking is not False and self.effort != "none"


class Generator:
    def __init__(self, seed: int):
        self.random = Random(seed)
        self.calls = 0

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def text(self, most: int = 6) -> str:
        r = self.random
        return r.choice([" ", " ", "\n", "\n\n"]).join(r.choice(WORDS) for _ in range(r.randint(1, most))).strip("\n") or "w"

    def value(self, schema: dict):
        r = self.random
        kind = schema.get("type") or r.choice(["string", "integer", "boolean", "null"])
        if "enum" in schema:
            return r.choice(schema["enum"])
        return {
            "string": lambda: self.text(),
            "integer": lambda: r.choice([0, 7, -3, 2**53]),
            "number": lambda: r.choice([0.5, 1.0, -2.25, 3]),
            "boolean": lambda: self.chance(0.5),
            "null": lambda: None,
            "array": lambda: [self.text(2) for _ in range(r.randint(0, 3))],
            "object": lambda: {"k": self.text(2)} if self.chance(0.7) else {},
        }[kind]()

    def tool(self, i: int) -> dict:
        r = self.random
        properties = dict(r.sample(TYPES, r.randint(1, 5)))
        parameters = {"type": "object", "properties": properties}
        if properties and self.chance(0.5):
            parameters["required"] = [next(iter(properties))]
        function = {"name": r.choice(["get", "run_it", "mcp__look-up"]) + str(i), "description": self.text(),
                    "parameters": parameters}
        return {"type": "function", "function": function}

    def call(self, tools: list[dict]) -> Call:
        function = self.random.choice(tools)["function"]
        properties = function["parameters"]["properties"]
        arguments = {k: self.value(s) for k, s in properties.items() if self.chance(0.8)}
        if not arguments and properties:
            arguments = {k: self.value(s) for k, s in properties.items()}
        self.calls += 1
        return Call(f"call_{self.calls:04}", function["name"], arguments)

    def conversation(self, tools: list[dict], thinking: bool) -> list[Turn]:
        r = self.random
        turns = []
        if self.chance(0.6):
            turns.append(Turn("system", [self.text()]))
        for _ in range(r.choice([0, 0, 1, 1, 2, 3])):
            turns.append(Turn("user", [self.text() for _ in range(r.choice([1, 1, 1, 2]))]))
            while tools and self.chance(0.5):
                calls = [self.call(tools) for _ in range(r.choice([1, 1, 2, 3]))]
                turns.append(Turn("assistant", [self.text()] if self.chance(0.5) else [], self.reasoning(thinking), calls))
                for call in r.sample(calls, len(calls)):
                    turns.append(Turn("tool", [self.text()], call_id=call.id))
                if self.chance(0.2):
                    turns.append(Turn("user", [self.text()]))
            turns.append(Turn("assistant", [self.text()], self.reasoning(thinking)))
        turns.append(Turn("user", [self.text() for _ in range(r.choice([1, 1, 2]))]))
        if tools and self.chance(0.3):
            calls = [self.call(tools) for _ in range(r.choice([1, 2]))]
            turns.append(Turn("assistant", [], self.reasoning(thinking), calls))
            turns += [Turn("tool", [self.text()], call_id=call.id) for call in calls]
        return turns

    def reasoning(self, thinking: bool) -> str | None:
        return self.text() if thinking and self.chance(0.7) else None

    def case(self) -> Case:
        r = self.random
        tools = [self.tool(i) for i in range(r.choice([0, 1, 1, 2, 3]))]
        thinking = r.choice([None, None, True, False])
        case = Case(turns=self.conversation(tools, thinking is not False), tools=tools, thinking=thinking)
        if self.chance(0.5):
            case.effort = r.choice(["low", "high", "max", "minimal", "medium", "xhigh", "none"])
        if tools and self.chance(0.4):
            case.tool_choice = r.choice(["auto", "none", "required"])
            if case.tool_choice == "required":
                case.thinking = False
        if self.chance(0.15):
            case.stop = [r.choice(["end", "42", "<b>", "tea", "北京"])]
        if self.chance(0.1) and not tools:
            case.json_object = True
            case.turns[-1].texts[0] += " as json"
        if self.chance(0.2) and not tools and not case.json_object:
            case.prefix = True
            case.turns.append(Turn("assistant", ["Once upon"]))
        case.stream = self.chance(0.8)
        case.output = self.output(case)
        return case

    # What a model writes --------------------------------------------------------------------------------------

    def parameter(self, key: str, value) -> str:
        is_string = isinstance(value, str)
        text = value if is_string else json.dumps(value, ensure_ascii=False)
        return f'<{DSML}parameter name="{key}" string="{str(is_string).lower()}">{text}</{DSML}parameter>'

    def invoke(self, call: Call) -> str:
        parameters = "\n".join(self.parameter(k, v) for k, v in call.arguments.items())
        return f'<{DSML}invoke name="{call.name}">\n{parameters}\n</{DSML}invoke>'

    def output(self, case: Case) -> str:
        r = self.random
        if case.json_object:
            return ("so</think>" if case.thinks() else "") + json.dumps({"a": self.text(), "b": [1, None]})
        calls = [self.call(case.tools) for _ in range(r.choice([1, 1, 2, 3]))] if case.tools else []
        if case.tool_choice == "required":
            return "\n".join(self.invoke(call) for call in calls) + f"\n</{DSML}tool_calls>"
        out = (self.text(12) + "</think>") if case.thinks() and not case.prefix else ""
        called = calls and self.chance(0.6) and case.tool_choice != "none"
        if not called or self.chance(0.5):
            out += self.text(12)
        if called:
            block = "\n".join(self.invoke(call) for call in calls)
            out += f"\n\n<{DSML}tool_calls>\n{block}\n</{DSML}tool_calls>"
        return out

    def damaged(self, output: str) -> str:
        """What a model may write instead, in the ways that have one meaning only."""
        r = self.random
        return r.choice([
            lambda: output.replace("</think>", r.choice(["", "</think></think>", "\n</think>\n", "</think>\n\n"]), 1),
            lambda: output + r.choice(["text", "\n\nmore", "</think>"]),
            lambda: output.replace(f"\n\n<{DSML}tool_calls>", r.choice(["", "\n", "\n\n\n"]) + f"<{DSML}tool_calls>", 1),
            lambda: output.replace(f"</{DSML}tool_calls>", "", 1),
            lambda: output.replace(f"</{DSML}parameter>\n", f"</{DSML}parameter>"),
        ])()


def parts(texts: list[str], kind: str):
    return texts[0] if len(texts) == 1 else [{"type": kind, "text": text} for text in texts]


def chat_request(case: Case) -> dict:
    messages = []
    for turn in case.turns:
        message = {"role": turn.role, "content": parts(turn.texts, "text") if turn.texts else None}
        if turn.reasoning is not None:
            message["reasoning_content"] = turn.reasoning
        if turn.calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function",
                 "function": {"name": c.name, "arguments": json.dumps(c.arguments, ensure_ascii=False)}} for c in turn.calls]
        if turn.role == "tool":
            message["tool_call_id"] = turn.call_id
        messages.append(message)
    if case.prefix:
        messages[-1]["prefix"] = True
    body = {"model": "m", "messages": messages, "stream": case.stream}
    if case.tools:
        body["tools"] = case.tools
    if case.tool_choice:
        body["tool_choice"] = case.tool_choice
    if case.thinking is not None:
        body["thinking"] = {"type": "enabled" if case.thinking else "disabled"}
    if case.effort:
        body["reasoning_effort"] = case.effort
    if case.json_object:
        body["response_format"] = {"type": "json_object"}
    if case.stop:
        body["stop"] = case.stop
    return body


def messages_request(case: Case) -> dict:
    messages = []
    for turn in case.turns:
        if turn.role == "system":
            continue
        role = "user" if turn.role == "tool" else turn.role
        blocks = [{"type": "text", "text": text} for text in turn.texts]
        if turn.reasoning is not None:
            blocks.insert(0, {"type": "thinking", "thinking": turn.reasoning, "signature": "s"})
        blocks += [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in turn.calls]
        if turn.role == "tool":
            blocks = [{"type": "tool_result", "tool_use_id": turn.call_id, "content": turn.texts[0]}]
        if messages and messages[-1]["role"] == role == "user":
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": blocks})
    body = {"model": "m", "max_tokens": 5000, "messages": messages, "stream": case.stream}
    if case.turns[0].role == "system":
        body["system"] = case.turns[0].texts[0]
    if case.tools:
        body["tools"] = [
            {"name": f["name"], **({"description": f["description"]} if "description" in f else {}),
             "input_schema": f["parameters"]} for f in (t["function"] for t in case.tools)]
    if case.tool_choice:
        body["tool_choice"] = {"type": {"required": "any"}.get(case.tool_choice, case.tool_choice)}
    if case.thinking is not None:
        body["thinking"] = {"type": "enabled", "budget_tokens": 1024} if case.thinking else {"type": "disabled"}
    if case.effort and case.effort not in ("none", "minimal"):
        body["output_config"] = {"effort": case.effort}
    if case.stop:
        body["stop_sequences"] = case.stop
    return body


def responses_request(case: Case) -> dict:
    items = []
    for turn in case.turns:
        if turn.role == "system":
            continue
        if turn.role == "tool":
            items.append({"type": "function_call_output", "call_id": turn.call_id, "output": turn.texts[0]})
            continue
        if turn.reasoning is not None:
            items.append({"type": "reasoning", "id": "rs_1", "summary": [],
                          "content": [{"type": "reasoning_text", "text": turn.reasoning}]})
        if turn.texts:
            kind = "output_text" if turn.role == "assistant" else "input_text"
            items.append({"type": "message", "role": turn.role,
                          "content": [{"type": kind, "text": text} for text in turn.texts]})
        items += [{"type": "function_call", "call_id": c.id, "name": c.name,
                   "arguments": json.dumps(c.arguments, ensure_ascii=False)} for c in turn.calls]
    body = {"model": "m", "input": items, "stream": case.stream}
    if case.turns[0].role == "system":
        body["instructions"] = case.turns[0].texts[0]
    if case.tools:
        body["tools"] = [{"type": "function", **tool["function"]} for tool in case.tools]
    if case.tool_choice:
        body["tool_choice"] = case.tool_choice
    if case.thinking is False:
        body["reasoning"] = {"effort": "none"}
    elif case.effort and case.thinking is None:
        body["reasoning"] = {"effort": case.effort}
    if case.json_object:
        body["text"] = {"format": {"type": "json_object"}}
    return body


REQUESTS = {"chat": chat_request, "messages": messages_request, "responses": responses_request}
