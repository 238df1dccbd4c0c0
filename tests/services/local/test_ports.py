import socket

import pytest

from services.local.ports import free_port


def test_next_free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 100
    assert free_port("127.0.0.1", port) == port


def test_no_port_is_left():
    with socket.create_server(("127.0.0.1", 65535)), pytest.raises(OSError, match="no free port"):
        free_port("127.0.0.1", 65535)


def test_address_of_another_machine():
    with pytest.raises(OSError, match="assign requested address"):
        free_port("203.0.113.1", 8000)
