"""Azure OpenAI: OpenAI's API, with deployments in the path and other credentials."""

from __future__ import annotations

from pathlib import Path

import openai

from matrix.errors import AppError
from matrix.serving.backend import ApiError
from matrix.serving.gateways.base import Key, gate_of, keys_of
from matrix.serving.gateways.openai import OpenAIFamilyGateway
from matrix.serving.gateways.stainless import client_options
from matrix.spec.engine import AzureEngine
from matrix.spec.model import ModelSpec


class AzureGateway(OpenAIFamilyGateway):
    """A deployment (`model.name`) of Azure OpenAI, with keys or an Entra ID token from a file."""

    vendor = "Azure OpenAI"

    def __init__(self, engine: AzureEngine, model: ModelSpec) -> None:
        self._endpoint = engine.base_url
        self._api_version = engine.api_version
        self._token = _TokenFile(engine.token_file) if engine.token_file else None
        if self._token:
            keys = [Key("token_file", self._token.read(), gate_of(engine))]
        elif engine.api_key_env:
            keys = keys_of(engine, engine.api_key_env)
        else:
            raise AppError("Azure OpenAI needs engine.api_key_env or engine.token_file.")
        super().__init__(engine, model, keys)

    def _client(self, key: Key) -> openai.AsyncOpenAI:
        return openai.AsyncAzureOpenAI(
            azure_endpoint=self._endpoint,
            azure_deployment=self.model.name,
            api_version=self._api_version,
            **({"azure_ad_token_provider": self._current_token} if self._token else {"api_key": key.secret}),
            **client_options(openai),
        )

    def _current_token(self) -> str:
        """The token, before each call; kept in the key, too, so that no error shows it."""
        if self._token:
            self.keys[0].secret = self._token.read()
        return self.keys[0].secret

    def _refusal(self, error: Exception) -> ApiError | None:
        return ApiError(401, str(error)) if isinstance(error, AppError) else super()._refusal(error)

    async def _renew(self, key: Key) -> bool:  # noqa: ARG002
        if self._token:
            self._token.forget()
        # Also if it is the same: another request may have read the new one since this one was sent with the old.
        return self._token is not None


class _TokenFile:
    """A token that something else writes to a file, and replaces before it expires."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()
        self._seen: tuple[int, int] | None = None
        self._token = ""

    def read(self) -> str:
        """The token; the file is read again if it changed.

        Raises:
            AppError: There is none.
        """
        try:
            stat = self._path.stat()
            if (seen := (stat.st_mtime_ns, stat.st_ino)) != self._seen:
                self._token, self._seen = self._path.read_text().strip(), seen
        except OSError as error:
            raise AppError(f"engine.token_file: {error}") from None
        if not self._token:
            raise AppError(f"engine.token_file: {self._path} is empty")
        return self._token

    def forget(self) -> None:
        """Read the file the next time in any case."""
        self._seen = None
