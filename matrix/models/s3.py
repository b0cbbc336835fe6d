"""A model in an S3 bucket, downloaded once into the cache.

    CACHE/models/s3/BUCKET/PREFIX/blobs/ETAG-SIZE    every version of every file, whole files only
    CACHE/models/s3/BUCKET/PREFIX/REVISION/          a folder of links to blobs: one state of the prefix

So a changed file is the only one to be fetched, a download that was cut goes on with the file it was at, and a folder
that an engine reads never changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from matrix.errors import AppError
from matrix.models.base import ResolvedModel, Say, cache_dir, locked
from matrix.models.weights import checksum

DOWNLOAD_LIMIT_S = 6 * 3600.0
"""How long another run may take for its download before this one stops to wait for it."""
REVISION_LENGTH = 40
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt"}
"""Weights that nobody reads where there are safetensors."""


@dataclass(frozen=True)
class Blob:
    """One object under the prefix: its content is known by ETag and size."""

    etag: str
    size: int

    @property
    def name(self) -> str:
        """Name of its file in `blobs/`."""
        return f"{self.etag}-{self.size}"


@dataclass(frozen=True)
class S3Source:
    """A model folder under a prefix of a bucket.

    Attributes:
        origin: The source as given.
        bucket: Name of the bucket.
        prefix: Path in it, without slashes at its ends.
    """

    origin: str
    bucket: str
    prefix: str

    def problem(self) -> str | None:
        """What is wrong with the source, in one line; None if nothing is. Doesn't ask the bucket."""
        if find_spec("boto3") is None:
            return "models on S3 need boto3: pip install 'boto3>=1.44'"
        return None

    def resolve(self, say: Say) -> ResolvedModel:
        """The downloaded folder, after a look at the bucket for what changed.

        Where the bucket cannot be reached, the newest folder in the cache does, and `say` hears of it.

        Raises:
            AppError: No credentials, no access, no model under the prefix, or neither bucket nor cache have it.
        """
        import boto3.exceptions
        from boto3.session import botocore  # boto3 brings it along and nothing else does

        try:
            folder = self._current(say)
        except botocore.exceptions.NoCredentialsError as error:
            raise AppError(
                f"model.source={self.origin}: there are no AWS credentials. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            ) from error
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            boto3.exceptions.Boto3Error,
        ) as error:
            raise AppError(
                f"model.source={self.origin}: {error}. Check the bucket and its region (AWS_REGION), the credentials "
                "(AWS_PROFILE) and, for a store that isn't Amazon's, AWS_ENDPOINT_URL; what was fetched is kept"
            ) from error
        return ResolvedModel(str(folder), folder.name, checksum(folder, say), self.origin)

    def _current(self, say: Say) -> Path:
        from boto3.session import botocore

        client = self._client()
        try:
            listing = self._listing(client)
        except (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError) as error:
            folder = self._newest(error)
            say(f"{self.origin} cannot be reached ({error}); taking what the cache has, {folder}")
            return folder
        return self._fetched(client, listing, say)

    @property
    def _base(self) -> Path:
        return cache_dir() / "models" / "s3" / self.bucket / self.prefix.replace("/", "--")

    def _client(self) -> Any:
        import boto3
        from boto3.session import Config

        patience = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "max_attempts": 3})
        return boto3.Session().client("s3", config=patience)

    def _listing(self, client: Any) -> dict[str, Blob]:
        """What lies under the prefix and belongs to the model, by path relative to the prefix."""
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        objects = [item for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]
        found = {
            item["Key"].removeprefix(f"{self.prefix}/"): Blob(item["ETag"].strip('"'), item["Size"]) for item in objects
        }
        unsafe = [name for name in found if ".." in PurePosixPath(name).parts or name.startswith("/")]
        if unsafe:
            raise AppError(
                f"model.source={self.origin}: the key {unsafe[0]} would be written outside the cache; rename it"
            )
        safetensors = any(name.endswith(".safetensors") for name in found)
        kept = {name: blob for name, blob in found.items() if not safetensors or Path(name).suffix not in OTHER_WEIGHTS}
        if "config.json" not in kept or not (safetensors or any(name.endswith(".bin") for name in kept)):
            raise AppError(
                f"model.source={self.origin}: {len(found)} objects are there, but no config.json with weights "
                "(*.safetensors or pytorch_model*.bin); give the prefix right above them"
            )
        return kept

    def _fetched(self, client: Any, listing: dict[str, Blob], say: Say) -> Path:
        state = json.dumps({name: blob.name for name, blob in listing.items()}, sort_keys=True)
        folder = self._base / hashlib.sha256(state.encode()).hexdigest()[:REVISION_LENGTH]
        if not folder.exists() or self._missing(listing):
            with locked(self._base, say, DOWNLOAD_LIMIT_S):
                self._download(client, self._missing(listing), say)
                if not folder.exists():
                    self._link(listing, folder)
        return folder

    def _missing(self, listing: dict[str, Blob]) -> dict[str, Blob]:
        def whole(blob: Blob) -> bool:
            path = self._base / "blobs" / blob.name
            return path.exists() and path.stat().st_size == blob.size

        return {name: blob for name, blob in listing.items() if not whole(blob)}

    def _download(self, client: Any, missing: dict[str, Blob], say: Say) -> None:
        blobs = self._base / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        for leftover in blobs.glob(".*"):
            leftover.unlink()
        gigabytes = sum(blob.size for blob in missing.values()) / 1e9
        say(f"downloading {len(missing)} files ({gigabytes:.2f} GB) of {self.origin} into {self._base}")
        for name, blob in missing.items():
            partial = blobs / f".{blob.name}.partial"
            client.download_file(self.bucket, f"{self.prefix}/{name}", str(partial))
            if partial.stat().st_size != blob.size:
                raise AppError(f"model.source={self.origin}: {name} changed while it was downloaded; run again")
            partial.replace(blobs / blob.name)

    def _link(self, listing: dict[str, Blob], folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=self._base) as partial:
            made = Path(partial) / "model"
            for name, blob in listing.items():
                link = made / name
                link.parent.mkdir(parents=True, exist_ok=True)
                # Seen from the final place of the folder; relative, so that the cache can be moved.
                link.symlink_to(os.path.relpath(self._base / "blobs" / blob.name, (folder / name).parent))
            made.rename(folder)

    def _newest(self, error: Exception) -> Path:
        folders = [path for path in self._base.glob("[0-9a-f]*") if len(path.name) == REVISION_LENGTH]
        whole = [path for path in folders if all(link.exists() for link in path.rglob("*"))]
        if not whole:
            raise AppError(
                f"model.source={self.origin}: neither the bucket nor the cache has it. Tried:\n"
                f"  the bucket: {error}\n  the cache: nothing complete in {self._base}\n"
                "Ways out: AWS_ENDPOINT_URL for a store that isn't Amazon's, or model.source=FOLDER"
            )
        return max(whole, key=lambda path: path.stat().st_mtime)
