"""The OpenAI SDK against hadal's server: chat completions, completions, responses, models."""

import json
import threading
import time
import uuid

import httpx
import openai
import pytest
from server_process import ServerProcess, dsml_call, reply

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather somewhere",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
RESPONSES_TOOLS = [{"type": "function", **TOOLS[0]["function"]}]
OFF = {"thinking": {"type": "disabled"}}


@pytest.fixture(params=["", "/v1", "/beta"])
def client(server, request):
    return openai.OpenAI(base_url=server.url + request.param, api_key="none", max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


def test_chat(client):
    answer = client.chat.completions.create(
        model="m", messages=user(reply("I think.</think>Hello, wörld 🌍.")), max_tokens=200
    )
    message = answer.choices[0].message
    assert message.content == "Hello, wörld 🌍."
    assert message.reasoning_content == "I think."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "m"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens == usage.prompt_tokens


def test_chat_without_thinking(client):
    answer = client.chat.completions.create(model="m", messages=user(reply("plain")), extra_body=OFF)
    assert answer.choices[0].message.content == "plain"
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    by_effort = client.chat.completions.create(model="m", messages=user(reply("plain")), reasoning_effort="none")
    assert by_effort.choices[0].message.content == "plain"


def test_chat_stream(client):
    text = "Hmm, Zürich.</think>Grüße 🌍!"
    stream = client.chat.completions.create(
        model="m", messages=user(reply(text)), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    content = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    reasoning = "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks if c.choices)
    assert (reasoning, content) == ("Hmm, Zürich.", "Grüße 🌍!")
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 5
    assert all(c.usage is None for c in chunks[:-1])


def test_length_and_stop(client):
    answer = client.chat.completions.create(model="m", messages=user(reply("abcdefghij")), max_tokens=3, extra_body=OFF)
    assert answer.choices[0].finish_reason == "length"
    answer = client.chat.completions.create(
        model="m", messages=user(reply("one two three")), stop=[" three", "zzz"], extra_body=OFF
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two", "stop")
    # Not in reasoning, and not in the markup of calls.
    answer = client.chat.completions.create(model="m", messages=user(reply("a stop b</think>c")), stop="stop")
    assert answer.choices[0].message.content == "c"


def test_logprobs(client):
    answer = client.chat.completions.create(
        model="m", messages=user(reply("xyz")), logprobs=True, top_logprobs=3, extra_body=OFF
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(e.token for e in entries) == "xyz"
    assert all(len(e.top_logprobs) == 3 and e.top_logprobs[0].logprob >= e.logprob for e in entries)


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client, stream):
    text = "Let me look.</think>I ask." + dsml_call("weather", city="Köln", days=3)
    kwargs = {"model": "m", "messages": user(reply(text)), "tools": TOOLS}
    if stream:
        with client.chat.completions.stream(**kwargs) as events:
            for _ in events:
                pass
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**kwargs).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I ask."
    call = choice.message.tool_calls[0]
    assert call.id.startswith("call_") and call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Köln", "days": 3}


def test_parallel_calls_and_one_only(client):
    block = dsml_call("weather", city="A")
    block = block.replace("\n</｜DSML｜tool_calls>", "") + dsml_call("weather", city="B").split("tool_calls>", 1)[1]
    kwargs = {"model": "m", "messages": user(reply("</think>" + block)), "tools": TOOLS}
    both = client.chat.completions.create(**kwargs).choices[0].message.tool_calls
    assert [json.loads(c.function.arguments)["city"] for c in both] == ["A", "B"]
    assert len({c.id for c in both}) == 2
    one = client.chat.completions.create(**kwargs, parallel_tool_calls=False).choices[0].message.tool_calls
    assert len(one) == 1


def test_tool_choice(client):
    text = dsml_call("weather", city="Rom")
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        for extra in (OFF, {}):
            reply_text = text if extra else "</think>" + text
            answer = client.chat.completions.create(
                model="m", messages=user(reply(reply_text)), tools=TOOLS, tool_choice=choice, extra_body=extra
            )
            assert answer.choices[0].finish_reason == "tool_calls", (choice, extra)
            assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"city": "Rom"}
    # With none the tools are not shown, and what looks like a call is text.
    none = client.chat.completions.create(
        model="m", messages=user(reply("hi" + text)), tools=TOOLS, tool_choice="none", extra_body=OFF
    )
    assert none.choices[0].finish_reason == "stop" and "invoke" in none.choices[0].message.content
    auto = client.chat.completions.create(model="m", messages=user(reply("hi")), tools=TOOLS, extra_body=OFF)
    assert none.usage.prompt_tokens + 100 < auto.usage.prompt_tokens


def test_truncated_call_is_no_call(client):
    text = "</think>" + dsml_call("weather", city="Rom")
    answer = client.chat.completions.create(model="m", messages=user(reply(text)), tools=TOOLS, max_tokens=20)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls is None
    assert "DSML" not in (answer.choices[0].message.content or "")


def test_history_is_read_once(client):
    messages = [{"role": "system", "content": f"{uuid.uuid4()} You are terse. " * 40}, *user("first " + reply(
        "Thinking about it at length." * 5 + "</think>" + dsml_call("weather", city="Bonn")))]
    first = client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
    call = first.choices[0].message.tool_calls[0]
    # As an agent would that keeps no reasoning and spells JSON its own way.
    arguments = json.dumps(json.loads(call.function.arguments), indent=1)
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": arguments}}]},
        {"role": "tool", "tool_call_id": call.id, "content": "rain " + reply("</think>done")},
    ]
    second = client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
    assert second.choices[0].message.content == "done"
    missed = second.usage.prompt_cache_miss_tokens
    assert missed < 100, "the turn was read again"
    # An edited call is honoured, not replaced.
    messages[-2]["tool_calls"][0]["function"]["arguments"] = '{"city":"Ulm"}'
    third = client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
    assert third.usage.prompt_cache_miss_tokens > missed


