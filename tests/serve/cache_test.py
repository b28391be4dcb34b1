"""What agents sent before is not read again: in memory, from disk, and after the server was killed."""

import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from server_process import BUILD, ServerProcess

TOOL = Path(__file__).parents[2] / "tools/agent_sessions.py"


def play(url, **options):
    command = [sys.executable, TOOL, url, *(f"--{name}={value}" for name, value in options.items())]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_a_session_reads_nothing_again():
    with ServerProcess(model="") as server:
        said = play(server.url, sessions=1, turns=40, tokens=8000, answer=24)
    assert int(re.search(r"read again +(\d+) tokens", said)[1]) <= 128, said


def test_more_sessions_than_memory_come_back_from_disk(tmp_path):
    with ServerProcess(model="", cache=tmp_path / "cache", state_bytes=2 << 20) as server:
        said = play(server.url, sessions=6, turns=3, tokens=1500, answer=16)
    assert int(re.search(r"(\d+) prefixes came back", said)[1]) >= 6, said
    # Without the disk they do not fit: the test shows something.
    with ServerProcess(model="", state_bytes=2 << 20) as server:
        command = [sys.executable, TOOL, server.url, "--sessions=6", "--turns=3", "--tokens=1500", "--answer=16"]
        assert subprocess.run(command, capture_output=True, timeout=300).returncode == 1


def turn_of(number):
    return {"role": "user", "content": f"Turn {number}: tell me about the sea. " + "It is deep. " * 40}


def next_answer(url, answers):
    """To a conversation in which these were given; when it is on disk, where the server has one."""
    messages = [message for number, text in enumerate(answers)
                for message in (turn_of(number), {"role": "assistant", "content": text})]
    answer = httpx.post(url + "/v1/chat/completions", timeout=60, json={
        "model": "m", "messages": [*messages, turn_of(len(answers))], "max_tokens": 40, "seed": len(answers), "temperature": 1,
        "thinking": {"type": "disabled"}}).json()["choices"][0]["message"]["content"]
    while httpx.get(url + "/state").json().get("disk", {}).get("pending", 0) > 0:
        time.sleep(0.002)
    return answer


@pytest.mark.parametrize("windows", ["periodic", "full", "none"])
def test_killed_at_any_moment_it_goes_on_with_the_same_tokens(tmp_path, windows):
    turns, expected = 6, []
    with ServerProcess(model="") as server:
        start = time.monotonic()
        while len(expected) < turns:
            expected.append(next_answer(server.url, expected))
        took = time.monotonic() - start
    moments = random.Random(windows)
    cache = tmp_path / "cache"
    answers, kills = [], 0
    while len(answers) < turns:
        with ServerProcess(model="", cache=cache, cache_windows=windows) as server:
            timer = threading.Timer(moments.random() * took / 3, server.process.kill)
            if kills < 5:
                timer.start()
            try:
                while len(answers) < turns:
                    answers.append(next_answer(server.url, answers))
            except httpx.TransportError:
                kills += 1
            timer.cancel()
        assert answers == expected[:len(answers)]
        verified = subprocess.run([BUILD / "hadal", "cache", "verify", cache], capture_output=True, text=True)
        assert verified.returncode == 0, verified.stdout + verified.stderr
    assert kills > 0, "a test of nothing"
    with ServerProcess(model="", cache=cache, cache_windows=windows) as server:
        messages = [message for number, text in enumerate(expected)
                    for message in (turn_of(number), {"role": "assistant", "content": text})]
        usage = httpx.post(server.url + "/v1/chat/completions", timeout=60, json={
            "model": "m", "messages": [*messages, {"role": "user", "content": "And?"}], "max_tokens": 1,
            "thinking": {"type": "disabled"}}).json()["usage"]
        assert usage["prompt_cache_hit_tokens"] > 0.4 * usage["prompt_tokens"], usage
