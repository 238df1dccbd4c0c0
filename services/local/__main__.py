"""The `moonshard` command."""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.checkpoint.manifest import verify, write_manifest
from services.local import settings_table
from services.local.answer import ChatClient, ChatFailed
from services.local.chat import ChatOptions, Conversation, converse, note
from services.local.checkpoints import Served, served, tiny_path, write_tiny
from services.local.cluster import num_cores
from services.local.cluster_commands import give_up, logs, metrics, running_cluster, status, stop
from services.local.ports import free_port
from services.local.run_folder import cache_folder
from services.local.sizing import sizes_for
from services.local.terminal import Terminal
from services.local.threads import Threads
from services.local.topology import DType, Topology, default_threads
from services.local.up import run_cluster
from services.runtime.errors import CheckpointError
from services.runtime.redis_server import find_redis_server

# Imported because it adds line editing and history to `input`. Some builds of Python lack it.
with contextlib.suppress(ImportError):
    import readline  # noqa: F401

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"moonshard {importlib.metadata.version('moonshard')}")
        raise typer.Exit


@app.callback()
def moonshard(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Serve a checkpoint on this machine, and talk to it."""


@app.command()
def up(
    model: Annotated[str, typer.Option(help="nano (trained, small), tiny (random), or a checkpoint folder.")] = "nano",
    model_name: Annotated[str, typer.Option(help="Name of the model in the API; default: by the model.")] = "",
    experts: Annotated[int, typer.Option(min=0, help="Expert shards; 0: experts inside the attention processes.")] = 2,
    expert_replicas: Annotated[int, typer.Option(min=1, help="Replicas of each expert shard.")] = 1,
    prefill: Annotated[int, typer.Option(min=0, help="Prefill replicas; 0: decode replicas compute prompts.")] = 1,
    decode: Annotated[int, typer.Option(min=1, help="Decode replicas.")] = 1,
    attention_shards: Annotated[int, typer.Option(min=1, help="Layer ranges of each attention replica.")] = 1,
    tokenizers: Annotated[int, typer.Option(min=1, help="Tokenizer replicas.")] = 1,
    visions: Annotated[
        int | None, typer.Option(min=0, help="Vision replicas; default: 1 if the model can see.")
    ] = None,
    scale_to_zero: Annotated[
        bool, typer.Option("--scale-to-zero", help="Start prefill, decode, expert and vision processes on demand only.")
    ] = False,
    idle_s: Annotated[float, typer.Option(min=1, help="With it: seconds without a request before they end.")] = 60,
    dtype: Annotated[DType, typer.Option(help="Of activations and latent KV.")] = "bfloat16",
    threads: Annotated[int, typer.Option(min=0, help="For each process; 0: by the cores and who computes when.")] = 0,
    num_blocks: Annotated[int, typer.Option(min=0, help="KV blocks of each attention replica; 0: by the memory.")] = 0,
    host: Annotated[str, typer.Option(help="Address that the gateway listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port; the next free one if it is taken.")] = 8000,
    tls: Annotated[
        Path | None, typer.Option(help="Folder with ca.crt, tls.crt, tls.key: mutual TLS between the processes.")
    ] = None,
    log_file: Annotated[Path | None, typer.Option(help="Log of all processes; default: in the cache.")] = None,
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds without progress after which the start is given up.")
    ] = 300,
    verify_digests: Annotated[
        bool, typer.Option("--verify", help="First compare every file of the checkpoint with its SHA256SUMS.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the processes log.")] = False,
) -> None:
    """Start a whole cluster on this machine; Ctrl-C stops it."""
    console = Console()
    cache = cache_folder(os.environ)
    free = _free_port(host, port)
    if free != port:
        console.print(f"Port {port} is taken, using {free}.", highlight=False)
    chosen = _served(model, cache, console)
    if verify_digests:
        _verify(chosen.path, console)
    sizes = sizes_for(
        chosen.path,
        num_attention=(prefill + decode) * attention_shards,
        attention_shards=attention_shards,
        dtype_bytes=4 if dtype == "float32" else 2,
    )
    if num_blocks:
        sizes = replace(sizes, num_blocks=num_blocks)
    console.print(str(sizes), highlight=False, soft_wrap=True)
    topology = Topology(
        model=chosen.path,
        model_name=model_name or chosen.name,
        host=host,
        port=free,
        experts=experts,
        expert_replicas=expert_replicas,
        prefills=prefill,
        decodes=decode,
        attention_shards=attention_shards,
        tokenizers=tokenizers,
        visions=int(_can_see(chosen.path)) if visions is None else visions,
        dtype=dtype,
        tls=tls.absolute() if tls else None,
        idle_s=idle_s if scale_to_zero else None,
        store_bytes=sizes.store_bytes,
        settings={
            "attention": {"NUM_BLOCKS": str(sizes.num_blocks)},
            "gateway": {"MODEL_DISPLAY_NAME": chosen.display_name} if chosen.display_name else {},
        },
    )
    topology = replace(topology, threads=Threads.same(threads) if threads else default_threads(num_cores(), topology))
    console.print(str(topology.threads), highlight=False, soft_wrap=True)
    redis_program = find_redis_server()
    raise typer.Exit(
        asyncio.run(
            run_cluster(
                topology,
                redis_program=str(redis_program),
                environ=os.environ,
                cache=cache,
                log_path=(log_file or cache / f"cluster-{free}.log").absolute(),
                terminal=Terminal(console, verbose=verbose),
                stall_s=start_timeout,
                note=f"\n{chosen.note}\n" if chosen.note else "",
            )
        )
    )


@app.command()
def verify_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Checkpoint folder with a SHA256SUMS of all its files.")],
    write: Annotated[
        bool, typer.Option("--write", help="Write SHA256SUMS of a copy that is known to be right.")
    ] = False,
) -> None:
    """Compare every file of a checkpoint with its digest."""
    console = Console()
    if not write:
        _verify(folder, console)
        return
    try:
        console.print(f"{folder}: digests of {write_manifest(folder)} files written.", highlight=False, soft_wrap=True)
    except CheckpointError as error:
        raise give_up(error.message) from None


@app.command()
def chat(
    prompt: Annotated[str, typer.Argument(help="Ask only this; without a terminal it is read from the input.")] = "",
    url: Annotated[str, typer.Option(help="Server; default: the cluster that runs on this machine.")] = "",
    model: Annotated[str, typer.Option(help="Name of the model; default: the first of the server.")] = "",
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    thinking: Annotated[bool, typer.Option(help="Let the model think before it answers.")] = True,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    api_key: Annotated[str, typer.Option(envvar="MOONSHARD_API_KEY", help="Key of the server, if it wants one.")] = "",
) -> None:
    """Talk to the model in the terminal."""
    console = Console()
    client = ChatClient(url or running_cluster().url, api_key)
    try:
        options = ChatOptions(model or client.first_model(), thinking, system, max_tokens, temperature)
        if not prompt and not sys.stdin.isatty():
            prompt = sys.stdin.read().strip()
            if not prompt:
                raise give_up("there is nothing to ask: the input is empty")
        if prompt:
            conversation = Conversation(options)
            if not conversation.ask(client, console, prompt):
                raise typer.Exit(130)
            if not conversation.has_answer and not console.is_terminal:
                typer.echo("moonshard: thinking used up all tokens, there is no answer; see --max-tokens", err=True)
            return
        note(console, f"{options.model}; /help for help")
        converse(client, console, options, input)
    except ChatFailed as failure:
        raise give_up(str(failure)) from None
    finally:
        client.close()


@app.command()
def settings(
    json_format: Annotated[bool, typer.Option("--json", help="Print JSON instead of a Markdown table.")] = False,
) -> None:
    """Print all MOONSHARD_* variables with their values, defaults and meanings."""
    try:
        table = settings_table.settings()
    except ModuleNotFoundError as error:
        raise give_up(f"a process cannot be loaded: {error}") from None
    typer.echo(
        json.dumps(settings_table.as_json(table), indent=2) if json_format else settings_table.as_markdown(table),
        nl=json_format,
    )


def _verify(folder: Path, console: Console) -> None:
    try:
        console.print(f"{folder}: all {verify(folder)} files are right.", highlight=False, soft_wrap=True)
    except CheckpointError as error:
        raise give_up(error.message) from None


def _served(model: str, cache: Path, console: Console) -> Served:
    """Return the checkpoint to serve; write the tiny one if it does not exist."""
    found = served(model, cache)
    if found.path == tiny_path(cache) and not found.path.is_dir():
        console.print(f"Writing a tiny random checkpoint to {found.path} (once).", highlight=False, soft_wrap=True)
        try:
            write_tiny(cache)
        except subprocess.CalledProcessError as error:
            raise give_up(f"the checkpoint cannot be written:\n{error.stderr}") from None
    if not (found.path / "config.json").is_file():
        raise give_up(f"{found.path} is not a checkpoint folder: it has no config.json")
    return found


def _can_see(checkpoint: Path) -> bool:
    """Whether the checkpoint has a vision tower. The processes will refuse a file that is not JSON."""
    with contextlib.suppress(ValueError):
        return bool(json.loads((checkpoint / "config.json").read_bytes()).get("vision_config"))
    return False


def _free_port(host: str, port: int) -> int:
    try:
        return free_port(host, port)
    except OSError as error:
        raise give_up(f"cannot listen on {host}: {error}") from None


for command in (status, stop, logs, metrics):
    app.command()(command)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
