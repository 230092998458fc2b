"""What RFC 9112 asks of a request's head, and the HTTP parser does not."""

import re
from collections.abc import Sequence

from sesiones.http.problems import Problem

HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[A-Za-z0-9._~!$&'()*+,;=%:-]+\])(?::[0-9]*)?"
)
"""RFC 3986, 3.2.2 and 3.2.3."""

MALFORMED = Problem(400, "La petición HTTP está mal formada.")
UNKNOWN_CODING = Problem(501, "De Transfer-Encoding solo se admite chunked.")

Headers = Sequence[tuple[bytes, bytes]]

LINE_BYTES = len(" RTSP/")
"""How much of an unfinished request line tells its protocol."""

_OTHER_PROTOCOL = re.compile(rb" (?:RTSP|ICE)/")


def options(headers: Headers, field: bytes) -> list[bytes]:
    """The members of all fields of that name, each a list (RFC 9110, 5.6.1), in lower case."""
    if field not in dict(headers):  # the usual case
        return []
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


def piece_end(line: bytes, data: bytes, limit: int) -> int:
    """Where the next piece of the data for the parser ends, at ``limit`` or before it.

    That is behind a line where possible, and behind what could be the name of another protocol:
    the parser accepts RTSP/1.1 and ICE/1.1 in the place of HTTP/1.1 and does not tell, but in a
    field or in a body the same bytes are no error. In such pieces a request line is easily
    followed. ``line``: what names_another_protocol() is given, before the data.
    """
    end = len(data)
    if end > limit:
        end, data = limit, data[:limit]
    match = _OTHER_PROTOCOL.search(line + data)
    if match is not None:
        end = match.end() - len(line)
    elif data.endswith(b"\n"):  # the usual case
        return end
    return data.rfind(b"\n", 0, end) + 1 or end


def names_another_protocol(line: bytes) -> bool:
    """Whether the request line, of which these are the last bytes, is not HTTP's."""
    return _OTHER_PROTOCOL.search(line) is not None
