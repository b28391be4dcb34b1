"""What broke other servers of models, tried on this one (docs/serving.md lists the cases and where else they are tested)."""

import gzip
import json
import re
import socket
import threading
import time

import httpx
import pytest
from http_test import post, raw
from server_process import ServerProcess, dsml_call, reply

USER = [{"role": "user", "content": "x"}]
CHAT = {"model": "m", "messages": USER, "max_tokens": 4}
MESSAGES = {"model": "m", "messages": USER, "max_tokens": 4}
RESPONSES = {"model": "m", "input": "x", "max_output_tokens": 4}
COMPLETION = {"model": "m", "prompt": "x", "max_tokens": 4}
BODIES = {"/v1/chat/completions": CHAT, "/v1/messages": MESSAGES, "/v1/responses": RESPONSES, "/v1/completions": COMPLETION}


@pytest.fixture(scope="module")
def server():
    with ServerProcess(header_ms=1000, body_ms=1500, body_bytes=2_000_000) as running:
        yield running


@pytest.fixture(autouse=True)
def still_alive(server):
    yield
    assert httpx.post(server.url + "/v1/chat/completions", json=CHAT, timeout=60).status_code == 200


NUMBERS = ["temperature", "top_p", "top_k", "min_p", "n", "best_of", "max_tokens", "max_completion_tokens",
           "max_output_tokens", "seed", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "stop"]
STRANGE = ["-1", "-9223372036854775808", "9223372036854775808", "18446744073709551616", "1e308", "1e309", "-1e400", "1e-400",
           "0.5", "-0", '"5"', "true", "[]", "{}", "null", "[1e400]"]


