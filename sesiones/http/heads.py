"""What RFC 9112 asks of a request's head, and the HTTP parser does not check."""

import re

from sesiones.http.credentials import Headers
from sesiones.http.problems import Problem

HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*+|\[[A-Za-z0-9._~!$&'()*+,;=%:-]++\])(?::[0-9]*+)?"
)
"""RFC 3986, 3.2.2 and 3.2.3. The repeats are possessive: a part of a host that fits is not tried
again when what follows does not fit."""

HEAD_MAX_BYTES = 16 * 1024
HEAD_MAX_FIELDS = 100

TOO_LARGE = Problem(
    431, f"Las cabeceras superan los {HEAD_MAX_BYTES} bytes o los {HEAD_MAX_FIELDS} campos."
)
MALFORMED = Problem(400, "La petición HTTP está mal formada.")
UNKNOWN_CODING = Problem(501, "De Transfer-Encoding solo se admite chunked.")

BLANK_LINE = b"\r\n\r\n"
"""The end of a head, and of the chunks of a body with its trailers."""


def options(headers: Headers, field: bytes) -> list[bytes]:
    """The members of all fields of that name, each a list (RFC 9110, 5.6.1), in lower case."""
    if field not in dict(headers):  # the usual case
        return []
    values = [value for name, value in headers if name == field]
    members = [member.strip(b" \t") for value in values for member in value.split(b",")]
    return [member.lower() for member in members if member]


def asks_for_fresh(headers: Headers) -> bool:
    """Whether the request must not be answered from a cache (RFC 9111, 5.2.1.4)."""
    directives = options(headers, b"cache-control")
    return any(directive.partition(b"=")[0] == b"no-cache" for directive in directives)


def slides(headers: Headers) -> bool:
    """Whether a check is a use of the session: unless a gateway says that it is none."""
    return (b"x-sin-deslizar", b"1") not in headers


def problem(head: bytes, method: bytes, version: str, headers: Headers) -> Problem | None:
    """The 431, 400 or 501 of a head that is not as it must be. ``head``: its bytes; the rest: what
    the parser made of them."""
    if not names_http(head):
        return MALFORMED
    if len(head) > HEAD_MAX_BYTES or len(headers) > HEAD_MAX_FIELDS:
        return TOO_LARGE
    hosts = [value for name, value in headers if name == b"host"]
    codings = options(headers, b"transfer-encoding")
    if (
        version not in ("1.0", "1.1")  # RFC 9112, 2.3
        or method == b"CONNECT"  # the service is no proxy
        or len(hosts) > 1  # RFC 9112, 3.2, as the next two
        or not all(map(HOST.fullmatch, hosts))
        or (version == "1.1" and not hosts)
        or (codings and version == "1.0")  # RFC 9112, 6.1: HTTP/1.0 has no chunks
        or (codings and codings[-1] != b"chunked")  # RFC 9112, 6.3: where the body ends is unknown
    ):
        return MALFORMED
    if len(codings) > 1:  # RFC 9112, 6.1: a coding that the service does not understand
        return UNKNOWN_CODING
    return None


def body_bytes(headers: Headers) -> int | None:
    """How long the body of a request is, whose head the parser has accepted; None when it comes
    in chunks."""
    fields = dict(headers)
    return None if b"transfer-encoding" in fields else int(fields.get(b"content-length", 0))


def without_upgrade(method: bytes, target: bytes, version: bytes, headers: Headers) -> bytes:
    """A head without its Upgrade field, which a server may ignore (RFC 9110, 7.8): a parser takes
    what follows an upgrade for another protocol. Java's client asks for h2c with every request."""
    lines = [b"%b %b HTTP/%b" % (method, target, version)]
    lines += [b"%b: %b" % field for field in headers if field[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])


def names_http(head: bytes) -> bool:
    """Whether the request line, once the whole of it has come, is that of HTTP/1.0 or HTTP/1.1.

    The parser also accepts RTSP/1.1 and ICE/1.1 in the place of HTTP/1.1, and does not tell.
    """
    end = head.find(b"\r\n")
    return end < 0 or head.endswith((b" HTTP/1.1", b" HTTP/1.0"), 0, end)
