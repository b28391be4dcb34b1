"""Agents that people use, at work against hadal's server. The model is the scripted one: it says at each turn what a good
model would, and everything else, from the agent's requests to its commands on the disk, is real."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from server_process import ServerProcess, dsml_call

HERE = Path(__file__).parent
AGENT_PYTHON = Path(os.environ.get("HADAL_AGENT_PYTHON", HERE.parents[1] / "build/agent_venv/bin/python"))
BUGGY = "def add(a, b):\n    return a - b\n"
CHECK = "import calc\nassert calc.add(2, 3) == 5\nprint('checked')\n"


def script(path: Path, steps: list[str]) -> Path:
    """One reply for each turn of the assistant."""
    path.write_text(json.dumps([{"match": "", "turn": turn, "reply": reply} for turn, reply in enumerate(steps)]))
    return path


# The way of a model through the task, with what models do on it: thinking, text beside a call, an error and its repair,
# two calls at once.
def steps(tool: str) -> list[str]:
    second = dsml_call(tool, command="python3 check.py").split("tool_calls>", 1)[1]
    both = dsml_call(tool, command="sed -i 's/a - b/a + b/' calc.py").replace("\n</｜DSML｜tool_calls>", "") + second
    return [
        "First I look.</think>I will look at the file." + dsml_call(tool, command="cat calc.py && python3 check.py"),
        "It subtracts; 2>&1 & <fix> it.</think>" + both,
        "The check passed.</think>" + dsml_call(
            tool, command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && cat calc.py 2>&1"),
    ]


@pytest.mark.skipif(not AGENT_PYTHON.exists(), reason=f"there is no {AGENT_PYTHON} (./test makes it, from PyPI)")
@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_mini_swe_agent(tmp_path, api):
    work = tmp_path / "work"
    work.mkdir()
    (work / "calc.py").write_text(BUGGY)
    (work / "check.py").write_text(CHECK)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                   "MSWEA_GLOBAL_CONFIG_DIR": str(tmp_path), "MSWEA_SILENT_STARTUP": "1"}
    with ServerProcess(script=script(tmp_path / "script.json", steps("bash"))) as server:
        url = server.url + ("/v1" if api == "openai" else "")
        run = subprocess.run([AGENT_PYTHON, HERE / "mini_agent.py", f"{api}/deepseek-v4", url, "Make check.py pass."],
                             cwd=work, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    ended = json.loads(run.stdout.splitlines()[-1])
    assert ended["exit_status"] == "Submitted", ended
    assert ended["submission"] == BUGGY.replace("-", "+")
    assert (work / "calc.py").read_text() == BUGGY.replace("-", "+")
    assert ended["calls"] == 3
    assert ended["thoughts"][0] == "First I look." and len(ended["thoughts"]) == 3
    # It sends the whole conversation each time; hadal reads only what is new.
    last = ended["usage"][-1]
    cached = (last.get("prompt_tokens_details") or {}).get("cached_tokens")
    assert last["prompt_tokens"] - cached < 128, last


def test_pydantic_ai_over_the_messages_api(tmp_path, monkeypatch):
    """Another client, over the Anthropic API, streaming, with typed tools and a typed result."""
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    monkeypatch.chdir(tmp_path)
    second = dsml_call("read_file", path="b.txt").split("tool_calls>", 1)[1]
    both = dsml_call("read_file", path="a.txt").replace("\n</｜DSML｜tool_calls>", "") + second
    replies = [
        "Two files.</think>I read both." + both,
        "40 and 2.</think>" + dsml_call("write_file", path="sum.txt", text="42\n"),
        "Done.</think>The sum is 42.",
    ]
    (tmp_path / "a.txt").write_text("40")
    (tmp_path / "b.txt").write_text("2")
    with ServerProcess(script=script(tmp_path / "script.json", replies)) as server:
        model = AnthropicModel("claude-sonnet-x", provider=AnthropicProvider(api_key="none", base_url=server.url))
        agent = pydantic_ai.Agent(model, system_prompt="Terse.")

        @agent.tool_plain
        def read_file(path: str) -> str:
            """Reads a file."""
            return Path(path).read_text()

        @agent.tool_plain
        def write_file(path: str, text: str) -> str:
            """Writes a file."""
            Path(path).write_text(text)
            return "written"

        result = agent.run_sync("Write the sum of a.txt and b.txt to sum.txt.")
    assert result.output == "The sum is 42."
    assert (tmp_path / "sum.txt").read_text() == "42\n"
    assert result.usage.requests == 3 and result.usage.cache_read_tokens > 0


def test_claude_code_requests(tmp_path):
    """What Claude Code sends, as far as it is known (no package of it can be had from PyPI): the header that changes with
    each request, betas, blocks with cache_control, adaptive thinking, parallel calls and their results with an image,
    count_tokens, and a small background request in between."""
    import anthropic

    calls = dsml_call("Bash", command="ls").replace("\n</｜DSML｜tool_calls>", "") + dsml_call(
        "Read", file_path="/x").split("tool_calls>", 1)[1]
    replies = ["Look.</think>Let me look." + calls, "Seen.</think>All is well."]
    tools = [{"name": name, "description": "d " * 300, "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": False,
        "properties": {key: {"type": "string", "description": "k"}}, "required": [key]}}
        for name, key in (("Bash", "command"), ("Read", "file_path"))]
    with ServerProcess(script=script(tmp_path / "script.json", replies)) as server:
        client = anthropic.Anthropic(base_url=server.url, auth_token="none", api_key=None, max_retries=0)

        def ask(messages, cch):
            with client.messages.stream(
                model="deepseek-flash[1m]", max_tokens=32000, messages=messages, tools=tools,
                system=[{"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={cch};"},
                        {"type": "text", "text": "You are Claude Code. " * 200, "cache_control": {"type": "ephemeral"}}],
                thinking={"type": "adaptive"}, metadata={"user_id": "user_1_account__session_2"},
                extra_body={"output_config": {"effort": "max"}, "context_management": {"edits": []}},
                extra_query={"beta": "true"}, extra_headers={"anthropic-beta": "claude-code-20250219,interleaved-thinking"},
            ) as stream:
                return stream.get_final_message()

        messages = [{"role": "user", "content": [
            {"type": "text", "text": "<system-reminder>today</system-reminder>"},
            {"type": "text", "text": "Look around", "cache_control": {"type": "ephemeral"}}]}]
        first = ask(messages, "aaaaa")
        assert [b.type for b in first.content] == ["thinking", "text", "tool_use", "tool_use"]
        title = client.messages.create(model="claude-haiku", max_tokens=100, system="Make a title.",
                                       messages=[{"role": "user", "content": "Look around"}])
        assert title.content
        messages += [
            {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in first.content]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": first.content[2].id, "content": "a b"},
                {"type": "tool_result", "tool_use_id": first.content[3].id, "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]},
                {"type": "text", "text": "<system-reminder>go on</system-reminder>"}]}]
        counted = client.messages.count_tokens(model="m", messages=messages, tools=tools).input_tokens
        second = ask(messages, "bbbbb")
        assert second.content[-1].text == "All is well." and counted > 100
        assert second.usage.input_tokens < 128, "the background request or the header cost the prefix"
