"""Uploaded files: bytes in the store, for a limited time, under ids that cannot be guessed."""

import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field
from typing_extensions import TypedDict

from gateway.settings import GatewaySettings
from services.runtime.blobs import BlobStore
from services.runtime.errors import InvalidRequest, NotFound

NAMESPACE = "moonshard-files"
ID_CHARS = 64


class File(TypedDict):
    """What is known of a file. Sizes in bytes, times in seconds since 1970."""

    id: str
    object: Literal["file"]
    bytes: Annotated[int, Field(ge=0)]
    created_at: Annotated[int, Field(ge=0)]
    filename: str
    purpose: str
    status: Literal["ready"]


class FileDesk:
    """Keeps the files of every key apart. Without a store there are none.

    The list of a key's files is one value, which the gateway that changes it last has written: files that are uploaded
    through two gateways in the same instant are all there, but the list may miss one.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._max_files = settings.max_files
        self._store = (
            BlobStore(
                settings.store,
                ttl_s=settings.file_ttl_s,
                namespace=NAMESPACE,
                access=settings.store_access,
                wait_s=settings.hold_s,
            )
            if settings.store
            else None
        )

    async def close(self) -> None:
        """Leave the store."""
        if self._store is not None:
            await self._store.close()

    async def put(self, owner: str, filename: str, purpose: str, data: bytes) -> File:
        """Keep a file and returns its description. InvalidRequest if the key has too many."""
        store = self._opened()
        listed = await self.listing(owner)
        if len(listed) >= self._max_files:
            raise InvalidRequest(f"file: at most {self._max_files} files are kept, delete some first", field="file")
        head: File = {
            "id": f"file-{secrets.token_hex(16)}",
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "ready",
        }
        name = head["id"]
        await store.put({_data(name): data, _head(name): orjson.dumps({"owner": owner, "file": head})})
        await self._write_list(owner, [*(entry["id"] for entry in listed), name])
        return head

    async def listing(self, owner: str) -> list[File]:
        """Return the descriptions of a key's files, oldest first; those whose time is over are left out."""
        store = self._opened()
        (ids,) = await store.get([_list(owner)])
        heads = await store.get([_head(name) for name in orjson.loads(ids)]) if ids is not None else []
        return [orjson.loads(head)["file"] for head in heads if head is not None]

    async def describe(self, owner: str, name: str) -> File:
        """Return one file's description; NotFound unless it is the key's."""
        store = self._opened()
        (head,) = await store.get([_head(name)]) if len(name) <= ID_CHARS else [None]
        known: Mapping[str, Any] = orjson.loads(head) if head is not None else {}
        if known.get("owner") != owner:
            raise _no_such_file()
        file: File = known["file"]
        return file

    async def content(self, owner: str, name: str) -> bytes:
        """Return one file's bytes; NotFound unless it is the key's."""
        await self.describe(owner, name)
        return await self.file_bytes(name)

    async def delete(self, owner: str, name: str) -> None:
        """Drop a file; NotFound unless it is the key's."""
        await self.describe(owner, name)
        await self._opened().delete([_data(name), _head(name)])
        await self._write_list(owner, [entry["id"] for entry in await self.listing(owner)])

    async def file_bytes(self, name: str) -> bytes:
        """Return the bytes of the file of this id, which is what ms://ID names; NotFound if it isn't there any more."""
        (data,) = await self._opened().get([_data(name)]) if len(name) <= ID_CHARS else [None]
        if data is None:
            raise _no_such_file()
        return bytes(data)

    async def _write_list(self, owner: str, ids: list[str]) -> None:
        await self._opened().put({_list(owner): orjson.dumps(ids)})

    def _opened(self) -> BlobStore:
        if self._store is None:
            raise NotFound("this server keeps no files")
        return self._store


def _data(name: str) -> str:
    return f"data/{name}"


def _head(name: str) -> str:
    return f"head/{name}"


def _list(owner: str) -> str:
    return f"list/{owner}"


def _no_such_file() -> NotFound:
    return NotFound("there is no such file; files are kept for a limited time", field="id")
