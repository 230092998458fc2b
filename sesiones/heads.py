"""What RFC 9112 asks of a request's head, and the HTTP parser does not."""

import re
from collections.abc import Sequence

from sesiones.problems import Problem

HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[A-Za-z0-9._~!$&'()*+,;=%:-]+\])(?::[0-9]*)?"
)
"""RFC 3986, 3.2.2 and 3.2.3."""

MALFORMED = Problem(400, "La petición HTTP está mal formada.")
UNKNOWN_CODING = Problem(501, "De Transfer-Encoding solo se admite chunked.")

Headers = Sequence[tuple[bytes, bytes]]

_OTHER_PROTOCOL = re.compile(rb" (?:RTSP|ICE)/")


def options(headers: Headers, field: bytes) -> list[bytes]:
    """The members of all fields of that name, each a list (RFC 9110, 5.6.1), in lower case."""
    values = [value for name, value in headers if name == field]
    members = [member.strip(b" \t") for value in values for member in value.split(b",")]
    return [member.lower() for member in members if member]


def problem(version: str, headers: Headers) -> Problem | None:
    """The 400 or 501 of a head that is not as it must be."""
    hosts = [value for name, value in headers if name == b"host"]
    codings = options(headers, b"transfer-encoding")
    if (
        version not in ("1.0", "1.1")  # 2.3
        or len(hosts) > 1  # 3.2, as the next two
        or not all(map(HOST.fullmatch, hosts))
        or (version == "1.1" and not hosts)
        or (codings and version == "1.0")  # 6.1: HTTP/1.0 has no chunks
        or (codings and codings[-1] != b"chunked")  # 6.3: the end of the body is unknown
    ):
        return MALFORMED
    if len(codings) > 1:  # 6.1: a coding that the service does not understand
        return UNKNOWN_CODING
    return None


class RequestLine:
    """Finds a request line that ends in RTSP/1.1 or ICE/1.1, say.

    The parser accepts those protocols in the place of HTTP and does not tell which one it was. The
    same bytes in a field or a body are no error. So the parser is fed in pieces that end behind a
    line, or behind what could be the name of such a protocol: whether a piece ends in a request
    line is then known.
    """

    def __init__(self) -> None:
        self._open = False  # the target was read, and the end of the line was not
        self._end = b""  # the last bytes of the line

    def target_read(self) -> None:
        """The parser has read the target of a request, or a part of it."""
        self._open = True

    def piece_end(self, data: bytes, limit: int) -> int:
        """Where the next piece ends: one byte of the data or more, and at most ``limit``."""
        end = min(len(data), limit)
        if self._open or data.find(b"RTSP/", 0, end) > 0 or data.find(b"ICE/", 0, end) > 0:
            match = _OTHER_PROTOCOL.search(self._end + data[:end])
            if match is not None:
                end = match.end() - len(self._end)
        return data.rfind(b"\n", 0, end) + 1 or end

    def is_of_another_protocol(self, piece: bytes) -> bool:
        """Whether the piece, which the parser was fed, shows it."""
        if piece.endswith(b"\n"):
            self._open, self._end = False, b""
            return False
        if not self._open:
            return False
        self._end = (self._end + piece)[-len(" RTSP/") :]
        return _OTHER_PROTOCOL.search(self._end) is not None
