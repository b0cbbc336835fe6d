"""What roles that had their turns at the same time made of a row's state, put together."""

from __future__ import annotations

from typing import Any

from matrix.agents.route import RouteError

_NOTHING = object()


def merged(what: str, before: dict[str, Any], several: list[dict[str, Any]]) -> dict[str, Any]:
    """What several that had the same made of it.

    Args:
        what: What it is, for the error.
        before: What they had.
        several: What each has now.

    Raises:
        RouteError: Two of them have changed one thing, and not alike.
    """
    together = dict(before)
    changed: dict[str, Any] = {}
    for own in several:
        for name in [*own, *(before.keys() - own.keys())]:
            value, old = own.get(name, _NOTHING), before.get(name, _NOTHING)
            if value is old or value == old:
                continue
            if name in changed and changed[name] != value:
                message = f"roles at the same time set {what}[{name!r}] to different values"
                raise RouteError(message)
            changed[name] = value
            if value is _NOTHING:
                together.pop(name, None)
            else:
                together[name] = value
    return together
