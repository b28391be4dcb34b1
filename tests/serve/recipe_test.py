"""hadal's server beside deepseek-recipe, DeepSeek's own library for the same work: the prompt of a request, and the events
of an answer, over generated conversations, in all three APIs. Where the two differ and hadal means it, the difference is
in DELIBERATE below and in docs/serving.md."""

import json
import re
import subprocess

import pytest
from recipe_cases import APIS, DSML, REQUESTS, Case, Generator
from server_process import BUILD

recipe = pytest.importorskip("deepseek_recipe")

REQUEST = {"chat": recipe.ChatCompletionRequest, "messages": recipe.MessagesRequest, "responses": recipe.ResponsesRequest}
RESPONSE = {"chat": recipe.ChatCompletionResponse, "messages": recipe.MessagesResponse, "responses": recipe.ResponsesResponse}
# Its V4 encoding is that of the releases from 0731 on.
OPTIONS = recipe.ConversionOptions().with_model_alias("m", recipe.ModelVersion.DeepseekV4Pro)


def of_recipe(api: str, body: dict, output: str, cut: bool = False) -> dict:
    try:
        converted = REQUEST[api](json.dumps(body)).convert(OPTIONS)
    except (ValueError, recipe.ConversionError) as error:
        return {"status": 400, "error": str(error)}
    prompt = recipe.DeepseekV4Encoding().render_conversation(converted.conversation).prompt
    processor = recipe.StreamProcessor(REQUEST[api].chunk_generator(converted, "id", "m"), converted.parsing_options)
    reason = recipe.InferenceFinishReason
    events = processor.push(recipe.InferenceChunk.ready(prompt_usage=recipe.PromptUsage(prompt_tokens=5)))
    events += processor.push(recipe.InferenceChunk.text(output, 1))
    if not processor.finished:
        events += processor.push(recipe.InferenceChunk.finish(reason.Length if cut else reason.Stop))
    events += processor.finish()
    parsed = [json.loads(event.to_json()) for event in events]
    whole = RESPONSE[api]("id", "m", 0, 5, 0)
    for event in events:
        whole.accumulate(event)
    return {"status": 200, "prompt": prompt, "events": parsed, "whole": json.loads(whole.to_json())}


def of_hadal(cases: list[tuple[str, dict, str]]) -> list[dict]:
    lines = "\n".join(json.dumps({"api": a, "body": json.dumps(b), "output": o}) for a, b, o in cases)
    run = subprocess.run([BUILD / "tests" / "rehearse"], input=lines, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    for (_, body, _), answer in zip(cases, answers, strict=True):
        if answer["status"] != 200:
            continue
        if body.get("stream"):
            lines = [line[6:] for line in answer["answer"].split("\n") if line.startswith("data: ")]
            answer["events"] = [json.loads(line) for line in lines if line != "[DONE]"]
        else:
            answer["whole"] = json.loads(answer["answer"])
    return answers


def said(api: str, events: list[dict]) -> list[list]:
    """What a client has understood in the end: stretches of reasoning and content, calls, the reason of the end."""
    heard: list[list] = []

    def text(kind, more):
        if more and heard and heard[-1][0] == kind:
            heard[-1][1] += more
        elif more:
            heard.append([kind, more])

    for event in events:
        if api == "chat":
            for choice in event["choices"]:
                delta = choice["delta"]
                text("reasoning", delta.get("reasoning_content"))
                text("content", delta.get("content"))
                for call in delta.get("tool_calls") or []:
                    if "id" in call:
                        heard.append(["call", call["function"]["name"], ""])
                    heard[-1][2] += call["function"]["arguments"]
                if choice["finish_reason"]:
                    heard.append(["finish", choice["finish_reason"]])
        elif api == "messages":
            delta = event.get("delta", {})
            if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
                heard.append(["call", event["content_block"]["name"], ""])
            text("reasoning", delta.get("thinking"))
            text("content", delta.get("text"))
            if "partial_json" in delta:
                heard[-1][2] += delta["partial_json"]
            if event["type"] == "message_delta":
                heard.append(["finish", delta["stop_reason"], delta["stop_sequence"]])
        else:
            kind = event["type"].removeprefix("response.")
            if kind in ("reasoning_text.delta", "output_text.delta"):
                text("reasoning" if kind.startswith("r") else "content", event["delta"])
            elif kind == "output_item.added" and event["item"]["type"] == "function_call":
                heard.append(["call", event["item"]["name"], ""])
            elif kind == "function_call_arguments.delta":
                heard[-1][2] += event["delta"]
            elif kind in ("completed", "incomplete", "failed"):
                heard.append(["finish", kind])
    return heard


def shape(api: str, events: list[dict]) -> list:
    """The kinds of events in their order, one for each run of deltas. Pings come when they like; a block of thinking
    without a thought is an event pair that hadal does not send."""
    kinds: list = []
    for event in events:
        if api == "chat":
            kind = [sorted(k for k, v in c["delta"].items() if v) for c in event["choices"]]
        else:
            kind = event["type"]
        if kind != "ping" and kinds[-1:] != [kind]:
            kinds.append(kind)
    if api == "messages" and events[1].get("content_block", {}).get("type") == "thinking":
        if not any(event.get("delta", {}).get("thinking") for event in events):
            assert kinds[1:4] == ["content_block_start", "content_block_delta", "content_block_stop"]
            del kinds[1:4]
    return kinds


def answer_of(api: str, whole: dict) -> list:
    """The parts of an answer that came in one piece."""
    if api == "chat":
        choice = whole["choices"][0]
        message = choice["message"]
        calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or []]
        return [message.get("reasoning_content") or "", message["content"] or "", calls, choice["finish_reason"]]
    if api == "messages":
        parts = [[b["type"], b.get("thinking") or b.get("text") or [b.get("name"), b.get("input")]] for b in whole["content"]
                 if b.get("thinking") != ""]
        return [parts, whole["stop_reason"], whole["stop_sequence"]]
    items = []
    for item in whole["output"]:
        value = [item.get("name"), item.get("arguments")]
        items.append([item["type"], item["content"][0]["text"] if "content" in item else value])
    return [items, whole["status"]]


