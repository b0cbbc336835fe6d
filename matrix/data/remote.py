"""Files of rows on S3, GCS, web servers and other places that `fsspec` reads; imported by the functions only.

Credentials and options are the drivers' own: AWS's environment variables for s3://, and `FSSPEC_S3_ANON=true` and the
like for any option of any driver (https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from matrix.data.naming import ending, is_readable, natural
from matrix.errors import DataError

_DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""Packages that fsspec doesn't bring along, by what a URL begins with. It knows more, and names them itself."""

_BESIDE = {"s3fs": "s3fs boto3"}
"""boto3 and s3fs each pin botocore: together pip finds versions that fit."""

_CHECKSUMS = ("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "content_md5", "blob_id")
_TIMES = ("Last-Modified", "LastModified", "last_modified", "mtime", "created")
"""What a storage says of a file's content, under its own names."""

_READ_TIMEOUT_S = 60.0
"""A web server that sends nothing for so long has failed."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that isn't on this machine's disks.

    Attributes:
        name: Its address, without the query (which may hold a key).
        path: Its path in `storage`.
        storage: fsspec's file system.
        version: What the storage says of its content, such as its ETag.
    """

    name: str
    path: str
    storage: Any
    version: str

    def open(self) -> BinaryIO:
        """Its bytes as they lie there."""
        return cast("BinaryIO", self.storage.open(self.path, "rb"))


def is_remote(path: str) -> bool:
    """Whether `dataset.path` is an address."""
    return "://" in path


def check_remote(url: str) -> None:
    """Check an address as far as it tells itself; asks nobody and imports nothing.

    Raises:
        DataError: A package is missing, or the ending says nothing.
    """
    scheme = url.partition("://")[0].rpartition("::")[2]
    for package in ("fsspec", _DRIVERS.get(scheme)):
        if package and find_spec(package) is None:
            raise DataError(f"{scheme}:// needs the package {package} (pip install {_BESIDE.get(package, package)})")
    # Without a suffix it may be a folder, which has more to say when it is asked.
    if not _is_pattern(url) and PurePosixPath(_without_query(url)).suffix:
        ending(_without_query(url))


def find_remote(url: str) -> list[RemoteFile]:
    """The file at an address, or those that fit a pattern, in natural order.

    Raises:
        DataError: See `check_remote`; or there is no such file, it is a folder, or the storage can't be asked.
    """
    check_remote(url)
    storage, found = _listing(url)
    if not found:
        raise DataError("no file fits this pattern")
    files = []
    for path in sorted(found, key=natural):
        name = _without_query(storage.unstrip_protocol(path))
        try:
            ending(name)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        files.append(RemoteFile(name, path, storage, _version(found[path])))
    return files


def _listing(url: str) -> tuple[Any, dict[str, Mapping[str, Any]]]:
    """The storage behind an address, and what it says of each file there, by path."""
    import fsspec

    try:
        storage, path = fsspec.core.url_to_fs(url, **_options(url))
        storage.invalidate_cache()
        if _is_pattern(url):
            found = storage.glob(path, detail=True)
            return storage, {path: info for path, info in found.items() if info["type"] == "file"}
        info = storage.info(path)
        folder = info["type"] == "directory" and storage.ls(path, detail=False)
    except FileNotFoundError as error:
        # For a web address fsspec makes this of every failure.
        why = error.__cause__ if _is_web(url) else None
        found_none = why is None or getattr(why, "status", None) == 404
        message = "no such file" if found_none else f"can't be reached: {type(why).__name__}: {why}"
        raise DataError(message) from error
    except ImportError as error:
        raise DataError(f"a package is missing: {error}") from error
    # Whatever the drivers and the HTTP clients behind them raise ends here.
    except Exception as error:
        raise DataError(f"can't be reached: {type(error).__name__}: {error}") from error
    if folder is not False:
        raise DataError(_is_folder(folder))
    return storage, {path: info}


def _is_pattern(url: str) -> bool:
    """Whether fsspec would look for several files; in a web address `?` begins a query."""
    return any(sign in (_without_query(url) if _is_web(url) else url) for sign in "*?[")


def _without_query(url: str) -> str:
    return url.partition("?")[0].partition("#")[0] if _is_web(url) else url


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _options(url: str) -> dict[str, Any]:
    if not _is_web(url):
        return {}
    import aiohttp

    # A file that is read as slowly as a model answers would break off after aiohttp's five minutes.
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_read=_READ_TIMEOUT_S)}}


def _is_folder(files: Iterable[str]) -> str:
    inside = sorted((name.rpartition("/")[2] for name in files), key=natural)
    readable = ", ".join([name for name in inside if is_readable(name)][:10])
    return f"a folder, not a file ({f'files with rows in it: {readable}' if readable else 'no file with rows in it'})"


def _version(info: Mapping[str, Any]) -> str:
    """Checksums where there are some, since a time changes with every copy."""
    marks = [str(info[key]) for key in _CHECKSUMS if info.get(key)]
    marks = marks or [str(info[key]) for key in _TIMES if info.get(key)]
    return " ".join([*marks, str(info.get("size"))])
