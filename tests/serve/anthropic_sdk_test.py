"""The Anthropic SDK against hadal's server: messages, count_tokens, models."""

import anthropic
import httpx
import pytest
from server_process import ServerProcess, dsml_call, reply

TOOLS = [
    {
        "name": "weather",
        "description": "The weather somewhere",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    }
]


@pytest.fixture(params=["", "/anthropic"])
def client(server, request):
    return anthropic.Anthropic(base_url=server.url + request.param, api_key="none", max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


def test_message(client):
    answer = client.messages.create(model="claude-x", max_tokens=300, messages=user(reply("Hm.</think>Hallo 🌍")))
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == "Hm." and answer.content[0].signature
    assert answer.content[1].text == "Hallo 🌍"
    assert (answer.stop_reason, answer.model) == ("end_turn", "claude-x")
    off = client.messages.create(
        model="m", max_tokens=300, messages=user(reply("plain")), thinking={"type": "disabled"})
    assert [block.type for block in off.content] == ["text"]


def test_stream(client):
    text = "Hm.</think>Hallo 🌍" + dsml_call("weather", city="Kiel", days=1)
    with client.messages.stream(model="m", max_tokens=500, messages=user(reply(text)), tools=TOOLS) as stream:
        types = [event.type for event in stream]
        message = stream.get_final_message()
    assert types[0] == "message_start" and types[-1] == "message_stop"
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"city": "Kiel", "days": 1}
    assert message.content[2].id.startswith("toolu_")
    assert message.stop_reason == "tool_use"
    raw = httpx.post(str(client.base_url).rstrip("/") + "/v1/messages", json={
        "model": "m", "max_tokens": 500, "messages": user(reply("</think>x")), "stream": True}).text
    for block in raw.strip().split("\n\n"):
        name, data = block.split("\n")
        assert f'"type":"{name.removeprefix("event: ")}"' in data


def test_tools_and_history(client):
    first = client.messages.create(
        model="m", max_tokens=500, system=[{"type": "text", "text": "Terse. " * 50, "cache_control": {"type": "ephemeral"}}],
        messages=user("a " + reply("Long thought. " * 9 + "</think>" + dsml_call("weather", city="Jena"))), tools=TOOLS)
    call = first.content[-1]
    history = user("a " + reply("Long thought. " * 9 + "</think>" + dsml_call("weather", city="Jena")))
    for content in ([b.model_dump() for b in first.content],
                    [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}]):
        second = client.messages.create(
            model="m", max_tokens=500, system="Terse. " * 50, tools=TOOLS,
            messages=[*history, {"role": "assistant", "content": content},
                      {"role": "user", "content": [
                          {"type": "tool_result", "tool_use_id": call.id, "is_error": True,
                           "content": [{"type": "text", "text": "fog " + reply("</think>done")}]},
                          {"type": "text", "text": " go on"}]}])
        assert second.content[-1].text == "done"
        assert second.usage.input_tokens < 80, "the turn was read again"
        assert second.usage.cache_read_input_tokens > 500


def test_volatile_headers_do_not_cost_the_prefix(client):
    def ask(cch, left):
        return client.messages.create(
            model="m", max_tokens=50, messages=user(reply("</think>ok")),
            system=[{"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={cch};"},
                    {"type": "text", "text": "You are an agent. " * 60 + f"\n<total_tokens>{left} left</total_tokens>"}])
    ask("aaaaa", 100000)
    assert ask("bbbbb", 99000).usage.input_tokens < 40


def test_tool_choice(client):
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        answer = client.messages.create(
            model="m", max_tokens=400, tools=TOOLS, tool_choice=choice,
            messages=user(reply("</think>" + dsml_call("weather", city="Rom"))))
        assert answer.stop_reason == "tool_use" and answer.content[-1].input == {"city": "Rom"}
    none = client.messages.create(model="m", max_tokens=400, tools=TOOLS, tool_choice={"type": "none"},
                                  messages=user(reply("</think>no")))
    assert none.stop_reason == "end_turn"


def test_stops(client):
    stopped = client.messages.create(model="m", max_tokens=50, messages=user(reply("</think>one STOP two")),
                                     stop_sequences=["STOP"])
    assert (stopped.stop_reason, stopped.stop_sequence, stopped.content[0].text) == ("stop_sequence", "STOP", "one ")
    cut = client.messages.create(model="m", max_tokens=4, messages=user(reply("</think>abcdefgh")))
    assert cut.stop_reason == "max_tokens"


def test_count_tokens_agrees(client):
    kwargs = {"model": "m", "messages": user("How many?"), "system": "s", "tools": TOOLS}
    counted = client.messages.count_tokens(**kwargs).input_tokens
    usage = client.messages.create(**kwargs, max_tokens=1).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_roles_of_newer_agents(client):
    answer = client.messages.create(model="m", max_tokens=50, messages=[
        {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"},
        {"role": "system", "content": "reminder"}, {"role": "ctx", "content": "ctx"},
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/"}},
                                     {"type": "text", "text": reply("</think>ok")}]}],
        output_config={"effort": "max"}, thinking={"type": "adaptive"},
        metadata={"user_id": "u"}, extra_headers={"anthropic-beta": "x,y"})
    assert answer.content[-1].text == "ok"


def test_errors(server):
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    for body in ({"messages": user("x")}, {"model": "m", "max_tokens": 1}, {"model": "m", "max_tokens": 1, "messages": []},
                 {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": [{"text": "x"}]}]}):
        answer = httpx.post(server.url + "/v1/messages", json=body)
        assert answer.status_code == 400
        assert answer.json()["type"] == "error" and answer.json()["error"]["type"] == "invalid_request_error"
    with ServerProcess(context=200) as small:
        client = anthropic.Anthropic(base_url=small.url, api_key="none", max_retries=0)
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 200 maximum"):
            client.messages.create(model="m", max_tokens=1, messages=user("x" * 1000))
