"""Structured output: whatever a model without a mind writes under a grammar, jsonschema accepts; and the APIs hold a
model to it that would rather write something else."""

import json
import subprocess

import anthropic
import jsonschema
import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel
from schema_cases import Generator
from server_process import BUILD, dsml_call, reply

TOKENIZER = BUILD.parents[1] / "models" / "nano" / "tokenizer.json"
OFF = {"thinking": {"type": "disabled"}}


def random_answers(lines: list[dict]) -> list[dict]:
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    command = [str(BUILD / "tests" / "random_answers"), str(TOKENIZER)]
    output = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def validators(schema: dict):
    python = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    rust = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    return [python, rust]


def test_random_answers_follow_their_schemas():
    schemas = [Generator(seed).case() for seed in range(240)]
    answers = random_answers([{"schema": schema, "count": 2} for schema in schemas])
    compiled = checked = unfinished = 0
    for schema, answer in zip(schemas, answers, strict=True):
        if "error" in answer:
            assert "nothing that is finite" in answer["error"] or "beside" in answer["error"], (schema, answer)
            continue
        compiled += 1
        unfinished += answer["unfinished"]
        for document in answer["documents"]:
            value = json.loads(document)
            for validator in validators(schema):
                assert validator.is_valid(value), (schema, document, validator)
            checked += 1
    assert compiled >= 200
    assert checked >= 380 and unfinished < 40


def test_random_calls_follow_their_schemas():
    lines, schemas = [], []
    for seed in range(400, 425):
        generator = Generator(seed)
        schemas.append(generator.of_object(2))
        lines.append({"tools": {"f": schemas[-1], "g": {}}, "count": 2})
    checked = 0
    for schema, answer in zip(schemas, random_answers(lines), strict=True):
        if "error" in answer:
            continue
        for name, arguments in answer["calls"]:
            assert name in ("f", "g"), answer
            value = json.loads(arguments)
            assert isinstance(value, dict)
            if name == "f":
                assert validators(schema)[0].is_valid(value), (schema, arguments)
                checked += 1
    assert checked > 15


class Person(BaseModel):
    name: str
    age: int
    tags: list[str]


PERSON = Person.model_json_schema() | {"additionalProperties": False}
SHORT = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer", "maximum": 9, "minimum": 0}},
         "required": ["kind", "n"], "additionalProperties": False}
RIGHT = '{"name": "Ada </b>", "age": 36, "tags": ["x", "ü"]}'


