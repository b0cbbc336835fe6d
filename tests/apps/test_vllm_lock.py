"""The lock before all of vLLM's paths."""

from __future__ import annotations

from typing import Any

import pytest

from matrix.apps.vllm_lock import Lock


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/health", None, 200),
        ("/metrics", None, 401),
        ("/invocations", b"Bearer wrong", 401),
        ("/invocations", b"Bearer right", 200),
        ("/v1/chat/completions", b"right", 401),
    ],
)
async def test_only_health_is_open(path: str, header: bytes | None, status: int, monkeypatch) -> None:
    monkeypatch.setenv("MATRIX_API_KEY", "right")
    sent: list[dict[str, Any]] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if header is None else [(b"authorization", header)]
    await Lock(behind)({"type": "http", "path": path, "headers": headers}, None, send)
    assert sent[0]["status"] == status


async def test_a_websocket_without_the_key_is_closed(monkeypatch) -> None:
    monkeypatch.setenv("MATRIX_API_KEY", "right")
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Lock(None)({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
