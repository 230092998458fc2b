"""Ports for servers that tests start."""

import socket
import sys


def free_port() -> int:
    """Return a port that nothing else takes until this process ends, however often the server that
    it is for starts and stops there.

    On Linux a socket that never listens holds it: the kernel gives its port to no outgoing
    connection, and to no other process that asks for a free one. A server can still listen there,
    because servers set SO_REUSEADDR, which is refused only where another socket listens
    (socket(7)). On other systems that socket would be in its way, so nothing holds the port.
    """
    with socket.socket() as holder:
        holder.bind(("", 0))
        port: int = holder.getsockname()[1]
        if sys.platform == "linux":
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.detach()  # it stays open
    return port
