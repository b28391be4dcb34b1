"""Several answers to one request: n of chat completions and completions, and several prompts of the latter."""

import json
import time

import httpx
import openai
import pytest
from openai_sdk_test import OFF, TOOLS, user
from server_process import ServerProcess, dsml_call, reply


@pytest.fixture(scope="module")
def nano():
    """The embedded model, whose answers differ with the seed."""
    with ServerProcess(model="", log=1) as running:
        yield running


def sdk(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def ask(server, seed, **more):
    return sdk(server).chat.completions.create(
        model="m", messages=user("Say something about the sea."), max_tokens=24, temperature=1, seed=seed, extra_body=OFF, **more)


def test_each_is_what_its_seed_gives_alone(nano):
    alone = [ask(nano, seed).choices[0].message.content for seed in range(40, 45)]
    assert len(set(alone)) > 1, "a test of nothing"
    together = ask(nano, 40, n=5)
    assert [c.index for c in together.choices] == list(range(5))
    assert [c.message.content for c in together.choices] == alone
    assert all(c.finish_reason in ("stop", "length") for c in together.choices)


def test_the_prompt_counts_once(nano):
    text = "Once upon a time " * 40
    before = httpx.get(nano.url + "/state").json()["prompt_tokens"]
    answer = sdk(nano).completions.create(model="m", prompt=text, max_tokens=5, n=6, temperature=1)
    read = httpx.get(nano.url + "/state").json()["prompt_tokens"] - before
    prompt = answer.usage.prompt_tokens
    assert prompt > 80 and answer.usage.completion_tokens <= 30
    assert prompt <= read <= prompt + 5, "read once, and its last token by each of the others"
    assert answer.usage.total_tokens == prompt + answer.usage.completion_tokens


def by_choice(chunks, take):
    texts = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (take(choice) or "")
    return [texts[i] for i in sorted(texts)]


def test_streams_are_the_whole_in_pieces(nano):
    whole = ask(nano, 7, n=3)
    chunks = list(ask(nano, 7, n=3, stream=True, stream_options={"include_usage": True}))
    assert by_choice(chunks, lambda c: c.delta.content) == [c.message.content for c in whole.choices]
    assert len({c.id for c in chunks}) == 1 and len({c.created for c in chunks}) == 1
    ends = [c.choices[0].index for c in chunks if c.choices and c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1, 2]
    assert chunks[-1].choices == [] and all(c.usage is None for c in chunks[:-1])
    for count in ("prompt_tokens", "completion_tokens"):
        assert getattr(chunks[-1].usage, count) == getattr(whole.usage, count)
    raw = httpx.post(nano.url + "/chat/completions", timeout=60, json={
        "model": "m", "messages": user("x"), "max_tokens": 4, "n": 2, "stream": True, **OFF}).text
    assert raw.count("[DONE]") == 1 and raw.endswith("data: [DONE]\n\n")


def test_several_prompts(nano):
    prompts = ["The sea", "A house of stone and", "One"]
    options = {"model": "m", "max_tokens": 8, "temperature": 0}
    client = sdk(nano)
    alone = [client.completions.create(prompt=p, **options).choices[0].text for p in prompts]
    together = client.completions.create(prompt=prompts, **options)
    assert [c.text for c in together.choices] == alone
    echoed = client.completions.create(prompt=prompts, echo=True, n=2, **options)
    assert [c.index for c in echoed.choices] == list(range(6))
    assert [c.text for c in echoed.choices] == [p + a for p, a in zip(prompts, alone, strict=True) for _ in range(2)]
    streamed = by_choice(client.completions.create(prompt=prompts, echo=True, stream=True, **options), lambda c: c.text)
    assert streamed == [p + a for p, a in zip(prompts, alone, strict=True)]
    tokens = client.completions.create(prompt=[[100, 101, 102], [103]], logprobs=2, **options)
    assert len(tokens.choices) == 2
    assert all(len(c.logprobs.tokens) == len(c.logprobs.token_logprobs) > 0 for c in tokens.choices)


def test_tools_have_ids_of_their_own(server):
    answer = sdk(server).chat.completions.create(
        model="m", messages=user(reply("</think>" + dsml_call("weather", city="Rome"))), tools=TOOLS, n=3)
    ids = [c.message.tool_calls[0].id for c in answer.choices]
    assert len(set(ids)) == 3
    assert all(json.loads(c.message.tool_calls[0].function.arguments) == {"city": "Rome"} for c in answer.choices)
    # Each can be gone on with, and its tokens are known.
    for choice in answer.choices:
        history = [*user(reply("</think>" + dsml_call("weather", city="Rome"))), choice.message.model_dump(exclude_none=True),
                   {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "sunny"},
                   *user(reply("</think>It is sunny."))]
        after = sdk(server).chat.completions.create(model="m", messages=history, tools=TOOLS)
        assert after.choices[0].message.content == "It is sunny."
        assert after.usage.prompt_cache_hit_tokens > 0.5 * after.usage.prompt_tokens


def test_schemas_hold_each(nano):
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
              "required": ["a", "b"], "additionalProperties": False}
    answer = ask(nano, 3, n=4, response_format={"type": "json_schema",
                                                "json_schema": {"name": "s", "schema": schema, "strict": True}})
    for choice in answer.choices:
        assert set(json.loads(choice.message.content)) == {"a", "b"}


