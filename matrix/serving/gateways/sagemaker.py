"""Endpoints of Amazon SageMaker whose container speaks OpenAI's format, as those of vLLM, SGLang and LMI do.

The request goes to the container's `/invocations` as it is. What it asks for (chat, text, embeddings) is told from its
fields there: https://docs.vllm.ai/en/latest/deployment/frameworks/sagemaker.html.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways.aws import AwsGateway
from matrix.serving.gateways.base import Key
from matrix.spec.engine import SagemakerEngine
from matrix.spec.model import ModelSpec


class SagemakerGateway(AwsGateway):
    """One endpoint.

    Args:
        engine: How to reach it.
        model: `model.name` is the name that the container serves its model by.
    """

    vendor = "SageMaker"

    def __init__(self, engine: SagemakerEngine, model: ModelSpec) -> None:
        super().__init__(engine, model, "sagemaker-runtime")
        self._endpoint = engine.endpoint

    async def _chat(self, key: Key, body: Json) -> Json:  # noqa: ARG002
        said = await self._aws.call("invoke_endpoint", self._asked(body), lambda answer: answer["Body"].read())
        return _object(said)

    async def _stream(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:  # noqa: ARG002
        asked = self._asked({**body, "stream": True, "stream_options": {"include_usage": True}})
        lines = Lines()
        ended = False
        events = self._aws.events("invoke_endpoint_with_response_stream", asked, "Body")
        async with aclosing(events):
            async for event in events:
                for line in lines.feed(event["PayloadPart"]["Bytes"]):
                    if line == b"[DONE]":
                        ended = True
                        continue
                    chunk = _object(line)
                    ended = ended or any(choice.get("finish_reason") for choice in chunk.get("choices") or ())
                    yield chunk
        if not ended:
            raise ApiError(502, "the container broke off its stream before the end of the answer")

    _complete = _chat
    _embed = _chat
    _stream_completion = _stream

    def _asked(self, body: Json) -> Json:
        return {"EndpointName": self._endpoint, "ContentType": "application/json", "Body": orjson.dumps(body)}


class Lines:
    """The data of server-sent events, out of pieces that are cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data that is whole with this piece."""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        return [line.removeprefix(b"data:").strip() for line in whole if line.startswith(b"data:")]


def _object(said: bytes) -> Json:
    """A JSON object of the container's.

    Raises:
        ApiError: It is none (502), or an error; with the status that it names, or 502.
    """
    try:
        told: Any = orjson.loads(said)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        raise ApiError(502, f"the container's answer is no JSON object: {said[:200]!r}")
    if error := told.get("error"):
        # In a stream, and of some containers with status 200.
        message, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (error, None)
        raise ApiError(code if isinstance(code, int) and 400 <= code < 600 else 502, f"the container: {message}")
    return told
