from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from matrix.client.images import parts_of, with_images

PIXELS = b"\x89PNG\r\n\x1a\n and so on"


async def sent(body: dict[str, Any]) -> Mapping[str, Any]:
    return await with_images(body, parts_of(body))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "a picture.png"
    file.write_bytes(PIXELS)
    return file


def asking(image_url: Any) -> dict[str, Any]:
    text = {"type": "text", "text": "What is that?"}
    message = {"role": "user", "content": [text, {"type": "image_url", "image_url": image_url}]}
    return {"model": "m", "messages": [{"role": "system", "content": "Look."}, message], "temperature": 0}


def data(kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(PIXELS).decode()}"


async def test_a_path_and_a_file_url_become_data(image: Path) -> None:
    for url in (str(image), f"file://{image}", image.as_uri()):
        assert await sent(asking({"url": url, "detail": "low"})) == asking({"url": data(), "detail": "low"})


async def test_the_url_alone_will_do(image: Path) -> None:
    assert await sent(asking(str(image))) == asking({"url": data()})


async def test_a_relative_path(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image.parent)
    assert await sent(asking({"url": "a picture.png"})) == asking({"url": data()})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jpg", "image/jpeg"), ("a.JPEG", "image/jpeg"), ("a.webp", "image/webp"), ("a.gif", "image/gif")],
)
async def test_the_ending_says_the_type(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(PIXELS)
    assert await sent(asking({"url": str(tmp_path / name)})) == asking({"url": data(kind)})


async def test_what_was_given_is_not_changed(image: Path) -> None:
    body = asking({"url": str(image)})
    before = copy.deepcopy(body)
    await sent(body)
    assert body == before


async def test_everything_else_passes(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not an image, and nobody's business")
    for url in (
        "https://a.org/b.png",
        "data:image/png;base64,AAAA",
        "file:///nowhere/on/this/machine.png",
        str(secret),
    ):
        body = asking({"url": url})
        assert await sent(body) is body
    bodies: list[dict[str, Any]] = [
        {"prompt": "a.png"},
        {"messages": "a.png"},
        {"messages": [None, {"content": None}, {"content": [None, "a.png", {"type": "image_url"}]}]},
        asking(None),
        asking({"url": 5}),
    ]
    for body in bodies:
        assert await sent(body) is body
