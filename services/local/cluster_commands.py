"""Commands for a cluster that runs on this machine: status, stop, logs, metrics."""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Table

from services.local.control import read_log, stop_cluster
from services.local.run_folder import ClusterState, cache_folder, running_clusters
from services.local.terminal import printable
from services.local.up import command_name

STREAMS = re.compile(r'^moonshard_dispatch_streams\{transport="(\w+)"\} (\S+)$', re.MULTILINE)


def status() -> None:
    """Show the clusters that run on this machine, and their processes."""
    console = Console()
    clusters = running_clusters(cache_folder(os.environ))
    if not clusters:
        raise give_up(f"no cluster is running; start one with `{command_name()} up`")
    for cluster in clusters:
        minutes = (time.time() - cluster.started_at) / 60
        console.print(f"{cluster.url}, up for {minutes:.0f} min", highlight=False, soft_wrap=True)
        console.print(f"{cluster.model}\n{cluster.log}", highlight=False, soft_wrap=True)
        console.print(_table(cluster))


def stop(
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which a cluster that still runs is killed.")
    ] = 60,
) -> None:
    """Stop the cluster that runs on this machine, as Ctrl-C in its terminal does."""
    cluster = running_cluster()
    typer.echo(f"Stopping {cluster.url}.")
    if not stop_cluster(cluster, timeout):
        raise give_up(f"it did not stop within {timeout:g} s and was killed")


def logs(
    process: Annotated[str, typer.Argument(help="Name in `moonshard status`; default: all processes.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new lines, until Ctrl-C.")] = False,
) -> None:
    """Print the log of the running cluster."""
    cluster = running_cluster()
    names = [state.name for state in cluster.processes]
    if process and process not in names:
        raise give_up(f"there is no process {process!r}, only {', '.join(names)}")
    with contextlib.suppress(KeyboardInterrupt):
        for record in read_log(Path(cluster.log), process, follow=follow):
            typer.echo(f"{record.time} {record.process:<20} {record.level:<8} {printable(str(record))}")


def metrics(
    process: Annotated[str, typer.Argument(help="Name in `moonshard status`; default: all processes in turn.")] = "",
) -> None:
    """Print the metrics of the running cluster's processes, in Prometheus' text format."""
    cluster = running_cluster()
    names = [state.name for state in cluster.processes if not state.name.startswith("redis-")]
    if process and process not in names:
        raise give_up(f"there is no process {process!r}, only {', '.join(names)}")
    for name in [process] if process else names:
        if not process:
            typer.echo(f"# {name}")
        typer.echo(_metrics_of(Path(cluster.run_folder, f"{name}.prom")))


def _metrics_of(path: Path) -> str:
    if not path.is_socket():
        return "# not there: it does not serve metrics yet"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=2) as client:
        try:
            return client.get("http://localhost/metrics").text
        except httpx.TransportError as error:
            return f"# not there: {error}"


def running_cluster() -> ClusterState:
    clusters = running_clusters(cache_folder(os.environ))
    if not clusters:
        raise give_up(f"no cluster is running; start one with `{command_name()} up`, or name a server with --url")
    return clusters[0]


def give_up(message: str) -> typer.Exit:
    """Print why the command fails. The caller raises the returned exit."""
    typer.echo(f"moonshard: {message}", err=True)
    return typer.Exit(2)


def _table(cluster: ClusterState) -> Table:
    table = Table()
    table.add_column("process")
    table.add_column("pid", justify="right")
    table.add_column("state")
    table.add_column("MiB", justify="right")
    table.add_column("streams to experts")
    for process in cluster.processes:
        streams = _streams(cluster, process.name) if process.name.startswith(("prefill", "decode")) else ""
        table.add_row(process.name, str(process.pid or ""), process.state, _memory(process.pid), streams)
    return table


def _streams(cluster: ClusterState, process: str) -> str:
    """Return the open streams of an attention process by transport, as "2 shared, 1 tcp"; empty if it has none."""
    found = STREAMS.findall(_metrics_of(Path(cluster.run_folder, f"{process}.prom")))
    return ", ".join(f"{int(float(count))} {transport}" for transport, count in found if float(count))


def _memory(pid: int) -> str:
    """Return the resident memory in MiB; empty for a process that does not exist."""
    try:
        return f"{psutil.Process(pid).memory_info().rss / 2**20:.0f}" if pid else ""
    except psutil.Error:
        return ""
