"""The watch of scripts/chaos/slow sees a connection for as long as it is held."""

import os
import socket
import time

import pytest

from scripts.chaos.slow import held

pytestmark = pytest.mark.slow


def test_held_has_the_connections_of_a_process_until_they_are_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert held(port) == set()
        with socket.create_connection(("127.0.0.1", port)):
            connection, _ = listener.accept()
            inode = os.stat(connection.fileno()).st_ino
            assert held(port) == {str(inode)}
            connection.close()
            time.sleep(0.01)
            assert held(port) == set()
