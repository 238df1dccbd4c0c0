import pytest
import torch

from protos import tensor_pb2
from services.model.wire import tensor_from_proto, tensor_to_proto
from services.runtime.errors import WireError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (0, 7), (1,), (3, 5), (2, 3, 4)], ids=str)
def test_round_trip(dtype, shape):
    tensor = (torch.randn(shape) * 9).to(dtype)
    received = tensor_from_proto(tensor_pb2.Tensor.FromString(tensor_to_proto(tensor).SerializeToString()))
    assert received.dtype == dtype
    assert torch.equal(received, tensor)


def test_strides_do_not_travel():
    tensor = torch.arange(12, dtype=torch.int32).view(3, 4)
    assert tensor_from_proto(tensor_to_proto(tensor.t()[::2])).tolist() == tensor.t()[::2].tolist()


def test_the_received_tensor_is_its_own():
    proto = tensor_to_proto(torch.zeros(2))
    tensor_from_proto(proto).add_(1)
    assert tensor_from_proto(proto).tolist() == [0, 0]


def test_bytes_are_little_endian():
    assert tensor_to_proto(torch.tensor([1, 256], dtype=torch.int32)).data == b"\1\0\0\0\0\1\0\0"


@pytest.mark.parametrize(
    "proto, message",
    [
        pytest.param(tensor_pb2.Tensor(data=b"abcd", shape=[1]), "dtype 0 is unknown", id="no-dtype"),
        pytest.param(tensor_pb2.Tensor(dtype=77, data=b"abcd", shape=[1]), "dtype 77 is unknown", id="future-dtype"),
        pytest.param(tensor_pb2.Tensor(dtype=1, shape=[2, 3], data=b"abcd"), "needs 24 bytes.* has 4", id="short"),
        pytest.param(tensor_pb2.Tensor(dtype=2, shape=[1], data=b"abcd"), "needs 2 bytes.* has 4", id="long"),
        pytest.param(tensor_pb2.Tensor(dtype=2, shape=[0], data=b"ab"), "needs 0 bytes.* has 2", id="not-empty"),
        pytest.param(tensor_pb2.Tensor(dtype=1, shape=[2**31, 2**31], data=b""), "bytes, the message has 0", id="huge"),
    ],
)
def test_messages_that_disagree_with_themselves(proto, message):
    with pytest.raises(WireError, match=message):
        tensor_from_proto(proto)


def test_a_dtype_that_does_not_travel():
    with pytest.raises(WireError, match="float64 does not travel"):
        tensor_to_proto(torch.zeros(1, dtype=torch.float64))
