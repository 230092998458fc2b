"""HTTP/1.1 conformance: the cases of two testers named h1spec, in a table of our own.

Neither is in a package registry: https://github.com/uNetworking/h1spec (for Deno) and
https://github.com/dropseed/h1spec (Python). The first takes a 404 for `/` for a failure; these
cases ask for a path that there is, so that what is well-formed is a 200.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from scripts.chaos import Bar
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service

LINE, HOST, END = "GET /sesiones/verificar HTTP/1.1\r\n", "Host: h\r\n", "\r\n"
CREDENTIAL = "x-auth-token: TOKEN\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
POST = LINE.replace("GET", "POST") + HOST + CREDENTIAL
BEGIN = LINE + HOST + CREDENTIAL
CHUNKS = "5\r\nhello\r\n0\r\n\r\n"

WHOLE: Mapping[str, str] = {
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
"""200."""

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
"""400, and the connection ends."""

TOO_LARGE: Mapping[str, str] = {"101 fields": LINE + HOST + "x: y\r\n" * 100 + END}
"""431, and the connection ends."""

ASTERISK = "OPTIONS * HTTP/1.1\r\n" + HOST + END
"""404: well-formed."""


def play(short: bool) -> Iterator[Bar]:
    with RedisServer() as redis, Service(SESIONES_REDIS_URL=redis.url) as service:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        made = service.request("POST", "/sesiones", headers, "ID_Usuario=7&Dispositivo=h1spec")
        failed, cases = judge(service, made.json()["Token_Sesion"])
    yield Bar(
        f"HTTP/1.1 as {cases} cases ask",
        "as asked" if not failed else "; ".join(failed),
        not failed,
    )


def judge(service: Service, token: str) -> tuple[list[str], int]:
    """What is not as asked, and how many cases were looked at."""
    failed, cases = [], 0

    def expect(name: str, sent: str, *, wanted: list[int], closed: bool) -> None:
        nonlocal cases
        cases += 1
        answer = service.raw(sent.replace("TOKEN", token).encode("latin-1"))
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (?!100)(\d+) ", answer)]
        says_so = b"\r\nconnection: close\r\n" in answer
        bodiless = not sent.startswith("HEAD") or answer.endswith(b"\r\n\r\n")
        if statuses != wanted or says_so != closed or not bodiless:
            failed.append(f"{name}: {statuses}")

    for name, sent in WHOLE.items():
        expect(name, sent, wanted=[200], closed="HTTP/1.0" in sent)
        expect(
            f"{name}, twice", sent * 2, wanted=[200] * (1 + ("1.1" in sent)), closed="1.0" in sent
        )
    for name, sent in REFUSED.items():
        expect(name, sent + BEGIN + END, wanted=[400], closed=True)
    for name, sent in TOO_LARGE.items():
        expect(name, sent, wanted=[431], closed=True)
    close = BEGIN + "Connection: close\r\n" + END
    expect("Connection: close", close + BEGIN + END, wanted=[200], closed=True)
    expect("OPTIONS *", ASTERISK, wanted=[404], closed=False)
    # Whatever has come of a request, it is waited for.
    for end in range(1, len(BEGIN + END)):
        cases += 1
        with service.connect() as connection:
            connection.sendall((BEGIN + END)[:end].encode())
            connection.settimeout(0.001)
            with suppress(TimeoutError):
                failed.append(f"{end} bytes: {connection.recv(1024)!r}")
    return failed, cases
