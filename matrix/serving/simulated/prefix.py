"""The prefix cache of a simulated engine: what it remembers of earlier prompts and answers, block by block."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import orjson

from matrix.serving.backend import Json
from matrix.serving.simulated.text import CHARACTERS_PER_TOKEN

_TOKENS_PER_BLOCK = 16
"""As vLLM has it."""
_BLOCK = _TOKENS_PER_BLOCK * CHARACTERS_PER_TOKEN
_HEAD = 16
"""Characters in the place of what a chat template puts around a message: four tokens, as `asked` counts them."""


class PrefixCache:
    """Blocks of texts, those that were asked for longest ago forgotten first.

    A block is found only behind all blocks before it, as in the cache of an engine, so its key has theirs in it.

    Args:
        tokens: What it holds.
    """

    def __init__(self, tokens: int) -> None:
        self._most = tokens // _TOKENS_PER_BLOCK
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def read(self, text: str) -> int:
        """Tokens at the begin of a prompt that are there; its last token is never one of them, since it is computed."""
        found = 0
        for key in _keys(text[:-1]):
            if key not in self._blocks:
                break
            found += 1
        return found * _TOKENS_PER_BLOCK

    def keep(self, text: str) -> None:
        """Remember a text: a prompt, or a prompt with its answer."""
        # The last ones first: of two blocks the one behind is of no use without the other.
        for key in reversed(_keys(text)):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)


def chat_text(body: Json) -> str:
    """A chat request as the one text that an engine makes of it."""
    tools = body.get("tools")
    head = orjson.dumps(tools).decode() if tools else ""
    return head + "".join(message_text(message["role"], message.get("content")) for message in body["messages"])


def message_text(role: str, content: Any) -> str:
    """One message in that text."""
    return f"{role:{_HEAD}.{_HEAD}}" + (content if isinstance(content, str) else orjson.dumps(content).decode())


def completion_texts(body: Json) -> list[str]:
    """The prompts of a completion request; a token id becomes as many characters as a token has."""
    prompt = body["prompt"]
    if isinstance(prompt, str):
        return [prompt]
    prompts = [prompt] if all(isinstance(item, int) for item in prompt) else prompt
    return [
        one if isinstance(one, str) else "".join(chr(token) * CHARACTERS_PER_TOKEN for token in one) for one in prompts
    ]


def _keys(text: str) -> list[int]:
    """Of each whole block."""
    keys, key = [], 0
    for begin in range(0, len(text) - _BLOCK + 1, _BLOCK):
        key = hash((key, text[begin : begin + _BLOCK]))
        keys.append(key)
    return keys
