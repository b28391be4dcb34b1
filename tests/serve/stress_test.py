"""tools/load_test.py for a few seconds: the embedded model, many at once, among clients that vanish, stall and rave."""

import re
import subprocess
import sys
from pathlib import Path

from server_process import ServerProcess

TOOL = Path(__file__).parents[2] / "tools/load_test.py"


def test_a_little_load():
    with ServerProcess(model="", parallel=32, state_bytes=48 << 20) as server:
        run = subprocess.run(
            [sys.executable, TOOL, server.url, "--streams=24", "--minutes=0.07", "--requests=300", "--alone=0.5", "--vandals=8",
             "--slack=120"],  # so soon, the cache is still filling,
            capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"300 requests .* 300 answered", run.stdout), run.stdout
    assert re.search(r"gauges +0 running, 0 waiting, (\d+) vandals", run.stdout)
    assert "errors            0" in run.stdout
