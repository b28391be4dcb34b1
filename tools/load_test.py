#!/usr/bin/env python3
"""Loads a running server of hadal and says whether it bore it.

    hadal serve --port 8080 --parallel 64 --state-memory 512M &
    tools/load_test.py http://127.0.0.1:8080 [--streams 64] [--minutes 10] [--requests 10000] [--vandals 6]

One stream alone first, for comparison. Then --streams streams at once for --minutes, over the three APIs, each beginning
anew when it ends; then --requests short requests, --streams at a time over connections that stay open. All the while
--vandals clients vanish in the middle of a request or an answer, stall, do not read, or send garbage.

It fails (exit code 1) if a request got anything but its proper answer to the end, if the gauges of running and waiting
requests do not return to zero, or if the server's memory still grew in the second half. Only the standard library, and
only addresses of this machine.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from urllib.parse import urlsplit

WORDS = "the sea is deep and cold where pressure rises with every metre of the dark trench below light".split()


class Server:
    def __init__(self, url: str, key: str):
        parts = urlsplit(url)
        if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            sys.exit("load_test.py: only servers on this machine")
        self.host, self.port, self.key = parts.hostname, parts.port or 80, key

    async def connect(self):
        return await asyncio.open_connection(self.host, self.port, limit=1 << 24)

    def head(self, method: str, path: str, length: int) -> bytes:
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return (f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{key}"
                f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n").encode()

    async def ask(self, connection, method: str, path: str, body: dict | None = None) -> tuple[int, bytes]:
        """Status and body of the answer, in whole."""
        reader, writer = connection
        data = json.dumps(body).encode() if body is not None else b""
        writer.write(self.head(method, path, len(data)) + data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        if "transfer-encoding: chunked" not in head:
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            return status, await reader.readexactly(length)
        whole = bytearray()
        while size := int(await reader.readline(), 16):
            whole += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, bytes(whole)

    async def state(self) -> dict:
        connection = await self.connect()
        _, body = await self.ask(connection, "GET", "/state")
        connection[1].close()
        return json.loads(body)

    async def gauges(self) -> dict[str, float]:
        connection = await self.connect()
        _, body = await self.ask(connection, "GET", "/metrics")
        connection[1].close()
        lines = [line.rsplit(" ", 1) for line in body.decode().splitlines() if line and not line.startswith("#")]
        return {name.removeprefix("hadal:"): float(value) for name, value in lines}


class Load:
    def __init__(self, server: Server, seed: int):
        self.server = server
        self.random = random.Random(seed)
        self.errors: list[str] = []
        self.tokens = self.answers = self.blows = 0
        self.memory: list[int] = []
        self.first: list[float] = []

    def prompt(self, words: int) -> str:
        return " ".join(self.random.choice(WORDS) for _ in range(words))

    def error(self, what: str):
        self.errors.append(what)
        if len(self.errors) <= 5:
            print("  error:", what[:400], file=sys.stderr)

    async def stream(self, number: int, most: int):
        """One streamed answer, checked to its end."""
        api = ("chat", "messages", "responses")[number % 3]
        text = self.prompt(self.random.randint(5, 120))
        body: dict = {"model": "m", "stream": True, "temperature": 1}
        path = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}[api]
        if api == "responses":
            body |= {"input": text, "max_output_tokens": most}
        else:
            body |= {"messages": [{"role": "user", "content": text}], "max_tokens": most}
        if api == "chat":
            body["stream_options"] = {"include_usage": True}
        connection = await self.server.connect()
        try:
            status, answer = await self.server.ask(connection, "POST", path, body)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            return self.error(f"{api}: {error!r}")
        finally:
            connection[1].close()
        if status != 200:
            return self.error(f"{api}: {status} {answer[:300]!r}")
        events = [line[6:] for line in answer.decode().split("\n") if line.startswith("data: ")]
        try:
            if api == "chat":
                if events[-1] != "[DONE]":
                    raise ValueError("no [DONE]")
                self.tokens += json.loads(events[-2])["usage"]["completion_tokens"]
            elif api == "messages":
                if json.loads(events[-1])["type"] != "message_stop":
                    raise ValueError("no message_stop")
                self.tokens += json.loads(events[-2])["usage"]["output_tokens"]
            else:
                last = json.loads(events[-1])
                self.tokens += last["response"]["usage"]["output_tokens"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return self.error(f"{api}: {error!r} in {answer[-300:]!r}")
        self.answers += 1

    async def streams(self, n: int, seconds: float):
        end = time.monotonic() + seconds

        async def one(number: int):
            while time.monotonic() < end:
                await self.stream(number, self.random.choice([16, 64, 200]))
                number += 1

        await asyncio.gather(*(one(i) for i in range(n)))

    async def short_requests(self, total: int, at_once: int):
        left = total

        async def one():
            nonlocal left
            connection = await self.server.connect()
            while left > 0:
                left -= 1
                body = {"model": "m", "messages": [{"role": "user", "content": self.prompt(4)}], "max_tokens": 4,
                        "reasoning_effort": "none"}
                began = time.monotonic()
                try:
                    status, answer = await self.server.ask(connection, "POST", "/v1/chat/completions", body)
                except (OSError, asyncio.IncompleteReadError) as error:
                    self.error(f"short: {error!r}")
                    connection = await self.server.connect()
                    continue
                if status != 200:
                    self.error(f"short: {status} {answer[:300]!r}")
                    continue
                self.tokens += json.loads(answer)["usage"]["completion_tokens"]
                self.answers += 1
                self.first.append(time.monotonic() - began)
            connection[1].close()

        await asyncio.gather(*(one() for _ in range(at_once)))

    async def vandal(self, stop: asyncio.Event):
        r = self.random
        while not stop.is_set():
            kind = r.randrange(7)
            body = json.dumps({"model": "m", "stream": kind != 1, "max_tokens": 4000,
                               "messages": [{"role": "user", "content": self.prompt(200)}]}).encode()
            request = self.server.head("POST", "/v1/chat/completions", len(body)) + body
            try:
                reader, writer = await self.server.connect()
                if kind == 0:  # vanishes in the middle of an answer
                    writer.write(request)
                    await asyncio.wait_for(reader.read(r.randint(1, 3000)), 10)
                elif kind == 1:  # or before one begins, or in the queue
                    writer.write(request)
                    await asyncio.sleep(r.random())
                elif kind == 2:  # in the middle of a request
                    writer.write(request[: r.randint(1, len(request))])
                    await asyncio.sleep(r.random())
                elif kind == 3:  # does not read
                    writer.write(request)
                    await asyncio.sleep(r.uniform(1, 8))
                elif kind == 4:  # stalls
                    writer.write(request[:60])
                    await asyncio.sleep(r.uniform(1, 15))
                elif kind == 5:  # garbage
                    writer.write(r.randbytes(r.randint(1, 20000)))
                    await asyncio.wait_for(reader.read(100), 5)
                else:  # a request that is none
                    broken = bytearray(request)
                    for _ in range(5):
                        broken[r.randrange(len(broken))] = r.randrange(256)
                    writer.write(bytes(broken))
                    await asyncio.wait_for(reader.read(2000), 5)
                if r.random() < 0.5:
                    writer.transport.abort()  # a reset instead of a farewell
                writer.close()
            except (OSError, TimeoutError, asyncio.TimeoutError):
                pass
            self.blows += 1
            await asyncio.sleep(r.uniform(0, 0.3))

    async def watch(self, stop: asyncio.Event):
        while not stop.is_set():
            try:
                self.memory.append((await self.server.state())["memory_bytes"])
            except (OSError, asyncio.IncompleteReadError) as error:
                self.error(f"/state: {error!r}")
            try:
                await asyncio.wait_for(stop.wait(), 1)
            except (TimeoutError, asyncio.TimeoutError):
                pass


async def run(arguments) -> int:
    server = Server(arguments.url, arguments.key)
    load = Load(server, arguments.seed)
    began = time.monotonic()
    while time.monotonic() - began < arguments.alone:
        await load.stream(0, 200)
    alone = load.tokens / (time.monotonic() - began)
    print(f"one stream        {alone:8.1f} tokens/s")

    stop = asyncio.Event()
    watching = asyncio.create_task(load.watch(stop))
    vandals = [asyncio.create_task(load.vandal(stop)) for _ in range(arguments.vandals)]
    load.tokens = load.answers = 0
    before = await server.state()
    began = time.monotonic()
    await load.streams(arguments.streams, 60 * arguments.minutes)
    seconds = time.monotonic() - began
    rate = load.tokens / seconds
    print(f"{arguments.streams} streams        {rate:8.1f} tokens/s, {rate / max(alone, 1e-9):.2f} x one stream; "
          f"{load.answers} answers, {load.tokens} tokens in {seconds:.0f} s")
    after = await server.state()
    written = (after["generated_tokens"] - before["generated_tokens"]) / seconds
    read = (after["prompt_tokens"] - before["prompt_tokens"] - after["prefix_hits"] + before["prefix_hits"]) / seconds
    print(f"  the server      {written:8.1f} tokens/s written, the vandals' too, and {read:.1f} read")

    load.tokens = load.answers = 0
    began = time.monotonic()
    await load.short_requests(arguments.requests, arguments.streams)
    seconds = time.monotonic() - began
    if load.first:
        centiles = statistics.quantiles(load.first, n=100) if len(load.first) > 2 else [load.first[0]] * 99
        print(f"{arguments.requests} requests   {load.answers / seconds:8.1f} a second, {load.answers} answered in {seconds:.0f} s; "
              f"median {centiles[49]:.2f} s, 99 of 100 within {centiles[98]:.2f} s")
    stop.set()
    for vandal in vandals:
        vandal.cancel()
    await asyncio.gather(watching, *vandals, return_exceptions=True)

    deadline = time.monotonic() + 30  # for clients that stalled to be noticed
    while True:
        gauges = await server.gauges()
        if gauges["num_requests_running"] == gauges["num_requests_waiting"] == 0:
            break
        if time.monotonic() > deadline:
            load.error(f"still {gauges['num_requests_running']} running and {gauges['num_requests_waiting']} waiting")
            break
        await asyncio.sleep(0.2)
    print(f"gauges            {gauges['num_requests_running']:.0f} running, {gauges['num_requests_waiting']:.0f} waiting, "
          f"{load.blows} vandals' visits")
    samples = [m / 2**20 for m in load.memory]
    half = samples[len(samples) // 2:]
    quarter = max(1, len(half) // 4)
    early, late = statistics.median(half[:quarter]), statistics.median(half[-quarter:])
    print(f"memory            {samples[0]:.0f} MiB at first, {early:.0f} half-way, {late:.0f} in the end, {max(samples):.0f} at most")
    if late > early * 1.05 + arguments.slack:
        load.error(f"memory grew from {early:.0f} to {late:.0f} MiB in the second half")
    print(f"errors            {len(load.errors)}")
    return 1 if load.errors else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--vandals", type=int, default=6)
    parser.add_argument("--alone", type=float, default=10, help="seconds of one stream alone")
    parser.add_argument("--slack", type=float, default=16, help="MiB that memory may grow by in the second half, and 5 %%")
    parser.add_argument("--key", default="", help="an API key, if the server wants one")
    parser.add_argument("--seed", type=int, default=1)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