@pytest.fixture
def chat(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def messages(server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def format_of(schema: dict, strict: bool = True) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": strict}}


@pytest.mark.parametrize("extra", [OFF, {}])
def test_a_right_answer_is_left_as_it_is(chat, extra):
    text = RIGHT if extra else "Let me see, <b>.</think>" + RIGHT
    parsed = chat.chat.completions.parse(model="m", messages=user(reply(text)), response_format=Person, extra_body=extra)
    message = parsed.choices[0].message
    assert message.content == RIGHT and message.parsed == Person(name="Ada </b>", age=36, tags=["x", "ü"])
    assert parsed.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("seed", range(4))
def test_a_wrong_answer_is_made_right(chat, seed):
    for text in ("I would rather write prose.", '{"kind": "c", "n": 12}', "```json\n{}\n```"):
        for extra in (OFF, {}):
            answer = chat.chat.completions.create(
                model="m", messages=user(reply(text if extra else "Hm.</think>" + text)), seed=seed,
                response_format=format_of(SHORT), extra_body=extra).choices[0]
            assert answer.finish_reason == "stop"
            jsonschema.validate(json.loads(answer.message.content), SHORT)


def test_streams_and_other_apis(chat, messages):
    stream = chat.chat.completions.create(model="m", messages=user(reply("prose")), response_format=format_of(SHORT),
                                          stream=True, extra_body=OFF)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    jsonschema.validate(json.loads(text), SHORT)
    response = chat.responses.create(
        model="m", input=reply("prose"), reasoning={"effort": "none"},
        text={"format": {"type": "json_schema", "name": "n", "schema": SHORT, "strict": True}})
    jsonschema.validate(json.loads(response.output_text), SHORT)
    claude = messages.messages.create(
        model="m", max_tokens=900, messages=user(reply("prose")), thinking={"type": "disabled"},
        extra_body={"output_config": {"format": {"type": "json_schema", "schema": SHORT}}})
    jsonschema.validate(json.loads(claude.content[0].text), SHORT)


def test_json_object(chat):
    for text, right in (('{"a": [1, {"b": null}]}', True), ("[1]", False)):
        answer = chat.chat.completions.create(
            model="m", messages=user("as json " + reply(text)), response_format={"type": "json_object"}, max_tokens=200,
            extra_body=OFF).choices[0]
        assert answer.message.content.startswith("{")
        assert (answer.message.content == text) == right


def test_an_answer_goes_on_from_its_beginning(chat):
    history = [*user(reply('{"kind": "b", "n": 3}')), {"role": "assistant", "content": '{"kind": "', "prefix": True}]
    answer = chat.chat.completions.create(model="m", messages=history, response_format=format_of(SHORT), extra_body=OFF)
    jsonschema.validate(json.loads('{"kind": "' + answer.choices[0].message.content), SHORT)
    history[-1]["content"] = "Well, "
    with pytest.raises(openai.BadRequestError, match="follows the schema"):
        chat.chat.completions.create(model="m", messages=history, response_format=format_of(SHORT), extra_body=OFF)


BAD = {"type": "object", "properties": {"a": {"type": "array", "items": {"not": {}}}}}


def test_what_strict_cannot_keep_is_refused_by_its_path(chat, messages):
    tool = {"name": "f", "description": "", "parameters": BAD, "strict": True}
    for kwargs in ({"response_format": format_of(BAD)}, {"tools": [{"type": "function", "function": tool}]}):
        with pytest.raises(openai.BadRequestError, match="#/properties/a/items: not"):
            chat.chat.completions.create(model="m", messages=user("x"), **kwargs)
    with pytest.raises(openai.BadRequestError, match="#/properties/a/items: not"):
        chat.responses.create(model="m", input="x", tools=[{"type": "function", **tool}])
    with pytest.raises(anthropic.BadRequestError, match="#/properties/a/items: not"):
        messages.messages.create(model="m", max_tokens=9, messages=user("x"),
                                 tools=[{"name": "f", "input_schema": BAD, "strict": True}])
    # Without strict the rest of the schema is kept.
    answer = chat.chat.completions.create(model="m", messages=user(reply('{"a": [1]}')), extra_body=OFF,
                                          response_format=format_of(BAD, strict=False))
    assert answer.choices[0].message.content == '{"a": [1]}'


def tool(strict: bool) -> list[dict]:
    return [{"type": "function", "function": {"name": name, "description": "", "parameters": SHORT, "strict": strict}}
            for name in ("look", "find")]


@pytest.mark.parametrize("extra", [OFF, {}])
def test_calls_that_must_come(chat, extra):
    thought = "" if extra else "I think first.</think>"
    for choice, names in (("required", ("look", "find")), ({"type": "function", "function": {"name": "find"}}, ("find",))):
        for text in ("No, prose.", dsml_call("look", kind="c", n=12), dsml_call("find", kind="a", n=1)):
            answer = chat.chat.completions.create(
                model="m", messages=user(reply(thought + text)), tools=tool(False), tool_choice=choice, max_tokens=1500,
                parallel_tool_calls=False, extra_body=extra).choices[0]
            assert answer.finish_reason == "tool_calls" and len(answer.message.tool_calls) == 1
            call = answer.message.tool_calls[0].function
            assert call.name in names and not answer.message.content
            jsonschema.validate(json.loads(call.arguments), SHORT)
            if thought:
                assert answer.message.reasoning_content == "I think first."


def test_strict_tools_may_be_called_or_not(chat, messages):
    kwargs = {"model": "m", "tools": tool(True), "parallel_tool_calls": False, "extra_body": OFF, "max_tokens": 600}
    text = chat.chat.completions.create(messages=user(reply("Just text, <b>no</b> call.")), **kwargs).choices[0]
    assert text.message.content == "Just text, <b>no</b> call." and not text.message.tool_calls
    called = chat.chat.completions.create(
        messages=user(reply("I look." + dsml_call("look", kind="zzz", n=99))), **kwargs).choices[0]
    assert called.message.content == "I look." and called.finish_reason == "tool_calls"
    jsonschema.validate(json.loads(called.message.tool_calls[0].function.arguments), SHORT)
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "find"}):
        answer = messages.messages.create(
            model="m", max_tokens=1500, messages=user(reply("prose")), tool_choice=choice, thinking={"type": "disabled"},
            tools=[{"name": "find", "input_schema": SHORT, "strict": True}])
        assert answer.stop_reason == "tool_use"
        jsonschema.validate(answer.content[-1].input, SHORT)


def test_logprobs_are_the_models_own(chat):
    text = '{"kind": "b", "n": 3}'
    entries = chat.chat.completions.create(
        model="m", messages=user(reply(text)), response_format=format_of(SHORT), logprobs=True, top_logprobs=2,
        extra_body=OFF).choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == text
    assert all(entry.top_logprobs[0].logprob >= entry.logprob for entry in entries)
