#!/usr/bin/env python3
"""Plays agents against a running server of hadal and says how much of their conversations it read again.

    hadal serve --port 8080 --cache-dir /tmp/cache --state-memory 512M &
    tools/agent_sessions.py http://127.0.0.1:8080 [--sessions 8] [--turns 40] [--tokens 60000] [--again 256]

Every session is an agent at work: a system prompt, tools, answers of the model, results of its calls or words of a user,
growing evenly to --tokens tokens in --turns turns; as agents do, it sends the whole conversation back each time, without the
reasoning. The sessions take turns, so that each finds the memory full of the others.

What a turn brings anew must be read. Anything beyond is read again: prompt tokens that the cache did not give, less those
that were not in the turn before or its answer. It fails (exit code 1) if a turn read more than --again tokens again. Only the
standard library.
"""

import argparse
import json
import random
import sys
import time
import urllib.request

WORDS = ("the file has a line that opens with a name and a path then calls return value of list map error test build run "
         "number string index token cache page state model layer head row").split()
TOOLS = [{"type": "function", "function": {
    "name": name, "description": f"{name} something in the repository",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}}
    for name in ("read_file", "list_files", "search", "run_tests")]


def ask(url: str, key: str, path: str, body: dict | None = None) -> dict:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=3600) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit(f"agent_sessions.py: {path}: {error.code}: {error.read().decode(errors='replace')[:500]}")


class Session:
    def __init__(self, number: int, arguments: argparse.Namespace):
        self.random = random.Random(number)
        self.arguments = arguments
        self.messages = [{"role": "system", "content": f"You are agent {number}. " + self.words(200)},
                         {"role": "user", "content": self.words(100)}]
        self.known = 0  # tokens of the conversation so far, the last answer's among them
        self.again: list[int] = []
        self.prompt = 0
        self.characters = 4.0  # of a token, as learnt

    def words(self, tokens: float) -> str:
        text = ""
        while len(text) < tokens * getattr(self, "characters", 4.0):
            text += self.random.choice(WORDS) + (".\n" if self.random.random() < 0.1 else " ")
        return text

    def turn(self, number: int) -> None:
        a = self.arguments
        body = {"model": "m", "messages": self.messages, "tools": TOOLS, "max_tokens": a.answer, "seed": number}
        answer = ask(a.url, a.key, "/v1/chat/completions", body)
        usage = answer["usage"]
        missed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        if number > 0:
            self.again.append(missed - (usage["prompt_tokens"] - self.known))
            added = sum(len(m["content"] or "") for m in self.messages[self.sent:])
            self.characters = 0.5 * self.characters + 0.5 * added / max(usage["prompt_tokens"] - self.known, 1)
        self.prompt = usage["prompt_tokens"]
        self.known = usage["prompt_tokens"] + usage["completion_tokens"]
        message = answer["choices"][0]["message"]
        kept = {key: message[key] for key in ("role", "content", "tool_calls") if message.get(key) is not None}
        self.messages.append({"content": None} | kept)
        self.sent = len(self.messages)
        more = (a.tokens - self.known) / max(a.turns - 1 - number, 1)
        calls = message.get("tool_calls") or []
        for call in calls:
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": self.words(more / len(calls))})
        if not calls:
            self.messages.append({"role": "user", "content": self.words(more)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--key", default="")
    for name, value, what in (("sessions", 8, "that take turns"), ("turns", 40, "of each"), ("tokens", 60_000, "that each grows to"),
                              ("answer", 64, "tokens that an answer may take"), ("again", 256, "tokens that a turn may read again")):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{what} ({value})")
    arguments = parser.parse_args()
    arguments.url = arguments.url.rstrip("/")
    sessions = [Session(i, arguments) for i in range(arguments.sessions)]
    start = time.monotonic()
    for number in range(arguments.turns):
        for session in sessions:
            session.turn(number)
        if sys.stderr.isatty():
            print(f"\rturn {number + 1} of {arguments.turns}", end="", file=sys.stderr)
    seconds = time.monotonic() - start
    state = ask(arguments.url, arguments.key, "/state")
    again = [tokens for session in sessions for tokens in session.again]
    prompts = [session.prompt for session in sessions]
    print(f"sessions          {len(sessions)} of {arguments.turns} turns, {min(prompts)} to {max(prompts)} tokens at the end, {seconds:.0f} s")
    print(f"read again        {max(again)} tokens in a turn at most, {sum(again) / len(again):.1f} on average")
    print(f"read              {state['prompt_tokens']} tokens; {state['prefix_hits']} of {state['prefix_queries']} came from the cache")
    print(f"states            {state['state_bytes'] / 1e6:.0f} of {state['state_budget'] / 1e6:.0f} MB")
    if "disk" in state:
        print(f"disk              {state['disk']['loads']} prefixes came back, {state['disk']['bytes'] / 1e6:.0f} MB are there")
    return int(max(again) > arguments.again)


if __name__ == "__main__":
    sys.exit(main())
