"""What is served: the part of the spec that needs no config file."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from matrix.spec import OpenAIEngine


@pytest.mark.parametrize(
    "url",
    ["", "a", "a:80/v1", "//a/v1", "http://", "ftp://a/v1", "http://:80/v1", "http://a:port/v1", "http://a:99999/v1",
     "http://a:0/v1", "http://a/v1?key=1", "http://a/v1#x", "http://a b/v1", "http://[::1/v1", "grpc://a", "grpc://a:9/v1", "grpc://:9", None, 3],
)  # fmt: skip
def test_what_is_no_server_is_named(url: object) -> None:
    for given, wrong in ((url, url), (["http://fine/v1", url], url)):
        with pytest.raises(ValidationError) as raised:
            OpenAIEngine.model_validate({"kind": "openai", "base_url": given})
        (error,) = raised.value.errors()
        assert error["loc"] == ("base_url",)
        assert f"{wrong}: no http or https URL" in error["msg"]
        assert "fine" not in error["msg"]


@pytest.mark.parametrize(
    "url", ["http://a", "https://a.b:443/v1/", "http://127.0.0.1:8000/v1", "http://[::1]:80/v1", "http://me:key@a/v1"]
)
def test_what_is_a_server_is_kept_as_it_was_given(url: str) -> None:
    engine = OpenAIEngine(kind="openai", base_url=url)
    assert engine.base_url == url
    assert engine.urls == [url.rstrip("/")]
    assert OpenAIEngine(kind="openai", base_url=[url, "http://other/v1"]).urls[0] == url.rstrip("/")


def test_servers_that_are_asked_by_grpc() -> None:
    engine = OpenAIEngine(kind="openai", base_url=["grpc://a:9/", "grpc://[::1]:9"])
    assert engine.urls == ["grpc://a:9", "grpc://[::1]:9"]
    with pytest.raises(ValidationError, match="some by gRPC"):
        OpenAIEngine(kind="openai", base_url=["grpc://a:9", "http://a:9/v1"])
