"""A pool of decoder processes, each leased to one file at a time and replaced when it dies."""

import asyncio
import json
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from services.runtime.errors import Unavailable
from services.vision.decoder_process import HEADER, DecoderOptions, Kind
from services.vision.limits import refusal
from services.vision.preprocess import Pixels

log = logging.getLogger(__name__)

NUM_STARTS = 3


@dataclass(frozen=True)
class PlannedChunk:
    """Frames to encode together, and the text before them in the prompt (empty for an image)."""

    num_frames: int
    prompt_text: str


@dataclass(frozen=True)
class MediaPlan:
    """Size and chunks of a file, determined before its pixels are decoded."""

    grid_h: int
    grid_w: int
    num_tokens: int  # of each chunk
    chunks: Sequence[PlannedChunk]


class Decoder:
    """One decoder process, started on first use. Used for one file at a time."""

    def __init__(self, options: DecoderOptions) -> None:
        self._options = options
        self._process: Process | None = None
        self._num_messages = 0  # chunks that the process has still to write for the present file

    async def plan(self, kind: Kind, data: bytes | bytearray) -> MediaPlan:
        """Send a file to the process; all chunks of its plan must be read next. Raises InvalidRequest."""
        text = json.dumps({"kind": kind}).encode()
        stdin = await self._open()
        self._num_messages = 1
        stdin.writelines((HEADER.pack(len(text), len(data)), text, data))
        try:
            await stdin.drain()
        except ConnectionError:
            await self._died()
        record, _ = await self._message()
        chunks = [PlannedChunk(**chunk) for chunk in record.pop("chunks")]
        self._num_messages = len(chunks)
        return MediaPlan(**record, chunks=chunks)

    async def chunk(self) -> Pixels:
        """Return the next chunk's pixels, [frames, height, width, 3]."""
        record, data = await self._message()
        return np.frombuffer(data, dtype=np.uint8).reshape(record["shape"])

    async def release(self) -> None:
        """Prepare for the next file; end a process that still has work."""
        if self._num_messages:
            await self.stop()

    async def stop(self) -> None:
        """End the process at once; the next file starts a new one."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None
        self._num_messages = 0

    async def _open(self) -> asyncio.StreamWriter:
        """Return the input of a running process; start one if there is none."""
        for _ in range(NUM_STARTS):
            if self._process is None or self._process.returncode is not None:
                self._process = await self._start()
            stdin = self._process.stdin
            assert stdin is not None
            if not stdin.is_closing():
                return stdin
            # It ended between two files or before its start, so nothing of this file has reached it.
            log.warning("a decoder process was gone", extra={"pid": self._process.pid})
            await self.stop()
        raise Unavailable("no decoder process stays")

    async def _start(self) -> Process:
        # A new session, so that Ctrl-C only reaches the service, which ends its decoders.
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "services.vision.decoder_process", self._options.to_json()),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
        )

    async def _message(self) -> tuple[dict[str, Any], bytes]:
        assert self._process is not None and self._process.stdout is not None
        stdout = self._process.stdout
        try:
            num_text, num_data = HEADER.unpack(await stdout.readexactly(HEADER.size))
            record = json.loads(await stdout.readexactly(num_text))
            data = await stdout.readexactly(num_data)
        except asyncio.IncompleteReadError:
            await self._died()
        self._num_messages -= 1
        if "refused" in record:
            self._num_messages = 0
            raise refusal(record["refused"])
        return record, data

    async def _died(self) -> NoReturn:
        assert self._process is not None
        code = await self._process.wait()
        self._num_messages = 0
        if code == -signal.SIGPROF:
            raise refusal(f"decoding took longer than {self._options.cpu_s:g} s (decode_s)")
        log.warning("a decoder process died", extra={"exit_code": code})
        raise refusal("the file makes the decoder fail")


class DecoderPool:
    """Owns the decoder processes. If all are leased, files wait in order."""

    def __init__(self, num_decoders: int, options: DecoderOptions) -> None:
        self._decoders = [Decoder(options) for _ in range(num_decoders)]
        self._idle: asyncio.Queue[Decoder] = asyncio.Queue()
        for decoder in self._decoders:
            self._idle.put_nowait(decoder)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Decoder]:
        """Lease a decoder for one file."""
        decoder = await self._idle.get()
        try:
            yield decoder
        finally:
            try:
                await decoder.release()
            finally:
                self._idle.put_nowait(decoder)

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(decoder.stop() for decoder in self._decoders))