def apis_of(case: Case):
    # It knows prefixes in one API only, and takes no notice of `any`.
    if case.prefix:
        return ["chat"]
    return [api for api in APIS if not (api == "messages" and case.tool_choice == "required")]


def test_prompts_and_answers():
    cases = []
    for seed in range(230):
        case = Generator(seed).case()
        cases += [(api, REQUESTS[api](case), case.output) for api in apis_of(case)]
    assert len(cases) > 500
    for (api, body, output), ours in zip(cases, of_hadal(cases), strict=True):
        theirs = of_recipe(api, body, output)
        assert (ours["status"], theirs["status"]) == (200, 200), (api, body, ours, theirs)
        assert ours["prompt"] == theirs["prompt"], (api, body)
        if body["stream"]:
            assert said(api, ours["events"]) == said(api, theirs["events"]), (api, body, output)
            assert shape(api, ours["events"]) == shape(api, theirs["events"]), (api, body, output)
        else:
            assert answer_of(api, ours["whole"]) == answer_of(api, theirs["whole"]), (api, body, output)


def test_damaged_outputs():
    cases = []
    for seed in range(1000, 1200):
        generator = Generator(seed)
        case = generator.case()
        if not case.prefix and not case.json_object and not case.stop:
            case.stream = True
            output = generator.damaged(case.output)
            cases += [(api, REQUESTS[api](case), output) for api in apis_of(case)]
    assert len(cases) > 300
    for (api, body, output), ours in zip(cases, of_hadal(cases), strict=True):
        theirs = of_recipe(api, body, output)
        assert said(api, ours["events"]) == said(api, theirs["events"]), (api, body, output)


