"""The choice of a process's device, and the error if there is none."""

import os
import subprocess
import sys

import pytest
import torch

from services.model.device import CPU, landing, to_device, to_host, torch_device

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@NO_GPU
def test_without_a_gpu_the_cpu_computes():
    assert torch_device("auto") == torch_device("cpu") == CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_with_a_gpu_it_computes_unless_told_otherwise():
    assert torch_device("auto") == torch_device("cuda") == torch.device("cuda", 0)
    assert torch_device("cpu") == CPU
    x = torch.arange(6.0).view(2, 3)
    there = to_device(x, torch_device("cuda"))
    assert there.is_cuda and landing(there).is_pinned()
    assert torch.equal(to_host(there)[0], x)


@pytest.mark.parametrize("service", ["attention", "expert", "vision"])
@pytest.mark.parametrize(
    "value, sentence",
    [
        pytest.param("cuda", "finds no CUDA device here", marks=NO_GPU),
        ("gpu", "Input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
@pytest.mark.slow
def test_a_device_that_is_none_stops_the_process(service, value, sentence, tmp_path):
    if service == "vision":
        pytest.importorskip("av")
    environment = {
        **os.environ,
        **{"MOONSHARD_DEVICE": value, "MOONSHARD_LISTEN": "127.0.0.1:0", "MOONSHARD_MODEL": str(tmp_path)},
        **{"MOONSHARD_ROLE": "decode", "MOONSHARD_STORE": "redis://127.0.0.1:1/0"},
    }
    command = [sys.executable, "-m", f"services.{service}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"MOONSHARD_DEVICE={value}: ") and sentence in done.stderr


def test_moving_to_where_it_is_costs_nothing():
    x = torch.ones(2)
    assert to_device(x, CPU) is x
    assert to_host(x)[0] is x
    assert to_device(x, torch.device("meta")).is_meta
    assert landing(x).shape == x.shape and not landing(x).is_pinned()
