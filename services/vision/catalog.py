"""Maps files to references of features, and checks whether the store still has these."""

import hashlib
from collections import OrderedDict

from torch import Tensor

from protos.media_pb2 import MediaRef
from services.checkpoint.media_names import DIGEST_BYTES, media_key
from services.model.media_features import features_to_bytes
from services.runtime.blobs import BlobStore
from services.vision.preprocess import Pixels

# A reference takes some hundred bytes, one of a long video some ten thousand.
MAX_REMEMBERED = 4096


class Catalog:
    """Names features by their pixels, and files by their bytes. Owns the remembered references.

    model    name of the weights
    variant  everything else that affects features: preprocessing and dtype
    """

    def __init__(self, store: BlobStore, model: str, variant: str) -> None:
        self._store = store
        self._model = model
        self._seed = f"moonshard media 1\n{model}\n{variant}\n".encode()
        self._refs: OrderedDict[bytes, MediaRef] = OrderedDict()

    def file_digest(self, kind: str, data: bytes | bytearray) -> bytes:
        """Return the digest of a file's bytes."""
        return self._digest(f"file {kind}", data)

    def chunk_digest(self, pixels: Pixels) -> bytes:
        """Return the digest for the features of pixels [frames, height, width, 3]; it does not depend on the file."""
        return self._digest(f"pixels {pixels.shape}", pixels.data.cast("B"))

    def video_digest(self, chunks: list[bytes]) -> bytes:
        """Return the digest of a whole video."""
        return self._digest("video", b"".join(chunks))

    async def find(self, file_digest: bytes) -> MediaRef | None:
        """Return the reference of a known file, known here or to another replica, if the store has its features."""
        ref = self._refs.get(file_digest)
        if ref is None:
            (stored,) = await self._store.get([self._file_key(file_digest)])
            if stored is None:
                return None
            ref = MediaRef.FromString(bytes(stored))
        digests = [chunk.media.digest for chunk in ref.chunks] or [ref.digest]
        if not all(await self._store.exists([media_key(self._model, digest) for digest in set(digests)])):
            return None
        self._remember(file_digest, ref)
        return ref

    async def has_features(self, digest: bytes) -> bool:
        """Return whether the store has the features of these pixels."""
        (found,) = await self._store.exists([media_key(self._model, digest)])
        return found

    async def put_features(self, digest: bytes, features: Tensor) -> None:
        """Store features. Raises StoreUnavailable."""
        await self._store.put({media_key(self._model, digest): features_to_bytes(features)})

    async def put_ref(self, file_digest: bytes, ref: MediaRef) -> None:
        """Remember the reference of a file here, and in the store for other replicas."""
        self._remember(file_digest, ref)
        await self._store.put({self._file_key(file_digest): ref.SerializeToString()})

    def _remember(self, file_digest: bytes, ref: MediaRef) -> None:
        self._refs[file_digest] = ref
        self._refs.move_to_end(file_digest)
        while len(self._refs) > MAX_REMEMBERED:
            self._refs.popitem(last=False)

    def _file_key(self, file_digest: bytes) -> str:
        return f"media-file/{self._model}/{file_digest.hex()}"

    def _digest(self, what: str, data: bytes | bytearray | memoryview) -> bytes:
        state = hashlib.blake2b(self._seed + what.encode() + b"\n", digest_size=DIGEST_BYTES)
        state.update(data)
        return state.digest()