def test_outputs_cut_off_anywhere():
    cases = []
    for seed in range(2000, 2200):
        generator = Generator(seed)
        case = generator.case()
        if not case.prefix and not case.json_object and not case.stop:
            case.stream = True
            output = case.output[: generator.random.randint(0, len(case.output))]
            cases += [(api, REQUESTS[api](case), output) for api in apis_of(case)]
    for (api, body, output), ours in zip(cases, of_hadal(cases), strict=True):
        mine = said(api, ours["events"])[:-1]
        theirs = said(api, of_recipe(api, body, output, cut=True)["events"])[:-1]
        if len([e for e in theirs if e[0] == "call"]) > len([e for e in mine if e[0] == "call"]):
            theirs.pop()  # hadal tells the name of a call when the tag after it begins
        elif mine and mine[-1][0] == "call":  # and a value that must be checked first when it is complete
            assert theirs[-1][2].startswith(mine[-1][2]), (api, body, output)
            theirs[-1][2] = mine[-1][2]
        if theirs and theirs[-1][0] != "call":  # the library lets the beginning of a tag through
            whole = theirs[-1][1]
            theirs[-1][1] = re.sub(r"\n*<\uff5c?(D(S(ML?)?)?)?$|\n*</(t(h(i(n(k)?)?)?)?)?$", "", whole)
            if mine and mine[-1][1] == whole:
                theirs[-1][1] = whole
            theirs = [part for part in theirs if part[1]]
        assert mine == theirs, (api, body, output)


