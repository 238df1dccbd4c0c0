"""The folders of a cluster, how other commands find it, and its clean-up."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from services.local.run_folder import (
    ClusterState,
    ProcessState,
    RunFolder,
    StateFile,
    cache_folder,
    running_clusters,
    sweep,
)
from services.runtime.settings import MAX_SOCKET_PATH_BYTES

ROOT = Path(__file__).resolve().parents[3]


def state(run_folder, started_at=1.0, url="http://127.0.0.1:8000"):
    process = ProcessState("expert-0-0", 123, "ready", "unix:/x")
    return ClusterState(url, os.getpid(), "/model", "/log", str(run_folder), started_at, [process])


def test_only_this_user_may_enter():
    with RunFolder() as folder:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        folder.socket("gateway").touch()
    assert not folder.path.exists()


def test_socket_paths_fit(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with RunFolder() as folder:
        assert folder.path.parent == Path("/tmp")
        assert len(os.fsencode(folder.socket("prefill-99-shard-99"))) <= MAX_SOCKET_PATH_BYTES
    with pytest.raises(ValueError, match="too long a path for Unix sockets"):
        RunFolder(long)


@pytest.mark.parametrize(
    "environ, folder",
    [
        pytest.param({"XDG_CACHE_HOME": "/c"}, Path("/c/moonshard"), id="given"),
        pytest.param({}, Path.home() / ".cache" / "moonshard", id="not-given"),
        pytest.param({"XDG_CACHE_HOME": ""}, Path.home() / ".cache" / "moonshard", id="empty"),
        pytest.param({"XDG_CACHE_HOME": "c"}, Path.home() / ".cache" / "moonshard", id="relative-counts-as-not-given"),
    ],
)
def test_cache_folder(environ, folder):
    assert cache_folder(environ) == folder


def test_running_cluster_is_found_until_it_stops(tmp_path):
    cache = tmp_path / "cache"
    assert running_clusters(cache) == []
    with RunFolder() as folder, StateFile(cache) as state_file:
        assert running_clusters(cache) == []
        state_file.write(state(folder.path))
        assert running_clusters(cache) == [state(folder.path)]
        assert sweep(cache) == []
        assert folder.path.exists()
    assert running_clusters(cache) == []
    assert list(cache.iterdir()) == []


def test_newest_first(tmp_path):
    # Another process takes the lock, because a process never blocks itself.
    (tmp_path / "cluster-1.json").write_text("not JSON")
    with StateFile(tmp_path) as state_file:
        state_file.write(state(tmp_path, started_at=5.0, url="http://one"))
        code = (
            "import pathlib, sys, time; from services.local.run_folder import *;"
            "file = StateFile(pathlib.Path(sys.argv[1]));"
            "file.write(ClusterState('http://two', 1, '', '', '', 6.0)); print(flush=True); time.sleep(60)"
        )
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as other:
            other.stdout.readline()
            assert [cluster.url for cluster in running_clusters(tmp_path)] == ["http://two", "http://one"]
            other.kill()
        assert [cluster.url for cluster in running_clusters(tmp_path)] == ["http://one"]


def test_sweep_removes_what_a_killed_supervisor_left(tmp_path):
    folder = RunFolder()
    folder.socket("gateway").touch()
    code = (
        "import os, pathlib, sys; from services.local.run_folder import *;"
        "file = StateFile(pathlib.Path(sys.argv[1]));"
        "file.write(ClusterState('', 1, '', '', sys.argv[2], 6.0)); os.kill(os.getpid(), 9)"
    )
    cache = tmp_path / "cache"
    subprocess.run([sys.executable, "-c", code, str(cache), str(folder.path)], cwd=ROOT, check=False)
    assert len(list(cache.iterdir())) == 2
    assert sweep(cache) == [folder.path]
    assert not folder.path.exists()
    assert list(cache.iterdir()) == []


def test_sweep_touches_no_folder_but_ours(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "cluster-7.json").write_text(json.dumps(asdict(state(precious))))
    assert sweep(tmp_path) == []
    assert precious.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