def test_prefix_completion(client):
    messages = [*user("Say it"), {"role": "assistant", "content": "Once upon", "prefix": True}]
    answer = client.chat.completions.create(model="m", messages=messages, extra_body=OFF, max_tokens=4)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_fields_of_other_servers_are_accepted(client):
    answer = client.chat.completions.create(
        model="claude-3[1m]", messages=[
            {"role": "developer", "content": "dev"},
            {"role": "user", "content": [
                {"type": "text", "text": reply("ok</think>fine")},
                {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}],
        metadata={"a": "b"}, store=False, service_tier="auto", prediction=None, seed=4, user="u1",
        prompt_cache_key="k", safety_identifier="s", verbosity="low", max_completion_tokens=50,
        logit_bias={"5": 1}, temperature=0.5, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.1,
        extra_body={"nonsense": {"deep": [1]}})
    assert answer.choices[0].message.content == "fine"
    assert answer.model == "claude-3[1m]"


@pytest.mark.parametrize("body", [
    {"messages": []}, {"messages": [{"role": "wizard", "content": "x"}]}, {"messages": "hi"},
    {"messages": [{"role": "user", "content": 5}]}, {"messages": [{"role": "system", "content": "x"}]},
    {"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]}, {},
    {"messages": [{"role": "user", "content": "x"}], "temperature": 3},
    {"messages": [{"role": "user", "content": "x"}], "max_tokens": 0},
    {"messages": [{"role": "user", "content": "x"}], "n": 200},
    {"messages": [{"role": "user", "content": "x"}], "stop": ["x"] * 100},
    {"messages": [{"role": "user", "content": "x"}], "top_logprobs": 3},
    {"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"},
    {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS,
     "tool_choice": {"type": "function", "function": {"name": "nobody"}}},
    {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
    {"messages": [{"role": "user", "content": "x"}], "logit_bias": {"x": 1}},
    {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "extreme"},
])  # fmt: skip
def test_impossible_requests(server, body):
    answer = httpx.post(server.url + "/v1/chat/completions", json={"model": "m", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]


def test_errors_have_the_sdks_classes(server):
    with ServerProcess(context=1200, per_key=1, step_ms=20) as small:
        client = openai.OpenAI(base_url=small.url, api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError) as too_long:
            client.chat.completions.create(model="m", messages=user("x" * 3000))
        assert too_long.value.code == "context_length_exceeded"
        assert "maximum context length is 1200 tokens" in too_long.value.message
        stream = client.chat.completions.create(model="m", messages=user(reply("</think>" + "y" * 150)), stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as limit:
            client.chat.completions.create(model="m", messages=user("x"))
        assert limit.value.response.headers["retry-after"]
        stream.close()
        deadline = time.monotonic() + 5
        while True:  # the stream that was given up is noticed
            try:
                client.chat.completions.create(model="m", messages=user("x"))
                break
            except openai.RateLimitError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nothing")
        with pytest.raises(openai.NotFoundError):
            client.files.list()


def test_timeouts_and_cancellation():
    with ServerProcess(step_ms=50) as slow:
        client = openai.OpenAI(base_url=slow.url, api_key="none", max_retries=0, timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="m", messages=user(reply("</think>" + "z" * 500)))
        deadline = time.monotonic() + 5
        while httpx.get(slow.url + "/state").json()["running"] > 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_keep_alive_while_waiting():
    with ServerProcess(step_ms=400, keep_alive=1, parallel=1) as slow:
        client = openai.OpenAI(base_url=slow.url, api_key="none", max_retries=0)
        first = threading.Thread(target=lambda: client.chat.completions.create(
            model="m", messages=user(reply("</think>12345678"))))
        first.start()
        time.sleep(0.2)
        raw = httpx.post(slow.url + "/chat/completions", timeout=60, json={
            "model": "m", "messages": user(reply("</think>w")), "stream": True}).text
        assert raw.startswith(": keep-alive\n\n") and raw.endswith("data: [DONE]\n\n")
        first.join()
        first = threading.Thread(target=lambda: client.chat.completions.create(
            model="m", messages=user(reply("</think>12345678"))))
        first.start()
        time.sleep(0.2)
        answer = httpx.post(slow.url + "/chat/completions", timeout=60, json={
            "model": "m", "messages": user(reply("</think>w"))})
        assert answer.text.startswith("\n") and answer.json()["choices"][0]["message"]["content"] == "w"
        first.join()


def test_completions(client):
    answer = client.completions.create(model="m", prompt="Once", max_tokens=5, echo=True)
    assert answer.choices[0].text.startswith("Once")
    chunks = list(client.completions.create(model="m", prompt=["Once"], max_tokens=5, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_models_and_balance(client, server):
    models = client.models.list()
    assert [m.id for m in models] == ["scripted"]
    assert client.models.retrieve("scripted").id == "scripted"
    assert httpx.get(server.url + "/user/balance").json()["is_available"] is True


# Responses -----------------------------------------------------------------------------------------------------


def test_responses(client):
    answer = client.responses.create(model="m", input=reply("Mull.</think>Hi 🌍"), instructions="Be kind.")
    assert answer.output_text == "Hi 🌍"
    assert answer.status == "completed"
    assert answer.output[0].type == "reasoning" and answer.output[0].content[0].text == "Mull."
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    assert answer.instructions == "Be kind."


def test_responses_stream(client):
    text = "Mull.</think>Hi 🌍" + dsml_call("weather", city="Wien", days=2)
    events = []
    with client.responses.stream(model="m", input=reply(text), tools=RESPONSES_TOOLS) as stream:
        for event in stream:
            events.append(event)
        final = stream.get_final_response()
    assert [e.sequence_number for e in events if hasattr(e, "sequence_number")] == sorted(
        e.sequence_number for e in events if hasattr(e, "sequence_number"))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert json.loads(final.output[2].arguments) == {"city": "Wien", "days": 2}
    done = [e for e in events if e.type == "response.output_item.done"]
    assert [e.output_index for e in done] == [0, 1, 2]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hi 🌍"


def test_responses_history(client):
    first = client.responses.create(
        model="m", input="go " + reply("Long thought. " * 9 + "</think>" + dsml_call("weather", city="Graz")),
        tools=RESPONSES_TOOLS)
    call = next(item for item in first.output if item.type == "function_call")
    history = [{"role": "user", "content": "go " + reply("Long thought. " * 9 + "</think>" + dsml_call("weather", city="Graz"))}]
    history += [item.model_dump(exclude_none=True) for item in first.output]
    history += [{"type": "function_call_output", "call_id": call.call_id,
                 "output": [{"type": "input_text", "text": "sun " + reply("</think>done")}]}]
    second = client.responses.create(model="m", input=history, tools=RESPONSES_TOOLS)
    assert second.output_text == "done"
    assert second.usage.input_tokens - second.usage.input_tokens_details.cached_tokens < 120


def test_responses_of_an_agent(client):
    tools = [*RESPONSES_TOOLS, {"type": "custom", "name": "apply_patch", "description": "d", "format": {"type": "grammar"}},
             {"type": "web_search"}, {"type": "namespace", "name": "mcp", "tools": [
                 {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}]}]
    answer = client.responses.create(
        model="m", input=[{"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": reply("</think>" + dsml_call("apply_patch", input="*** Begin\n+x"))}]}],
        tools=tools, store=False, include=["reasoning.encrypted_content"], parallel_tool_calls=False,
        reasoning={"effort": "high", "summary": "auto"}, prompt_cache_key="x",
        extra_body={"client_metadata": {"a": "b"}})
    call = answer.output[-1]
    assert (call.type, call.name, call.input) == ("custom_tool_call", "apply_patch", "*** Begin\n+x")
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="m", input="x", previous_response_id="resp_1")
    incomplete = client.responses.create(model="m", input=reply("</think>abcdefghij"), max_output_tokens=4)
    assert incomplete.status == "incomplete" and incomplete.incomplete_details.reason == "max_output_tokens"