USER = [{"role": "user", "content": "x"}]
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = [*USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
OFF = {"thinking": {"type": "disabled"}}


@pytest.mark.parametrize("body", [
    {"messages": []}, {"messages": [{"role": "wizard", "content": "x"}]}, {"messages": "hi"}, {},
    {"messages": [{"role": "user", "content": 5}]}, {"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]},
    {"messages": [*USER, {"role": "assistant", "content": "x", "prefix": True}, *USER]},
    {"messages": USER, "temperature": 3}, {"messages": USER, "top_p": 1.5}, {"messages": USER, "max_tokens": 0},
    {"messages": USER, "max_tokens": -1}, {"messages": USER, "max_tokens": 10**9}, {"messages": USER, "n": 200},
    {"messages": USER, "stop": 5}, {"messages": USER, "top_logprobs": 3}, {"messages": USER, "tools": [{"type": "function"}]},
    {"messages": USER, "tools": TOOLS, "tool_choice": "sometimes"},
    {"messages": USER, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}, **OFF},
    {"messages": USER, "tools": [{"type": "function", "function": {"name": ""}}]},
    {"messages": USER, "tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
    {"messages": USER, "reasoning_effort": "extreme"}, {"messages": USER, "thinking": {"type": "x"}},
    {"messages": USER, "response_format": {"type": "x"}},
])  # fmt: skip
def test_both_refuse(body):
    body = {"model": "m", **body}
    assert of_recipe("chat", body, "")["status"] == 400
    assert of_hadal([("chat", body, "")])[0]["status"] == 400


# What hadal serves and the library refuses: a local server need not be strict with clients that are not.
LENIENT = {
    "several answers": {"messages": USER, "n": 2},
    "no content": {"messages": [{"role": "user", "content": None}]},
    "a result of another call": {"messages": [*CALLED, {"role": "tool", "tool_call_id": "zz", "content": "x"}], "tools": TOOLS},
    "a call without its result": {"messages": [*CALLED, *USER], "tools": TOOLS},
    "an empty turn": {"messages": [*USER, {"role": "assistant", "content": None}, *USER]},
    "developer": {"messages": [{"role": "developer", "content": "x"}, *USER]},
    "top_p of nothing": {"messages": USER, "top_p": 0},
    "many stops": {"messages": USER, "stop": ["x"] * 17},
    "tools of other servers": {"messages": USER, "tools": [{"type": "web_search"}]},
    "sound": {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
    "a call that must come, with thinking on": {"messages": USER, "tools": TOOLS, "tool_choice": "required"},
    "tools with a prefix": {"messages": [*USER, {"role": "assistant", "content": "x", "prefix": True}], "tools": TOOLS, **OFF},
    "JSON without the word": {"messages": USER, "response_format": {"type": "json_object"}},
    "names with spaces": {"messages": USER, "tools": [{"type": "function", "function": {**FUNCTION, "name": "a b"}}]},
}


@pytest.mark.parametrize("name", LENIENT)
def test_hadal_serves_what_the_library_refuses(name):
    body = {"model": "m", **LENIENT[name]}
    assert of_recipe("chat", body, "</think>x")["status"] == 400
    assert of_hadal([("chat", body, "</think>x")])[0]["status"] == 200


def arguments(text: str) -> dict:
    history = [*CALLED[:1], {**CALLED[1], "tool_calls": [{**CALL, "function": {"name": "f", "arguments": text}}]}]
    return {"messages": [*history, {"role": "tool", "tool_call_id": "c1", "content": "r"}], "tools": TOOLS}


# Prompts that differ, and what each of the two writes. The official encoder, or what an API promises, decides.
PROMPTS = {
    "numbers as Python spells them, and none of their digits lost":
        (arguments('{"a": 100000000000000000000, "b": 1e-07}'), "1e+20<", "100000000000000000000<"),
    "no arguments leave an empty line": (arguments("{}"), '"f">\n</', '"f">\n\n</'),
    "a system message in the middle is the user's":
        ({"messages": [*USER, {"role": "system", "content": "s"}, *USER]}, "s<｜User｜>x\n\nx", "<｜User｜>x\n\ns\n\nx"),
    "a reminder goes before the user's turn": ({"messages": [*USER, {"role": "latest_reminder", "content": "r"}]},
                                     "<｜User｜>x<｜latest_reminder｜>r<", "<｜latest_reminder｜>r<｜User｜>x<"),
    "two turns of the assistant are one": ({"messages": [*USER, {"role": "assistant", "content": "a"},
                                                         {"role": "assistant", "content": "b"}, *USER]},
                                           "<｜Assistant｜></think>b", "a<｜end▁of▁sentence｜>b"),
    "a strict schema is shown as it came":
        ({"messages": USER, "tools": [{"type": "function", "function": {**FUNCTION, "strict": True}}]},
         '"additionalProperties": false', '"properties": {"a": {"type": "integer"}}}}\n'),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_that_differ(name):
    body, theirs, ours = PROMPTS[name]
    body = {"model": "m", **body}
    prompt = of_recipe("chat", body, "")["prompt"] + "§"  # the end
    mine = of_hadal([("chat", body, "")])[0]["prompt"] + "§"
    assert theirs in prompt and theirs not in mine
    assert ours in mine and ours not in prompt


def call(header: str, value: str) -> str:
    return f'</think>\n\n<{DSML}tool_calls>\n<{DSML}invoke name="f">\n<{DSML}parameter {header}>{value}\n</{DSML}invoke>\n</{DSML}tool_calls>'


END = f"</{DSML}parameter>"
# Outputs that are understood differently: the arguments that each of the two reports.
OUTPUTS = {
    "what is no JSON is a string": (call('name="a" string="false"', "{oops" + END), '{"a": {oops}', '{"a": "{oops"}'),
    "the type is the schema's": (call('name="a" string="true"', "5" + END), '{"a": "5"}', '{"a": 5}'),
    "attributes in another order": (call('string="false" name="a"', "5" + END), "{}", '{"a": 5}'),
    "a space in the name": (call('name="b c" string="true"', "x" + END), '{"b: "x"}', '{"b c": "x"}'),
    "another closing tag is text if no tag follows":
        (call('name="s" string="true"', f"a</{DSML}x> b" + END), '{"s": "a"}', '{"s": "a</｜DSML｜x> b"}'),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_differ(name):
    output, theirs, ours = OUTPUTS[name]
    body = {"model": "m", "messages": USER, "tools": TOOLS, "stream": True}
    heard = [e for e in said("chat", of_recipe("chat", body, output)["events"]) if e[0] == "call"]
    assert heard[0][2] == theirs
    heard = [e for e in said("chat", of_hadal([("chat", body, output)])[0]["events"]) if e[0] == "call"]
    assert heard == [["call", "f", ours]]


def test_a_stop_string_does_not_stop_a_call():
    body = {"model": "m", "messages": USER, "tools": TOOLS, "stream": True, "stop": ["｜"]}
    output = call('name="a" string="false"', "5" + END)
    assert said("chat", of_recipe("chat", body, output)["events"])[-1] == ["finish", "stop"]
    assert said("chat", of_hadal([("chat", body, output)])[0]["events"])[-1] == ["finish", "tool_calls"]


def test_a_call_that_never_ended_is_told_as_one():
    body = {"model": "m", "messages": USER, "tools": TOOLS, "stream": True}
    output = call('name="a" string="false"', "5" + END).split("</｜DSML｜invoke")[0]
    assert said("chat", of_recipe("chat", body, output)["events"])[-1] == ["finish", "tool_calls"]
    assert said("chat", of_hadal([("chat", body, output)])[0]["events"])[-1] == ["finish", "length"]
