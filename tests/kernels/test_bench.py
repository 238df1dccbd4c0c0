"""The GPU benchmark without a GPU: its arithmetic, its message, and all its checks and cases at small sizes."""

from functools import partial

import pytest
import torch

from kernels import roofline
from kernels.gpu.kernels import TritonKernels
from kernels.roofline import Cost
from tests.bench.gpu_kernels import __main__ as bench
from tests.bench.gpu_kernels import attention, cases, experts, layers
from tests.bench.gpu_kernels.case import Case, Plan
from tests.bench.gpu_kernels.checks import LIMIT, Check, Sizes, checks, relative_error
from tests.bench.gpu_kernels.reading import TILE, reader
from tests.bench.gpu_kernels.timing import SETS, Ceilings, Timing, amounts, ceilings, measured, summary
from tests.kernels.triton_device import DEVICE

pytestmark = pytest.mark.slow

SMALL = Sizes(
    **{"hidden": 256, "width": 128, "experts": 3, "top_k": 2, "heads": 4, "latent": 32, "rope": 16, "nope": 16},
    **{"value": 16, "vocab": 300, "tokens": 5, "contexts": (1, 0, 70), "vision_heads": 2, "vision_width": 16},
    lengths=(3, 5),
)


def test_every_kernel_passes_its_check():
    done = list(checks(TritonKernels(), torch.device(DEVICE), sizes=SMALL))
    assert [check.name for check in done if not check.passed] == []
    assert max(check.error for check in done) > 0


def test_a_wrong_kernel_is_found():
    class Wrong(TritonKernels):
        def silu_mul(self, gate_up):
            return super().silu_mul(gate_up) * 1.01

        def rope(self, x, positions, inv_freq):
            out = super().rope(x, positions, inv_freq)
            out[0, 0, 0] = float("nan")
            return out

    done = {check.name: check.passed for check in checks(Wrong(), torch.device(DEVICE), sizes=SMALL)}
    assert [name for name, passed in done.items() if not passed] == ["silu_mul", "rope"]


def test_the_reader_reads_every_word_that_it_counts():
    words = torch.arange(5 * TILE, dtype=torch.int32, device=DEVICE)
    read, num_bytes = reader(words, programs=2)
    assert num_bytes == 4 * 4 * TILE
    assert read().tolist() == [int(part.sum(dtype=torch.int32)) for part in words[: 4 * TILE].split(2 * TILE)]


def test_errors_are_relative():
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(expected, expected) == 0
    assert relative_error(expected + torch.tensor([0.0, 0.05]), expected) == pytest.approx(0.01, rel=1e-4)
    assert not Check("x", float("nan"), LIMIT).passed


@pytest.fixture
def small(monkeypatch):
    """Return a plan with small sizes, and a model of these sizes."""
    values = {
        **{"HIDDEN": 256, "WIDTH": 128, "EXPERTS": 8, "SHARD": 3, "TOP_K": 2, "HEADS": 4, "Q_LORA": 32},
        **{"LATENT": 32, "ROPE": 16, "NOPE": 16, "VALUE": 16, "VOCAB": 300},
    }
    for module in (attention, cases, experts, layers, roofline):
        for name, value in values.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    sizes = {"decode": (1, 3), "prefill": (70,), "contexts": (64,), "chunks": ((64, 64), (10, 128)), "patches": (10,)}
    return Plan(**sizes, dense=((48, 32), (300, 64)), seconds=0.01)


def test_every_contender_of_every_case_runs(small):
    names = []
    for case in cases.cases(TritonKernels(), torch.device(DEVICE), small):
        names.append(case.name)
        assert case.floor_s(Ceilings()) > 0
        case.contenders.pop("cuDNN, latents in order", None)  # needs the real widths
        for run in case.contenders.values():
            assert run(0) is not None
            assert run(SETS - 1) is not None
    assert len(set(names)) == len(names)
    assert {name.split(",")[0].split(" ")[0] for name in names} == set(cases.GROUPS)


@pytest.mark.parametrize("group, count", [("expert_mlp", 6), ("mla_decode", 2), ("rope", 0), ("norm_rope_store", 0)])
def test_contenders_agree(small, group, count):
    """Compared implementations compute the same; a name says so where one does less."""
    compared = 0
    for case in cases.cases(TritonKernels(), torch.device(DEVICE), small, (group,)):
        case.contenders.pop("bmm + softmax, latents in order", None)  # its blocks are in another order
        case.contenders.pop("bf16 weights, torch._grouped_mm", None)  # with weights of its own
        ours, *others = (run(1).clone() for run in case.contenders.values())
        for other in others:
            assert relative_error(other, ours) < 3 * LIMIT
            compared += 1
    assert compared >= max(1, count)


def test_a_line_of_the_table():
    case = Case("copy", (Cost(4.3e9), Cost(0.0, 7.9e11)), {})
    line = bench.row(case, "ours", Timing(5e-3, 0.031), Ceilings())
    assert line == "| copy | ours | 5,000.00 | 3% | 4,300.0 | 790.0 | 0.86 | 158 | 40% |"


def test_median_and_spread():
    assert summary([3.0, 1.0, 2.0]) == Timing(2.0, 1.0)


@pytest.mark.parametrize(
    "call_s, calls, replays", [(1e-6, 18, 50), (1e-3, 18, 22), (1e-2, 3, 13), (1.0, 3, 3)], ids=str
)
def test_a_timing_takes_as_long_as_it_may(call_s, calls, replays):
    assert amounts(call_s, 0.4) == (calls, replays)


def test_pytorchs_compiler_joins_where_pytorch_contends():
    x = torch.randn(3, 4)
    case = Case("x", (Cost(1),), {"ours": lambda i: x[i], "PyTorch": partial(lambda x, i: x[i] * 2, x)})
    joined = case.compiled_too(backend="eager").contenders
    assert list(joined) == ["ours", "PyTorch", "torch.compile"]
    assert [joined["torch.compile"](i).tolist() for i in range(3)] == (x * 2).tolist()
    alone = Case("x", (Cost(1),), {"ours": lambda i: x[i]})
    assert alone.compiled_too() is alone


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU here, so it would measure")
@pytest.mark.parametrize("arguments", [[], ["--floors"]])
def test_without_a_gpu_it_prints_floors_and_says_so(arguments, capsys):
    assert bench.main(arguments) == 0
    said = capsys.readouterr().out
    assert ("There is no GPU here" in said) == (not arguments)
    assert "| expert_mlp, both products, 384 experts | 46 |" in said


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
def test_a_call_is_timed():
    x = torch.randn(1 << 22, device=DEVICE)
    timing = measured(lambda _: x * 2, 0.1)
    assert 1e-6 < timing.median_s < 1e-3
    here = ceilings(torch.device(DEVICE))
    assert 1e11 < here.bytes_per_s < 1e14 and 1e13 < here.flop_per_s < 1e16