def test_limits(server):
    client = sdk(server)
    for bad in ({"n": 129}, {"n": 0}, {"n": -1}, {"n": 1.5}):
        with pytest.raises(openai.BadRequestError, match="n must be an integer from 1 to 128"):
            client.chat.completions.create(model="m", messages=user("x"), **bad)
    with pytest.raises(openai.BadRequestError, match="129 prompts with 1 answers"):
        client.completions.create(model="m", prompt=["a"] * 129)
    with pytest.raises(openai.BadRequestError, match="128 answers are the limit"):
        client.completions.create(model="m", prompt=["a"] * 65, n=2)
    with pytest.raises(openai.BadRequestError, match="best_of must be what n is"):
        client.completions.create(model="m", prompt="a", n=2, best_of=3)
    for prompt in ([["a"]], ["a", 1], ["a", None], [[1], [2.5]], [{}]):
        with pytest.raises(openai.BadRequestError, match="prompt must be"):
            client.completions.create(model="m", prompt=prompt)
    for path, body in (("/v1/messages", {"max_tokens": 5, "messages": user("x")}), ("/v1/responses", {"input": "x"})):
        answer = httpx.post(server.url + path, json={"model": "m", "n": 2, **body})
        assert answer.status_code == 400 and "n must be 1" in answer.text
    with ServerProcess(per_key=3) as small:
        with pytest.raises(openai.RateLimitError, match="wants 4 answers"):
            sdk(small).chat.completions.create(model="m", messages=user("x"), n=4)
        assert len(sdk(small).chat.completions.create(model="m", messages=user(reply("</think>a")), n=3).choices) == 3


def test_a_client_that_leaves_ends_all():
    with ServerProcess(step_ms=20) as slow:
        stream = sdk(slow).chat.completions.create(model="m", messages=user(reply("</think>" + "y" * 500)), stream=True, n=4)
        chunks = iter(stream)
        next(chunks)
        state = httpx.get(slow.url + "/state").json()
        assert state["running"] + state["waiting"] == 4
        stream.close()
        deadline = time.monotonic() + 10
        while any(httpx.get(slow.url + "/state").json()[k] for k in ("running", "waiting")):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_waiting_choices_keep_the_connection_alive():
    with ServerProcess(step_ms=300, keep_alive=1, parallel=1) as slow:
        answer = httpx.post(slow.url + "/chat/completions", timeout=60, json={
            "model": "m", "messages": user(reply("</think>123")), "n": 3})
        assert answer.text.startswith("\n")
        assert [c["message"]["content"] for c in answer.json()["choices"]] == ["123"] * 3
