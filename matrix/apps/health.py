"""Whether an app answers, asked the way its clients ask: each replica, and the front door."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from matrix.apps.directory import AppRecord
from matrix.apps.lookup import door_addresses, wait_for_urls
from matrix.client.containers import ContainerClient, Ran
from matrix.client.execute_code import batch_executions
from matrix.client.query_llm import batch_requests
from matrix.errors import AppError, RequestError

_PROGRAM = "print(1+1)"
_COMMAND = "echo hello"
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        # Without it vLLM (0.32) lets the arguments be any JSON.
        "strict": True,
    },
}


def check_health(
    app: AppRecord,
    *,
    prompt: str = "What is the capital of France? Answer in one word.",
    use_chat: bool = True,
    use_tools: bool = False,
    use_grpc: bool = False,
    image: str | None = None,
    max_tokens: int = 16,
    timeout_s: float = 60,
) -> dict[str, Any]:
    """Send one request to each replica of an app, and one through the front door.

    Args:
        app: The app; one that serves no model is asked for what it does, and the options on prompts don't count.
        prompt: What is asked.
        use_chat: Ask for a chat completion; otherwise for a text completion.
        use_tools: Offer a tool and insist on its being called.
        use_grpc: By gRPC instead of HTTP.
        image: What an app of containers is asked for one of; None: the first of its `engine.images`.
        max_tokens: Tokens of the answer at most.
        timeout_s: Seconds until an endpoint that doesn't answer is given up.

    Returns:
        `app`, `model`, `healthy` (every endpoint answered, and there is one), and `endpoints`: `url`, `ok`, `seconds`,
        and `answer` or `error` of each.

    Raises:
        AppError: No replica is ready in time, it isn't known which image to ask for, or containers are asked by gRPC.
    """
    if app.kind == "container" and use_grpc:
        raise AppError(f"App {app.name} hands out containers, which are asked for by HTTP: use_grpc=false")
    wanted = (image or _first_image(app)) if app.kind == "container" else ""
    urls = wait_for_urls(app.name, timeout_s, grpc=use_grpc)
    door = door_addresses()
    if door is not None and not use_grpc:
        urls = [*urls, f"{door['url']}/{app.name}/v1"]
    if app.kind == "sandbox":
        return _checked(app, urls, lambda url: _run(url, app.api_key, timeout_s))
    if app.kind == "container":
        return _checked(app, urls, lambda url: _enter(url, app.api_key, wanted, timeout_s))
    body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if use_chat else {"prompt": prompt}
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "top_p": None, "api_key": app.api_key}
    if use_tools:
        choice = {"type": "function", "function": {"name": "get_weather"}}
        options |= {"tools": [_WEATHER], "tool_choice": choice, "max_tokens": max(max_tokens, 64)}

    def ask(url: str) -> dict[str, Any]:
        row = batch_requests(url, app.model_name, [body], timeout_secs=timeout_s, max_retries=1, **options)[0]
        return _outcome(row["response"])

    return _checked(app, urls, ask)


def _checked(app: AppRecord, urls: list[str], ask: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    endpoints = []
    for url in urls:
        began = time.monotonic()
        endpoints.append({"url": url, **ask(url), "seconds": round(time.monotonic() - began, 3)})
    healthy = bool(endpoints) and all(endpoint["ok"] for endpoint in endpoints)
    return {"app": app.name, "model": app.model_name, "healthy": healthy, "endpoints": endpoints}


def _run(url: str, api_key: str, timeout_s: float) -> dict[str, Any]:
    """Have a sandbox work something out."""
    row = batch_executions(url, [_PROGRAM], timeout_secs=timeout_s, max_retries=1, api_key=api_key)[0]
    response = row["response"]
    if response.get("error"):
        return {"ok": False, "error": response["error"]}
    answer = f"{_PROGRAM}: {response['stdout'].strip() or response['stderr'].strip()} ({response['status']})"
    if response["stdout"] != "2\n":
        return {"ok": False, "error": answer}
    return {"ok": True, "answer": answer}


def _first_image(app: AppRecord) -> str:
    for name in app.spec["engine"]["images"]:
        if name != "*":
            return str(name)
    raise AppError(f"App {app.name} has no engine.images to ask for: say which image, image=NAME")


def _enter(url: str, api_key: str, image: str, timeout_s: float) -> dict[str, Any]:
    """Lease a container, and have a command run in it."""

    async def ran() -> Ran:
        async with (
            ContainerClient(url, api_key=api_key, max_attempts=1) as client,
            await client.acquire(image, timeout_s=timeout_s) as container,
        ):
            return await container.execute(_COMMAND, timeout_s=timeout_s)

    try:
        said = asyncio.run(ran())
    except RequestError as error:
        return {"ok": False, "error": str(error)}
    answer = f"{_COMMAND} in {image}: {said.output.strip()} (exit code {said.exit_code})"
    return {"ok": True, "answer": answer} if said.output == "hello\n" else {"ok": False, "error": answer}


def _outcome(response: dict[str, Any]) -> dict[str, Any]:
    if response.get("error"):
        return {"ok": False, "error": response["error"]}
    calls = (response.get("tool_calls") or [None])[0]
    return {"ok": True, "answer": calls or (response.get("text") or [""])[0]}
