"""What all parts of the spec have in common."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict

# At its first class pydantic looks for plugins in the metadata of every package that is installed: with some hundred
# that takes 20 ms, a quarter of what all classes of the spec take, in every command.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


class Spec(BaseModel):
    """A frozen part of the spec that knows all its fields: an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)
