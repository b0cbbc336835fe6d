"""What gateways to AWS share: credentials that are renewed, boto3's blocking calls in threads, its errors as ours."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.session
from botocore import exceptions
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from urllib3.exceptions import HTTPError, ReadTimeoutError

from matrix.errors import AppError
from matrix.serving.backend import ApiError, Json
from matrix.serving.gateways.base import Gateway, Key, gate_of
from matrix.spec.engine import AwsEngine
from matrix.spec.model import ModelSpec

THREADS = 256
"""Calls under way at a time in one process, others wait. A stream takes a thread only while it waits for an event."""

ERRORS = (exceptions.BotoCoreError, exceptions.ClientError, HTTPError)
"""What boto3 raises, the last one out of a stream."""

_CONNECT_TIMEOUT_S = 10.0
_THREAD_LAGS_S = 5.0

_OF_CODE = {
    "AccessDenied": 403,
    "AccessDeniedException": 403,
    "ExpiredToken": 401,
    "ExpiredTokenException": 401,
    "IncompleteSignature": 401,
    "IncompleteSignatureException": 401,
    "InternalFailure": 502,
    "InternalStreamFailure": 502,
    "InvalidClientTokenId": 401,
    "InvalidSignatureException": 401,
    "MissingAuthenticationToken": 401,
    "MissingAuthenticationTokenException": 401,
    "ModelErrorException": 502,
    "ModelNotReadyException": 503,
    "ModelStreamError": 502,
    "ModelStreamErrorException": 502,
    "ModelTimeoutException": 504,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 429,
    "ServiceUnavailable": 503,
    "ServiceUnavailableException": 503,
    "SignatureDoesNotMatch": 401,
    "Throttling": 429,
    "ThrottlingException": 429,
    "ThrottledException": 429,
    "TooManyRequestsException": 429,
    "UnrecognizedClientException": 401,
    "ValidationError": 400,
    "ValidationException": 400,
}
"""HTTP status of an error's code.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html#API_runtime_Converse_Errors,
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html#API_runtime_InvokeEndpoint_Errors,
https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html.
"""

_STALE = {"ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"}
"""What is said of credentials that were good once: those that are there now may be others."""


class Aws:
    """One of AWS's services, called from an event loop.

    Credentials come from boto3's own chain, or are those of `role_arn`, which is assumed again a quarter of an hour
    before they expire. Where the service says that they have expired all the same (a file that something else renews),
    they are looked up anew and the call is made once more.

    Args:
        engine: Region, profile, role, address and time limit.
        service: boto3's name of the service.
    """

    def __init__(self, engine: AwsEngine, service: str) -> None:
        self._engine = engine
        self._service = service
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=service)
        self._lock = threading.Lock()
        self._client: Any = None

    async def start(self) -> None:
        """Make the client.

        Raises:
            AppError: The profile, or what the role is assumed with, isn't there.
        """
        try:
            await self._in_thread(self._current)
        except exceptions.BotoCoreError as error:
            raise AppError(f"No client for {self._service}: {error}") from error

    def close(self) -> None:
        """Give the threads back."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def call(self, operation: str, arguments: Json, take: Callable[[Any], Any] = lambda answer: answer) -> Any:
        """Call an operation.

        Args:
            operation: Its Python name.
            arguments: Its arguments.
            take: What is taken of the answer, in the thread: reading a body blocks.

        Returns:
            What `take` returns; the answer itself without one.

        Raises:
            Exception: One of `ERRORS`.
        """
        return await self._in_thread(lambda: take(self._call(operation, arguments)))

    async def events(self, operation: str, arguments: Json, stream: str) -> AsyncGenerator[Json, None]:
        """Call an operation that answers with a stream of events.

        Args:
            operation: Its Python name.
            arguments: Its arguments.
            stream: Member of the answer that is the stream.

        Raises:
            Exception: One of `ERRORS`; from the first `anext` if there is no stream at all.
        """
        events = (await self.call(operation, arguments))[stream]
        each = iter(events)
        try:
            while (event := await self._in_thread(functools.partial(next, each, None))) is not None:
                yield event
        finally:
            # In a thread, since it waits for a read that is under way.
            self._pool.submit(events.close)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _call(self, operation: str, arguments: Json) -> Any:
        client = self._current()
        try:
            return getattr(client, operation)(**arguments)
        except exceptions.ClientError as error:
            if error.response["Error"].get("Code") not in _STALE:
                raise
        return getattr(self._current(instead_of=client), operation)(**arguments)

    def _current(self, instead_of: Any = None) -> Any:
        """The client; a new one if it is still the one that isn't wanted any more."""
        with self._lock:
            if self._client is instead_of:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        return session(self._engine).create_client(
            self._service,
            region_name=self._engine.region,
            endpoint_url=self._engine.base_url,
            config=Config(
                # Tries, and waits between them, are the gateway's.
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=THREADS,
                connect_timeout=_CONNECT_TIMEOUT_S,
                # The gateway's own limit comes first: this one is for the thread, which nothing else ends.
                read_timeout=self._engine.timeout_s + _THREAD_LAGS_S,
            ),
        )


