"""Amazon Bedrock, through its Converse API: one format for all models that it has."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from matrix.serving.backend import Json
from matrix.serving.gateways import bedrock_format
from matrix.serving.gateways.aws import AwsGateway
from matrix.serving.gateways.base import Key
from matrix.serving.gateways.bedrock_format import ConverseStream
from matrix.serving.gateways.unsupported import reading_a_request
from matrix.spec.engine import BedrockEngine
from matrix.spec.model import ModelSpec


class BedrockGateway(AwsGateway):
    """Any model that Converse takes.

    Args:
        engine: How to reach it.
        model: `model.name` is a model id, an inference profile, or the ARN of either.
    """

    vendor = bedrock_format.API
    answers_n = False

    def __init__(self, engine: BedrockEngine, model: ModelSpec) -> None:
        super().__init__(engine, model, "bedrock-runtime")
        self._thinking_budget = engine.thinking_budget

    async def _chat(self, key: Key, body: Json) -> Json:  # noqa: ARG002
        return bedrock_format.answer(await self._aws.call("converse", self._asked(body)), self.model.name)

    async def _stream(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:  # noqa: ARG002
        stream = ConverseStream(self.model.name)
        async with aclosing(self._aws.events("converse_stream", self._asked(body), "stream")) as events:
            async for event in events:
                for chunk in stream.feed(event):
                    yield chunk
        for chunk in stream.end():
            yield chunk

    def _asked(self, body: Json) -> Json:
        with reading_a_request():
            return bedrock_format.request(body, self.model.name, self._thinking_budget)
