"""From a storage's address to the storage."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from dovetail_jobs.errors import UserError
from dovetail_workers.storage.local import LocalStorage
from dovetail_workers.storage.protocol import Storage


def open_storage(uri: str) -> Storage:
    """The storage at a path or `file://` address, made when it does not exist; else UserError."""
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return LocalStorage(Path(uri))
    address = urlsplit(uri)
    if scheme == "file" and address.netloc in ("", "localhost") and address.path:
        return LocalStorage(Path(unquote(address.path)))
    if scheme == "s3":
        raise UserError(f"storage {uri}: s3:// is not yet here; give the path of a folder")
    raise UserError(f"storage {uri}: expected the path of a folder or file:///path")