@pytest.mark.parametrize("path", BODIES)
def test_numbers_are_checked_before_they_are_used(server, path):
    """CVE-2026-21869: a negative count became an offset."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for name in NUMBERS:
            for value in STRANGE:
                body = json.dumps({k: v for k, v in BODIES[path].items() if k != name})[:-1] + f', "{name}": {value}}}'
                answer = client.post(path, content=body)
                assert answer.status_code in (200, 400), (name, value, answer.text)
                assert answer.status_code == 200 or answer.json()["error"]["message"]


@pytest.mark.parametrize("path", BODIES)
def test_numbers_beyond_doubles_anywhere(server, path):
    """One of these in a part that is only repeated ended hadal once."""
    for name in ("metadata", "tools", "reasoning", "text", "tool_choice", "user", "nonsense", "thinking", "stream_options"):
        for value in ('{"a": 1e400}', "[1e400]", '[{"type": "function", "name": "f", "parameters": {"maximum": -1e999}}]'):
            body = json.dumps(BODIES[path])[:-1] + f', "{name}": {value}}}'
            answer = httpx.post(server.url + path, content=body, timeout=60)
            assert answer.status_code in (200, 400)
            json.loads(answer.text)


SCHEMAS = [
    5, [], "object", {"type": {"x": 1}}, {"type": ["string", 5, None]}, {"properties": []}, {"properties": {"a": 5}},
    {"properties": {"a": {"type": "string", "pattern": "(((((" * 500}}}, {"properties": {"a": {"pattern": "(a+)+$"}}},
    {"properties": {"a": {"$ref": "#"}}, "$ref": "#/properties/a"}, {"properties": {"a": {"enum": 5, "const": []}}},
    {"properties": {"a": {"anyOf": 5, "oneOf": {}, "allOf": [None]}}}, {"required": "a"}, {"items": {"items": "x"}},
    {"properties": {"a": {"type": "integer", "minimum": 1e308, "multipleOf": 0}}},
    {"properties": {f"p{i}": {"type": "string"} for i in range(2000)}},
    {"properties": {"a": json.loads('{"properties": {"a": ' * 40 + "{}" + "}}" * 40)}},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_schemas_that_are_none(server, number):
    """CVE-2025-48942, -48943, -48944: a bad pattern or type in a tool ended the worker."""
    function = {"name": "f", "description": "d", "parameters": SCHEMAS[number]}
    text = reply("</think>" + dsml_call("f", a="5"))
    for body, path in (
        ({"messages": [{"role": "user", "content": text}], "tools": [{"type": "function", "function": function}]},
         "/v1/chat/completions"),
        ({"messages": [{"role": "user", "content": text}], "max_tokens": 300,
          "tools": [{"name": "f", "input_schema": SCHEMAS[number]}]}, "/v1/messages"),
        ({"input": text, "tools": [{"type": "function", **function}]}, "/v1/responses"),
    ):
        answer = httpx.post(server.url + path, json={"model": "m", **body}, timeout=60)
        assert answer.status_code in (200, 400), answer.text
    for strict in (False, True):
        answer = httpx.post(server.url + "/v1/chat/completions", timeout=60, json={
            "model": "m", "messages": USER, "max_tokens": 4, "response_format": {
                "type": "json_schema", "json_schema": {"name": "n", "strict": strict, "schema": SCHEMAS[number]}}})
        assert answer.status_code in (200, 400), answer.text


def test_nothing_is_fetched(server):
    """CVE-2025-6242: the server fetched what a request pointed at."""
    visits = []
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.1)
        over = threading.Event()

        def watch():
            while not over.is_set():
                try:
                    visits.append(trap.accept()[1])
                except TimeoutError:
                    pass

        watcher = threading.Thread(target=watch)
        watcher.start()
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        chat = [{"type": "text", "text": url}, {"type": "image_url", "image_url": {"url": url}},
                {"type": "file", "file": {"file_data": url, "file_url": url}}, {"type": "video_url", "video_url": {"url": url}}]
        blocks = [{"type": "image", "source": {"type": "url", "url": url}}, {"type": "document", "source": {"type": "url", "url": url}}]
        items = [{"role": "user", "content": [{"type": "input_image", "image_url": url}, {"type": "input_file", "file_url": url}]}]
        tools = [{"type": "mcp", "server_url": url, "server_label": "x"}, {"type": "web_search"}]
        for path, body in (("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": chat}]}),
                           ("/v1/messages", {**MESSAGES, "messages": [{"role": "user", "content": blocks}],
                                             "mcp_servers": [{"type": "url", "url": url, "name": "x"}]}),
                           ("/v1/responses", {**RESPONSES, "input": items, "tools": tools})):
            assert httpx.post(server.url + path, json=body, timeout=60).status_code == 200
        time.sleep(0.5)
        over.set()
        watcher.join()
    assert visits == []


def test_templates_and_tensors_of_requests_are_ignored(server):
    """CVE-2025-61620 (a template of the client), CVE-2025-62164 (tensors of the client)."""
    usage = httpx.post(server.url + "/v1/chat/completions", json=CHAT).json()["usage"]["prompt_tokens"]
    answer = httpx.post(server.url + "/v1/chat/completions", json={
        **CHAT, "chat_template": "{% for x in range(10**9) %}a{% endfor %}", "prompt_embeds": "AAAA",
        "chat_template_kwargs": {"__class__": "x", "tools": [1]}, "guided_regex": "(a+)+$", "documents": [{"text": "x" * 1000}]})
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == usage


def test_compressed_bodies_are_not_unpacked(server):
    """CVE-2026-5497: a small body that unpacks to a large one."""
    body = gzip.compress(b'{"x": "' + b"a" * 10_000_000 + b'"}')
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        answer = httpx.post(server.url + "/v1/chat/completions", content=body, headers={"Content-Encoding": encoding})
        assert answer.status_code == 400 and "compressed" in answer.text
    with httpx.Client() as client:  # nor is an answer packed
        assert "content-encoding" not in client.get(server.url + "/v1/models").headers


def test_errors_name_nothing_of_the_machine(server):
    """CVE-2026-22778: an error told an address of the heap."""
    for body in ("{", "[]", '{"messages": 5}', '{"messages": [{"role": "user", "content": [{"type": "input_audio", "text": {}}]}]}',
                 json.dumps({**CHAT, "prompt": "\x00"}), json.dumps({"model": "m", "messages": [{"role": "x" * 5000, "content": ""}]})):
        for path in BODIES:
            text = httpx.post(server.url + path, content=body, timeout=60).text
            assert not re.search(r"0x[0-9a-fA-F]{6,}|/home/|/usr/|/work/|\.cpp|std::|boost|nlohmann", text), text
            assert len(text) < 6000


SMUGGLED = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("head", [
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    b"Content-Length: 4\r\nContent-Length: 40\r\n", b"Content-Length: 4, 40\r\n", b"Content-Length: +4\r\n",
    b"Content-Length: 0x4\r\n", b"Content-Length: 4 4\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: \x0bchunked\r\n",
    b"X: a\r\n folded: b\r\nContent-Length: 4\r\nContent-Length: 40\r\n", b"Content-Length: 4\nContent-Length: 40\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n",
])  # fmt: skip
def test_requests_whose_end_is_in_doubt(server, head):
    """Smuggling: who stands in front may see another end than the server does. Such a request gets at most one answer, and
    the connection ends with it."""
    data = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n0\r\n\r\n" + SMUGGLED
    answers = re.findall(rb"(?:^|\}|\n)HTTP/1.1 (\d+)", raw(server, data, wait=3))
    assert answers in ([], [b"400"]), answers


def test_chunks(server):
    def chunked(chunks: bytes) -> bytes:
        return raw(server, b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                           b"Transfer-Encoding: chunked\r\n\r\n" + chunks, wait=3)
    body = json.dumps(CHAT).encode()
    half = len(body) // 2
    whole = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
    assert chunked(whole).startswith(b"HTTP/1.1 200")
    with_extension = b"%x;name=\"v\"\r\n%s\r\n0\r\nX-Trailer: y\r\n\r\n" % (len(body), body)
    assert chunked(with_extension).startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    for bad in (b"-1\r\nx\r\n", b"ffffffffffffffffff\r\nx\r\n", b"5\r\nabc\r\n0\r\n\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n",
                b"5 \r\n", b"5;" + b"e" * 100_000 + b"\r\n", b"\r\n\r\n"):
        assert not chunked(bad).startswith(b"HTTP/1.1 200")


def test_many_headers(server):
    """CVE-2025-48956: headers without an end."""
    assert raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 30_000 + b"\r\n").startswith(b"HTTP/1.1 431")


def test_nothing_is_injected_into_streams(server):
    evil = 'a\n\ndata: {"x":1}\r\n\r\nevent: evil\r\u2028\x00\x1b[2J'
    tools = [{"type": "function", "function": {"name": evil, "parameters": {"type": "object", "properties": {}}}}]
    text = reply("t\n\nevent: x</think>c\n\ndata: y" + dsml_call("g", a='"\n\ndata: z'))
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "tools": tools}),
        ("/v1/messages", {"messages": [{"role": "user", "content": text}], "max_tokens": 200,
                          "tools": [{"name": evil, "input_schema": {}}]}),
        ("/v1/responses", {"input": text, "metadata": {evil: evil}, "instructions": evil, "user": evil,
                           "tools": [{"type": "function", "name": evil}]}),
    ):
        answer = httpx.post(server.url + path, json={"model": evil, "stream": True, **body}, timeout=60)
        assert answer.status_code == 200, answer.text
        for line in re.split(r"\r\n|\r|\n", answer.text):
            if line.startswith("event: "):
                assert re.fullmatch(r"event: [a-z_.]+", line) and "evil" not in line
            elif line.startswith("data: ") and line != "data: [DONE]":
                json.loads(line[6:])
            else:
                assert line in ("", "data: [DONE]"), line


def test_nothing_is_injected_into_headers_logs_and_metrics():
    with ServerProcess(log="") as server:
        for target in (b'/a"b{evil="1"}', b"/%0d%0aX-Evil:%201", b"/\x1b[2Jx", b"/" + b"a" * 5000, b"/v1/models/x%22%0a"):
            answer = raw(server, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                                 b"x-request-id: a\rX-Evil: 1\r\n\r\n", wait=2)
            assert b"evil" not in answer.lower().split(b"\r\n\r\n")[0]
        httpx.post(server.url + "/chat/completions", json={**CHAT, "model": 'm"\n{"injected":1}', "user": "\n\n"})
        metrics = httpx.get(server.url + "/metrics").text
    for line in metrics.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) .*|[a-z0-9_:]+(\{([a-z_]+=\"[^\"\n\\]*\",?)*\})? [-+0-9.einfEINF]+", line), line
    assert "evil" not in metrics
    for line in server.errors.splitlines():
        entry = json.loads(line)
        assert "injected" not in entry and len(line) < 2000
        assert not re.search(r"[\x00-\x1f]", line)


def test_names_of_users_are_no_paths(tmp_path):
    """Slots and caches of others were files with names of the client's choice."""
    cache = tmp_path / "inside" / "cache"
    names = ["../../outside", "/tmp/outside", "..\\outside", "a\x00b", "." * 300, "~root", "$(id)", "%2e%2e%2f"]
    with ServerProcess(cache=cache) as server:
        for name in names:
            for path, body in (("/chat/completions", {**CHAT, "user_id": name, "cache_salt": name, "prompt_cache_key": name}),
                               ("/messages", {**MESSAGES, "metadata": {"user_id": name}})):
                assert httpx.post(server.url + path, json=body, timeout=60).status_code == 200
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert [p.name for p in (tmp_path / "inside").iterdir()] == ["cache"]
    for file in cache.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", file.name), file
        assert (file.stat().st_mode & 0o077) == 0, "others can read it"


def test_answers_take_no_longer_than_they_are_long(server):
    """CVE-2025-48887: a pattern in the parser of calls took exponential time."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    pieces = ["<", "</", "<｜DSML｜", "｜DSML｜", "<｜DSML｜parameter name=\"", "<｜DSML｜invoke name=\"f\">\n", "\n", "<tool_calls>", '"', " ="]

    def seconds(times: int) -> float:
        began = time.monotonic()
        for piece in pieces:
            text = reply("</think>" + piece * (times // len(piece)))
            answer = httpx.post(server.url + "/v1/chat/completions", timeout=120, json={
                "model": "m", "max_tokens": 20_000, "messages": [{"role": "user", "content": text}], "tools": tools})
            assert answer.status_code == 200, answer.text
        return time.monotonic() - began

    seconds(500)
    assert seconds(8000) < 24 * max(seconds(1000), 0.05)


def test_nobody_adds_to_the_metrics(server):
    """A label for each path that somebody made up, and memory never ends; refused ones count as little."""
    for i in range(50):
        for headers in ({}, {"host": "evil.example"}):
            httpx.get(f"{server.url}/v1/made-up-{i}", headers=headers)
    assert "made-up" not in httpx.get(server.url + "/metrics").text
