"""Gemini's API, and Vertex AI's, through google-genai."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import google.auth
import pydantic
from google import genai
from google.auth import exceptions as auth_exceptions
from google.auth.transport.requests import Request
from google.genai import errors, types

from matrix.errors import AppError
from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways import answers, gemini_format
from matrix.serving.gateways.base import Gateway, Key, gate_of, keys_of
from matrix.serving.gateways.gemini_format import GeminiStream
from matrix.serving.gateways.unsupported import reading_a_request
from matrix.spec.engine import GeminiEngine
from matrix.spec.model import ModelSpec

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"

_RENEWED_FOR_S = 60.0
"""A token that is younger isn't renewed again: requests that were refused at the same time share one renewal."""


class GeminiGateway(Gateway):
    """Gemini with API keys, or on Vertex AI with the credentials that Google's libraries find by themselves.

    Args:
        engine: How to reach it.
        model: `model.name` is Gemini's name of the model, such as `gemini-2.5-flash`.

    Raises:
        AppError: A variable that should hold a key isn't set, or none is named and no project either.
    """

    vendor = gemini_format.API

    def __init__(self, engine: GeminiEngine, model: ModelSpec) -> None:
        super().__init__(engine, model, _keys(engine))
        self._engine = engine
        self._clients: dict[str, genai.Client] = {}
        self._session: aiohttp.ClientSession | None = None
        self._credentials: Any = None
        self._renewed_at = float("-inf")
        self._renewing = asyncio.Lock()

    async def start(self) -> None:
        """Open a client for each key.

        Raises:
            AppError: There are no application default credentials for Vertex AI.
        """
        if self._engine.project is not None:
            try:
                self._credentials, _ = await asyncio.to_thread(google.auth.default, scopes=[_SCOPE])
            except auth_exceptions.DefaultCredentialsError as error:
                raise AppError(f"engine.project={self._engine.project}: {error}") from error
        # google-genai's own session would have aiohttp's limit of 100 connections.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        for key in self.keys:
            options = types.HttpOptions(
                base_url=key.base_url,
                aiohttp_client=self._session,
                retry_options=types.HttpRetryOptions(attempts=1),
            )
            self._clients[key.name] = self._client(key, options)

    def _client(self, key: Key, options: types.HttpOptions) -> genai.Client:
        if self._engine.project is None:
            return genai.Client(vertexai=False, api_key=key.secret, http_options=options)
        return genai.Client(
            vertexai=True,
            project=self._engine.project,
            location=self._engine.location,
            credentials=self._credentials,
            http_options=options,
        )

    async def close(self) -> None:
        """Close the clients and their connections."""
        for client in self._clients.values():
            await client.aio.aclose()
        if self._session is not None:
            await self._session.close()

    async def _chat(self, key: Key, body: Json) -> Json:
        response = await self._clients[key.name].aio.models.generate_content(**self._asked(body))
        return gemini_format.answer(response, self.model.name)

    async def _stream(self, key: Key, body: Json) -> AsyncGenerator[Json, None]:
        stream = GeminiStream(self.model.name)
        async for response in await self._clients[key.name].aio.models.generate_content_stream(**self._asked(body)):
            for chunk in stream.feed(response):
                yield chunk
        for chunk in stream.end():
            yield chunk

    def _asked(self, body: Json) -> Json:
        with reading_a_request():
            contents, config = gemini_format.request(body, self.model.name, self._engine.thinking_budget)
            return {
                "model": self.model.name,
                "contents": [types.Content.model_validate(content) for content in contents],
                "config": types.GenerateContentConfig.model_validate(config),
            }

    async def _embed(self, key: Key, body: Json) -> Json:
        with reading_a_request():
            given = [body["input"]] if isinstance(body["input"], str) else body["input"]
            # As contents, not texts: some models would take a list of texts as the parts of one.
            contents = [types.Content(parts=[types.Part(text=text)]) for text in given]
            config = types.EmbedContentConfig(output_dimensionality=body.get("dimensions"))
        told = await self._clients[key.name].aio.models.embed_content(
            model=self.model.name,
            contents=contents,
            config=config,
        )
        found = told.embeddings or []
        if len(found) != len(given):
            raise ApiError(502, f"{self.vendor} gave {len(found)} embeddings for {len(given)} texts.")
        # Only Vertex AI counts tokens.
        tokens = sum(int(one.statistics.token_count or 0) for one in found if one.statistics)
        encoding = body.get("encoding_format") or "float"
        return answers.embeddings(self.model.name, [one.values or [] for one in found], encoding, tokens)

    async def _renew(self, key: Key) -> bool:  # noqa: ARG002
        """Google's libraries renew a token before it expires; this is for one that was taken back."""
        if self._credentials is None:
            return False
        async with self._renewing:
            if time.monotonic() - self._renewed_at > _RENEWED_FOR_S:
                try:
                    await asyncio.to_thread(self._credentials.refresh, Request())
                except auth_exceptions.GoogleAuthError:
                    return False
                self._renewed_at = time.monotonic()
        return True

    def _refusal(self, error: Exception) -> ApiError | None:
        if isinstance(error, errors.APIError):
            return refusal(error)
        if isinstance(error, auth_exceptions.TransportError):
            return ApiError(502, f"Google's token server: {error}")
        if isinstance(error, auth_exceptions.GoogleAuthError):
            return ApiError(401, f"Google's credentials: {error}")
        if isinstance(
            error,
            aiohttp.ClientError | errors.UnknownApiResponseError | json.JSONDecodeError | pydantic.ValidationError,
        ):
            return ApiError(502, f"{self.vendor}: {type(error).__name__}: {error}")
        if isinstance(error, ValueError):
            # What the SDK refuses to send, such as a field that only one of both APIs has.
            return ApiError(400, str(error))
        return None


def _keys(engine: GeminiEngine) -> list[Key]:
    if engine.project is not None:
        return [Key(engine.project, "", gate_of(engine), engine.base_url)]
    if engine.api_key_env is None:
        raise AppError("engine.api_key_env=null: Gemini's API needs a key, or engine.project for Vertex AI")
    return keys_of(engine, engine.api_key_env, engine.base_url)


def refusal(error: errors.APIError) -> ApiError:
    """What an error of the API means. https://ai.google.dev/gemini-api/docs/troubleshooting lists them."""
    told = error.details if isinstance(error.details, dict) else {}
    details = (told.get("error") or told).get("details") or []
    status = error.code or 502
    text = f"{error.status}: {error.message}"
    if any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
        # Said with 400.
        return ApiError(401, text)
    if status >= 500 and status not in {503, 504}:
        status = 502
    headers = getattr(error.response, "headers", None) or {}
    wait = headers.get("Retry-After") or ""
    # https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto: RetryInfo, as `34.07s`.
    delays = [detail["retryDelay"].rstrip("s") for detail in details if "retryDelay" in detail]
    waits = [float(text) for text in (wait, *delays) if text.replace(".", "", 1).isdigit()]
    return ApiError(status, text, retry_after_s=max(waits, default=None))
