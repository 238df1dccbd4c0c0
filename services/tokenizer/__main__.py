"""`python -m services.tokenizer`: one tokenizer process."""

import asyncio
from contextlib import closing

from protos.tokenizer_pb2_grpc import add_TokenizerServiceServicer_to_server
from services.runtime.server import run, serve
from services.runtime.settings import load
from services.tokenizer.long_work import LongWork
from services.tokenizer.service import TokenizerServicer
from services.tokenizer.settings import TokenizerSettings
from services.tokenizer.vocabulary import load_vocabulary


async def _serve(settings: TokenizerSettings) -> None:
    vocabulary = await asyncio.to_thread(load_vocabulary, settings.model)
    with closing(LongWork(settings.threads, settings.max_waiting, settings.max_waiting_bytes)) as work:
        servicer = TokenizerServicer(vocabulary, work, settings.max_request_bytes, settings.max_remembered_bytes)
        await serve(
            settings,
            "tokenizer",
            lambda server: add_TokenizerServiceServicer_to_server(servicer, server),
            on_drain=servicer.drain,
        )


def main() -> None:
    """Serve until SIGTERM."""
    settings = load(TokenizerSettings)
    run(settings, "tokenizer", lambda: _serve(settings))


if __name__ == "__main__":
    main()
