"""Runs in .venv-clients: a call of a client a line on standard input, what came of it a line on standard output.

A call is `{"of": ["hanzoai", "user", "create"], "args": [...], "kwargs": {...}}`; what comes of it `{"result": ...}`,
or `{"error": the name of the exception, "status": the HTTP status}`. `{"of": ["lite"], "args": [words]}` runs the
command line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def litellm(url: str, key: str) -> Any:
    """The management clients, those of users among them."""
    module = importlib.import_module("litellm.proxy.client")
    client = module.Client(url, key)
    client.users = module.UsersManagementClient(url, key)
    client.health = importlib.import_module("litellm.proxy.client.health").HealthManagementClient(url, key)
    return client


def hanzoai(url: str, key: str) -> Any:
    """The generated SDK, made to check every answer against its types."""
    module = importlib.import_module("hanzoai")
    return module.Hanzo(base_url=url, api_key=key, max_retries=0, _strict_response_validation=True)


def lite(url: str, key: str) -> Any:
    """The proxy's command line."""
    command = importlib.import_module("litellm.proxy.client.cli").cli
    runner = importlib.import_module("click.testing").CliRunner()

    def run(*words: str) -> dict[str, object]:
        result = runner.invoke(command, ["--base-url", url, "--api-key", key, *words])
        return {"exit_code": result.exit_code, "output": result.output}

    return run


def plain(result: Any) -> Any:
    """A client's answer as JSON."""
    return result.to_dict(mode="json", exclude_unset=True) if hasattr(result, "to_dict") else result


def answer_to(clients: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    name, *steps = call["of"]
    if name not in clients:
        clients[name] = globals()[name](os.environ["SERVER"], os.environ["KEY"])
    target = clients[name]
    for step in steps:
        target = getattr(target, step)
    try:
        return {"result": plain(target(*call.get("args", ()), **call.get("kwargs", {})))}
    except Exception as error:  # noqa: BLE001 - whatever a client raises is what the test asks for
        response = getattr(error, "response", None)
        return {"error": type(error).__name__, "status": getattr(response, "status_code", None), "text": str(error)}


def main() -> None:
    clients: dict[str, Any] = {}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a client prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(answer_to(clients, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