class AwsGateway(Gateway):
    """A gateway to one of AWS's services.

    Args:
        engine: How to reach it.
        model: What the service calls the model.
        service: boto3's name of the service.
    """

    def __init__(self, engine: AwsEngine, model: ModelSpec, service: str) -> None:
        super().__init__(engine, model, [_key_of(engine)])
        self._aws = Aws(engine, service)

    async def start(self) -> None:
        """Make the client.

        Raises:
            AppError: The profile, or what the role is assumed with, isn't there.
        """
        await self._aws.start()

    async def close(self) -> None:
        """Give its threads back."""
        self._aws.close()

    def _refusal(self, error: Exception) -> ApiError | None:
        return refusal(error)


def _key_of(engine: AwsEngine) -> Key:
    """The one key of a gateway: boto3 finds the credentials, and finds them anew."""
    return Key(engine.role_arn or engine.profile or "aws", "", gate_of(engine), engine.base_url)


def session(engine: AwsEngine) -> botocore.session.Session:
    """A session with the credentials that the engine names, looked up anew.

    Raises:
        botocore.exceptions.NoCredentialsError: There are none to assume `role_arn` with. Without a role that is seen
            only at the first call, since Bedrock also takes an API key of its own (`AWS_BEARER_TOKEN_BEDROCK`).
    """
    own = botocore.session.Session(profile=engine.profile)
    if engine.role_arn is None:
        return own
    source = own.get_credentials()
    if source is None:
        raise exceptions.NoCredentialsError
    fetcher = AssumeRoleCredentialFetcher(
        functools.partial(own.create_client, region_name=engine.region),
        source,
        engine.role_arn,
        extra_args={"RoleSessionName": "matrix"},
    )
    assumed = botocore.session.Session(profile=engine.profile)
    assumed.register_component("credential_provider", CredentialResolver([_Assumed(fetcher)]))
    return assumed


class _Assumed(CredentialProvider):  # type: ignore[misc]
    """The credentials of a role, in the place of botocore's whole chain."""

    METHOD = "assume-role"

    def __init__(self, fetcher: AssumeRoleCredentialFetcher) -> None:
        super().__init__()
        self._fetcher = fetcher

    def load(self) -> DeferredRefreshableCredentials:
        return DeferredRefreshableCredentials(self._fetcher.fetch_credentials, self.METHOD)


def refusal(error: Exception) -> ApiError | None:
    """What one of boto3's errors means; None if it is none of them."""
    if not isinstance(error, ERRORS):
        return None
    if isinstance(error, exceptions.ClientError):
        return _of_service(error)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, exceptions.ReadTimeoutError | exceptions.ConnectTimeoutError | ReadTimeoutError):
        return ApiError(504, text)
    if isinstance(error, exceptions.ParamValidationError):
        return ApiError(400, text)
    if isinstance(
        error,
        exceptions.NoCredentialsError
        | exceptions.PartialCredentialsError
        | exceptions.CredentialRetrievalError
        | exceptions.ProfileNotFound
        | exceptions.TokenRetrievalError
        | exceptions.SSOError,
    ):
        return ApiError(401, text)
    return ApiError(502, text)


def _of_service(error: exceptions.ClientError) -> ApiError:
    told = error.response["Error"]
    # In a stream an error is named as its event, with a small letter.
    code = (name := told.get("Code") or "")[:1].upper() + name[1:]
    meta = error.response.get("ResponseMetadata") or {}
    status = meta.get("HTTPStatusCode", 500)
    text = f"{code}: {told.get('Message') or 'no message'}"
    if code == "ModelError":
        # The container's own answer. https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_ModelError.html
        status = error.response.get("OriginalStatusCode") or 500
        text = f"{text} {error.response.get('OriginalMessage') or ''}".rstrip()
        status = status if status < 500 or status in {503, 504} else 502
    elif code in _OF_CODE:
        status = _OF_CODE[code]
    elif status >= 500:
        status = status if status in {503, 504} else 502
    wait = (meta.get("HTTPHeaders") or {}).get("retry-after", "")
    return ApiError(status, text, retry_after_s=float(wait) if wait.replace(".", "", 1).isdigit() else None)
