r"""Dialogues as text in the prompt format of Llama 3, back into messages.

    <|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>
    <|start_header_id|>assistant<|end_header_id|>\n\n

Format: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
"""

from __future__ import annotations

import re

from matrix.errors import DataError

_BEGIN = "<|begin_of_text|>"
_HEADER = re.compile(r"<\|start_header_id\|>([^<]+)<\|end_header_id\|>")
# eom_id ends a message that calls a tool; end_of_text stands where a base model's text ends.
_END = re.compile(r"<\|(?:eot_id|eom_id|end_of_text)\|>")


def parse_llama3(text: str) -> list[dict[str, str]] | None:
    """Chat messages of a text with Llama 3 header tokens.

    The white space around a message goes, as it comes: the model's own chat template trims what it is given. An empty
    assistant's turn at the end, the place for the answer, is left out.

    Returns:
        The messages; None if there is no header in the text.

    Raises:
        DataError: There is text outside of the turns, a turn that doesn't end, or no message.
    """
    before, *turns = _HEADER.split(text)
    if not turns:
        return None
    if before.strip().removeprefix(_BEGIN).strip():
        raise DataError(f"text stands before the first <|start_header_id|>: {before.strip()[:40]!r}")
    messages = []
    roles, bodies = turns[::2], turns[1::2]
    for number, (role, body) in enumerate(zip(roles, bodies, strict=True), start=1):
        content, *rest = _END.split(body)
        if not rest and number < len(roles):
            raise DataError(f"message {number} ({role.strip()}) doesn't end in <|eot_id|>")
        if after := "".join(rest).strip():
            raise DataError(f"text stands after the end of message {number} ({role.strip()}): {after[:40]!r}")
        messages.append({"role": role.strip(), "content": content.strip()})
    if messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    if not messages:
        raise DataError("no message but the empty one of the assistant")
    return messages
