"""HTTP/1.1 conformance: the cases of two testers named h1spec, in a table of our own.

Neither is in a package registry: https://github.com/uNetworking/h1spec (for Deno) and
https://github.com/dropseed/h1spec (Python). The first takes a 404 for `/` for a failure; these
cases ask for a path that exists, so that what is well-formed is a 200. The testers themselves were
run once: of uNetworking/h1spec (f0a5650) 28 of 33 pass, and the others want a 2xx at `/`; of
dropseed/h1spec (d8f6918, `--strict`) 32 of 33 pass, and the other wants `CONNECT` not to be a 400.
"""

import re
from collections.abc import Mapping

import pytest

from tests.harness.service import Service

pytestmark = pytest.mark.usefixtures("no_error_logged")

LINE, HOST, END = "GET /sesiones/verificar HTTP/1.1\r\n", "Host: h\r\n", "\r\n"
CREDENTIAL = "x-auth-token: TOKEN\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
POST = LINE.replace("GET", "POST") + HOST + CREDENTIAL
BEGIN = LINE + HOST + CREDENTIAL
CHUNKS = "5\r\nhello\r\n0\r\n\r\n"

WELL_FORMED: Mapping[str, str] = {
    "a GET": BEGIN + END,
    "a name in any case, a tab, a value of nothing": BEGIN + "nAmE:\tx\r\nempty:\r\n" + END,
    "a value of spaces": BEGIN + "empty: \r\n" + END,
    "Expect": BEGIN + "Expect: 100-continue\r\n" + END,
    "a body by its length": POST + "Content-Length: 5\r\n" + END + "hello",
    "a body in chunks": POST + CHUNKED + END + CHUNKS,
    "a body after 100 Continue": POST
    + "Content-Length: 5\r\nExpect: 100-continue\r\n"
    + END
    + "hello",
    "the absolute form": BEGIN.replace(" /", " http://h/") + END,
    "HTTP/1.0": BEGIN.replace("1.1", "1.0") + END,
    "a request line of 9 kB": BEGIN.replace(" HTTP", "/" + "a" * 9000 + " HTTP") + END,
    "a field of 9 kB": BEGIN + "x: " + "a" * 9000 + "\r\n" + END,
    "a HEAD": BEGIN.replace("GET", "HEAD") + END,
}
"""Answered with 200."""

REFUSED: Mapping[str, str] = {
    "no version": BEGIN.replace(" HTTP/1.1", " ") + END,
    "no version and no space": BEGIN.replace(" HTTP/1.1", "") + END,
    "version 9.9": BEGIN.replace("1.1", "9.9") + END,
    "RTSP": BEGIN.replace("HTTP/", "RTSP/") + END,
    "version 2.0": BEGIN.replace("1.1", "2.0") + END,
    "words before the method": "Extra line" + BEGIN + END,
    "a method in lower case": BEGIN.replace("GET", "get") + END,
    "a carriage return alone": BEGIN + "\rx: y\r\n" + END,
    "a name with brackets": BEGIN + "x[]: y\r\n" + END,
    "a name with a space": BEGIN + "x y: z\r\n" + END,
    "a space before the colon": BEGIN + "x : y\r\n" + END,
    "a folded line": BEGIN + " y\r\n" + END,
    "a control character in a value": BEGIN + "x: \x07\r\n" + END,
    "a zero byte in a value": BEGIN + "x: \x00\r\n" + END,
    "no Host": LINE + CREDENTIAL + END,
    "no Host, and a length": LINE + CREDENTIAL + "Content-Length: 5\r\n" + END,
    "two Hosts": BEGIN + HOST + END,
    "a Host with a space": LINE + "Host: a b\r\n" + CREDENTIAL + END,
    "a Host with a zero byte": LINE + "Host: a\x00b\r\n" + CREDENTIAL + END,
    "a negative length": POST + "Content-Length: -1234\r\n" + END,
    "a very negative length": POST + "Content-Length: -123456789123456789123456789\r\n" + END,
    "a length of letters": POST + "Content-Length: abc\r\n" + END + "hello",
    "two lengths": POST + "Content-Length: 5\r\nContent-Length: 7\r\n" + END + "hello!!",
    "a length and chunks": POST
    + "content-LengtH: 5\r\nTransFer-Encoding: chunked\r\n"
    + END
    + CHUNKS,
    "chunks and a length": POST + CHUNKED + "Content-Length: 5\r\n" + END + CHUNKS,
    "chunks and a length on a GET": BEGIN + CHUNKED + "Content-Length: 5\r\n" + END,
    "chunks that are not last": POST + "Transfer-Encoding: chunked, gzip\r\n" + END + CHUNKS,
    "a chunk size of letters": POST + CHUNKED + END + "Z\r\nhello\r\n0\r\n\r\n",
    "a chunk that does not end": POST + CHUNKED + END + "5\r\nhello0\r\n\r\n",
    "an unknown coding": POST + "Transfer-Encoding: nonsense\r\n" + END + "hello",
    "chunks in HTTP/1.0": POST.replace("1.1", "1.0") + CHUNKED + END + CHUNKS,
    # The tester wants anything else. RFC 9110, 9.3.6, leaves what no proxy is to answer open, and
    # bytes behind a CONNECT might be another protocol's.
    "CONNECT": "CONNECT h:443 HTTP/1.1\r\n" + HOST + CREDENTIAL + END,
}
"""Answered with 400, and the connection ends."""

OTHERS: Mapping[str, tuple[str, int, bool]] = {
    "101 fields": (LINE + HOST + "x: y\r\n" * 100 + END, 431, True),
    "Connection: close": (BEGIN + "Connection: close\r\n" + END + BEGIN + END, 200, True),
    "OPTIONS *": ("OPTIONS * HTTP/1.1\r\n" + HOST + END, 404, False),  # well-formed
}
"""The status, and whether the connection ends."""


def ask(service: Service, token: bytes, sent: str) -> tuple[list[int], bool]:
    """The statuses of what comes back, and whether the service says that it closes."""
    answer = service.raw(sent.replace("TOKEN", token.decode()).encode("latin-1"))
    if sent.startswith("HEAD"):
        assert answer.endswith(b"\r\n\r\n")
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (?!100)(\d+) ", answer)]
    return statuses, b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("case", WELL_FORMED)
def test_well_formed_request_is_answered(service: Service, token: bytes, case: str) -> None:
    sent, old = WELL_FORMED[case], case == "HTTP/1.0"
    assert ask(service, token, sent) == ([200], old)
    assert ask(service, token, sent * 2) == ([200] if old else [200, 200], old)


@pytest.mark.parametrize("case", REFUSED)
def test_malformed_request_is_a_400_and_the_last_one(
    service: Service, token: bytes, case: str
) -> None:
    assert ask(service, token, REFUSED[case] + BEGIN + END) == ([400], True)


@pytest.mark.parametrize("case", OTHERS)
def test_other_request_has_its_status(service: Service, token: bytes, case: str) -> None:
    sent, status, closes = OTHERS[case]
    assert ask(service, token, sent) == ([status], closes)


def test_request_is_waited_for_wherever_it_is_cut(service: Service, token: bytes) -> None:
    whole = (BEGIN + END).replace("TOKEN", token.decode()).encode()
    for end in range(1, len(whole)):
        with service.connect() as connection:
            connection.sendall(whole[:end])
            connection.settimeout(0.001)
            with pytest.raises(TimeoutError):
                connection.recv(1024)
