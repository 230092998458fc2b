"""Ports for servers that tests start."""

import socket
import struct
import sys

import pytest

from tests.harness.ports import free_port


@pytest.mark.parametrize("address", ["127.0.0.1", "", "::"])
def test_server_can_listen_on_a_free_port_again_and_again(address: str) -> None:
    port = free_port()
    both = address == "::"
    family = socket.AF_INET6 if both else socket.AF_INET
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with (
            socket.create_server((address, port), family=family, dualstack_ipv6=both),
            socket.create_connection(("127.0.0.1", port)),
        ):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="nothing holds a port elsewhere")
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", ""])
def test_free_port_is_left_to_its_server(address: str) -> None:
    """Before and after the server, as while it runs."""
    port = free_port()
    for _ in range(2):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((address, port))
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="nothing holds a port elsewhere")
def test_outgoing_connection_gets_no_free_port() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        own = free_port()
        with socket.socket() as client:
            # A range of that port alone for the client (ip(7), since Linux 6.3).
            try:
                client.setsockopt(socket.IPPROTO_IP, 51, struct.pack("HH", own, own))
            except OSError:
                pytest.skip("the kernel is older than IP_LOCAL_PORT_RANGE")
            with pytest.raises(OSError, match="Cannot assign"):
                client.connect(server.getsockname())
