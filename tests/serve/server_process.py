"""Starts the servers of the tests, and what the tests have in common."""

import json
import os
import signal
import subprocess
from pathlib import Path

BUILD = Path(os.environ.get("HADAL_BUILD", Path(__file__).resolve().parents[2] / "build" / "ci"))


class ServerProcess:
    """scripted_server with options, on a port of its own, until the block ends."""

    def __init__(self, **options):
        self.options = options

    def __enter__(self):
        command = [str(BUILD / "tests" / "scripted_server")]
        command += [f"{key}={value}" for key, value in self.options.items()]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if "log" in self.options else None, text=True
        )
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line
        self.port = int(line.split()[-1])
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.errors = self.process.communicate(timeout=30)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode in (0, -signal.SIGKILL), self.process.returncode


def reply(text: str) -> str:
    """A user message that makes the scripted model write `text`."""
    return f"REPLY({json.dumps(text, ensure_ascii=False)})REPLY"


def dsml_call(name: str, **arguments) -> str:
    """A block with one call, as the model writes it."""
    lines = ["\n\n<｜DSML｜tool_calls>", f'<｜DSML｜invoke name="{name}">']
    for key, value in arguments.items():
        is_string = isinstance(value, str)
        text = value if is_string else json.dumps(value)
        lines.append(
            f'<｜DSML｜parameter name="{key}" string="{str(is_string).lower()}">{text}</｜DSML｜parameter>'
        )
    return "\n".join([*lines, "</｜DSML｜invoke>", "</｜DSML｜tool_calls>"])
