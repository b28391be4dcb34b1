"""mini-swe-agent on a task in the present folder: mini_agent.py MODEL BASE_URL TASK. Prints how it ended, as JSON. Runs in
an environment of its own (agent_requirements.txt), so that the tests' own packages need not agree with the agent's."""

import json
import sys

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

model, base_url, task = sys.argv[1:]
kwargs = {"api_base": base_url, "api_key": "none", "max_tokens": 4000}
agent = DefaultAgent(
    LitellmModel(model_name=model, model_kwargs=kwargs, cost_tracking="ignore_errors"),
    LocalEnvironment(timeout=20),
    system_template="You are an engineer who works with one tool, bash.",
    instance_template="{{task}}",
    step_limit=12,
)
ended = agent.run(task)
# What the agent heard of the model: thinking must come through as such.
thoughts = [m.get("reasoning_content") for m in agent.messages if m.get("reasoning_content")]
usage = [m["extra"]["response"]["usage"] for m in agent.messages if m["role"] == "assistant"]
print(json.dumps({**ended, "calls": agent.n_calls, "thoughts": thoughts, "usage": usage}))
