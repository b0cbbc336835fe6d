"""Amazon Bedrock, through its Converse API: one format for all models that it has."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import aws, bedrock_format
from matrix.serving.gateways.aws import Aws
from matrix.serving.gateways.base import Gateway, Key
from matrix.serving.gateways.bedrock_format import ConverseStream
from matrix.serving.gateways.unsupported import reading_a_request
from matrix.spec.engine import BedrockEngine
from matrix.spec.model import ModelSpec


class BedrockGateway(Gateway):
    """Any model that Converse takes.

    Args:
        engine: How to reach it.
        model: `model.name` is a model id, an inference profile, or the ARN of either.
    """

    vendor = bedrock_format.API
    answers_n = False

    def __init__(self, engine: BedrockEngine, model: ModelSpec) -> None:
        super().__init__(engine, model, [aws.key_of(engine)])
        self._thinking_budget = engine.thinking_budget
        self._aws = Aws(engine, "bedrock-runtime")

    async def start(self) -> None:
        """Make the client.

        Raises:
            AppError: The profile, or what the role is assumed with, isn't there.
        """
        await self._aws.start()

    async def close(self) -> None:
        """Give its threads back."""
        self._aws.close()

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

    def _refusal(self, error: Exception) -> ApiError | None:
        return aws.refusal(error)
