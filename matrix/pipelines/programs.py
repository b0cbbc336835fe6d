"""From a model's words to a program: the code that an answer holds, put together with the code that it goes on from.

Nothing is parsed: what hostile text does to Python's own parser has to happen in the sandbox, not in the driver. All is
linear in the length of the text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable

_FENCED = re.compile(
    r"^(?P<indent>[ \t]*+)```++[ \t]*+(?P<label>[\w+-]*+)[^\n]*+\n(?P<code>.*?)(?:^[ \t]*```|\Z)",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = {"", "python", "python3", "py"}
_NAME = re.compile(r"[^\W\d]\w*")
_DEFINED = re.compile(
    r"^(?:(?:async[ \t]+)?(?:def|class)[ \t]+(?P<def>\w+)|(?P<set>\w+)[ \t]*(?::[^=\n]*)?=(?!=))", re.MULTILINE
)
_BEGINS = re.compile(
    r"@\w|(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|class[ \t]+\w+[ \t]*[(:]|import[ \t]+\w|from[ \t]+[\w.]+[ \t]+import\b"
)
_CODE = re.compile(
    r"[@#)\]}\"']"
    r"|(?:from|import|def|class|async|if|elif|else|for|while|try|except|finally|with|print|assert|raise|pass|del)\b"
    r"|[\w.]+[ \t]*(?:\(|\[|[-+*/%|&^:]*=)"
)
_LONG_STRING = re.compile(r'"""|\'\'\'')


def program(text: str, *, context: str = "", entry_point: str = "", test: str = "") -> str | None:
    """The program that an answer means.

    Of several code blocks the last one counts that defines what is wanted; else, as the rest of `context`, the first.
    Without any block the answer is code as a whole, prose before and after it aside. What follows the function that an
    answer goes on with is left out, as in Chen et al. 2021 (arXiv:2107.03374).

    Args:
        text: The model's answer.
        context: Code that it was to complete; empty: none.
        entry_point: Name of what it was to define; empty: the last that `context` defines, else whatever `test` names.
        test: The code that will judge it.

    Returns:
        None if it holds no code.
    """
    text = text.rpartition("</think>")[2]
    if not text.strip():
        return None
    entry_point = entry_point or last_defined(context)
    wanted = {entry_point} if entry_point else set(_NAME.findall(test))
    if context and text.lstrip("\n").startswith(("  ", "\t")):
        return context + _up_to(text, _closes)
    blocks = [_outdented(found) for found in _FENCED.finditer(text) if found["label"].lower() in _PYTHON]
    whole = next((block for block in reversed(blocks) if wanted & _defined(block)), None)
    if whole is None and not blocks and wanted & _defined(text):
        whole = _without_prose(text)
    if whole is not None:
        return before(context, entry_point) + whole
    if not context:
        return blocks[-1] if blocks and blocks[-1].strip() else None
    rest = blocks[0] if blocks else text
    return context.rstrip("\n") + "\n" + _as_body(rest) if rest.strip() else None


def before(context: str, entry_point: str = "") -> str:
    """What `context` has before the definition that is to be completed: imports, and functions that it may call."""
    name = entry_point or last_defined(context)
    found = re.search(rf"^(?:async[ \t]+)?(?:def|class)[ \t]+{re.escape(name)}\b", context, re.MULTILINE)
    return context[: found.start()] if name and found else ""


def last_defined(code: str) -> str:
    """Name of the last function or class at the top; empty if there is none."""
    return next((found["def"] for found in reversed(list(_DEFINED.finditer(code))) if found["def"]), "")


def _defined(code: str) -> set[str]:
    return {found["def"] or found["set"] for found in _DEFINED.finditer(code)}


def _outdented(block: re.Match[str]) -> str:
    indent = block["indent"]
    return re.sub(f"^{indent}", "", block["code"], flags=re.MULTILINE) if indent else block["code"]


def _without_prose(text: str) -> str:
    lines = text.splitlines(keepends=True)
    first = next((number for number, line in enumerate(lines) if _BEGINS.match(line)), 0)
    return _up_to("".join(lines[first:]), lambda line: _CODE.match(line) is not None)


def _as_body(code: str) -> str:
    """Code as the body of a function: chats lose the indentation of all of it, or of its first line."""
    code = code.strip("\n")
    first, _, others = code.partition("\n")
    if first[:1] not in {" ", "\t"}:
        deep = [len(margin.expandtabs(4)) for margin in re.findall(r"^[ \t]*(?=\S)", others, re.MULTILINE)]
        # All of it is at the margin: something else is, or it is one statement with a block.
        all_of_it = not deep or min(deep) == 0 or (first.rstrip().endswith(":") and min(deep) == deep[0] < 8)
        code = textwrap.indent(code, "    ") if all_of_it else f"    {code}"
    return _up_to(code, _closes)


def _closes(line: str) -> bool:
    return line[0] in ")]}"


def _up_to(code: str, goes_on: Callable[[str], bool]) -> str:
    """The lines before the first one that stands at the margin and isn't part of it; strings over lines may."""
    return "".join(_lines(code.splitlines(keepends=True), goes_on))


def _lines(lines: Iterable[str], goes_on: Callable[[str], bool]) -> Iterable[str]:
    in_string = False
    for line in lines:
        if not in_string and not line[0].isspace() and not goes_on(line):
            return
        in_string ^= len(_LONG_STRING.findall(line)) % 2 == 1
        yield line
