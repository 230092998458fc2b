"""Requests that are nearly right, wrong in every way that a seed leads to."""

import json
import random
from collections.abc import Callable, Sequence

from tests.harness.contract import FIELDS as MEMBERS
from tests.harness.contract import FORM, INT_MAX, JSON, LOGIN, OPERATIONS

SELF, VERIFY = b"/sesiones/self", b"/sesiones/verificar"
REQUESTS = [
    (method.encode(), path.encode())
    for path, methods in OPERATIONS.items()
    if path.startswith("/sesiones")
    for method in methods
]
# A check and a body that is read are what most inputs are about.
REQUESTS += [(b"GET", SELF), (b"GET", VERIFY), (b"POST", VERIFY + b"/a/b?c=d")]
REQUESTS += [(b"POST", b"/sesiones"), (b"PUT", b"/sesiones"), (b"PUT", b"/sesiones")]
OAUTH = b"/sesiones/introspeccion", b"/sesiones/revocacion"
NUMBERS = b"0 1 01 +1 -1 1.0 1e3 9007199254740991 9007199254740992 {} %31".split()
NUMBERS += [b"1" * 17, b""]
"""What stands for a number in a path, beside those of sessions."""
METHODS = b"GET HEAD POST PUT DELETE PATCH OPTIONS TRACE CONNECT PROPFIND PRI SOURCE".split()
METHODS += [b"DESCRIBE", b"get", b"INVENTO", b""]
TARGETS = [path.encode() for path in (*OPERATIONS, "/livez")]
TARGETS += b"/ * // http://h/sesiones/self https://h h:443 sesiones/self".split()
TARGETS += [VERIFY, b""]
TARGETS += [VERIFY + tail for tail in (b"s", b"/%0A", b"#x")]
TARGETS += [SELF + tail for tail in (b"/", b"?x", b"%00", b"\xff")]
TARGETS += [b"/%73esiones/self", b"/sesiones/../sesiones/self", b"/" + b"a" * 17_000]
TAILS = [b"/", b".", b"\n", b"\0", b" ", b"%", b"a", b"A", b"?", b"#", b";"]
QUERIES = [b"Token_Sesion=x", b"Token_Sesion=%FF", b"a&a", b"%", b"Token_Sesion=&Token_Sesion="]
VERSIONS = b"HTTP/1.0 HTTP/1.0 RTSP/1.0 RTSP/1.1 ICE/1.1 HTTP/0.9 HTTP/2.0 HTTP/1.2".split()
VERSIONS += [b"HTTP/1.1x", b"http/1.1", b""]
HOSTS = [b"Host: \r\n", b"", b"Host: a\r\nHost: a\r\n", b"Host: a b\r\n", b"HOST:[::1]:80\r\n"]
HEADERS = [
    line + b"\r\n"
    for line in b"""Connection: close
Connection: keep-alive
Connection: keep-alive, close
Proxy-Connection: close
Expect: 100-continue
Expect: x
Cookie: x-auth-token=1
X_Auth_Token: x
Content-Type: text/plain
Content-Type: application/json
Content-Type: application/json; charset=utf-16
Content-Length: 0
Content-Length: 5
Content-Length: -1
Content-Length: 5, 5
Content-Length: 18446744073709551621
Content-Length: 99999
Transfer-Encoding: chunked
Transfer-Encoding: identity
Transfer-Encoding: \x0bchunked
Transfer-Encoding: gzip, chunked
Content-Encoding: gzip
Content-Encoding: identity
User-Agent: RTSP/1.0 ICE/1.0
X : a
X: \x00
X: \xff\xfe
X:""".split(b"\n")
]
HEADERS += [
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n",
]
HEADERS += [b"X: a\r\n b\r\n", b"X: a\nY: b\r\n", b"\r\n", b"X: y\r\n" * 101]
HEADERS += [b"X: %b\r\n" % (b"a" * count) for count in (9_000, 17_000)]
SCALARS = b'0 1 7 -1 -0 01 1.0 1e3 1E400 0x1 +1 true null NaN -Infinity "1" "" [] {} [1,'.split()
SCALARS += [b"%d" % (2**exponent + n) for exponent in (31, 53, 63, 64) for n in (-1, 0)]
SCALARS += rb'"x "\ud800" "\ud83d\ude00" "\u0000" "\x"'.split()
SCALARS += [b'"\xff"', b'"\xc3\xb1"', b""]
SCALARS += [b"1" * 31, b"1" * 5000, b"[" * 8000, b'{"a":' * 2600]
SCALARS += [b'"%b"' % (b"a" * count) for count in (512, 513)]
FORM_VALUES = [b"", b"01", b"%FF", b"%", b"%zz", b"+", b"9" * 20]
PIECES = [b"\r\n", b"\n", b"\r", b"\r\n\r\n", b":", b" ", b"\t", b"\x00", b"\xff", b"%", b"&", b"="]
PIECES += [b'"', b"{", b"ses_", b"GET / HTTP/1.1\r\n", b"0\r\n\r\n", b"HTTP/1.1", b"chunked", b"9"]
RANGES = [(0x20, 0x7F), (0xA0, 0x100), (0x100, 0xD800), (0xE000, 0x110000), (0, 0x20), (0x7F, 0xA0)]
RANGE_WEIGHTS = [30, 10, 20, 10, 1, 1]
"""The code points of texts, and how often each range is taken."""
TYPES = [JSON.encode(), FORM.encode()]
CREDENTIALS: list[Callable[[bytes, bytes], bytes]] = [
    lambda a, b: b"x-auth-token: %b\r\n" % a,
    lambda a, b: b"X-Auth-Token:%b\r\n" % a,
    lambda a, b: b"Authorization: Bearer %b\r\n" % a,
    lambda a, b: b"authorization: bEARER   %b \t\r\n" % a,
    lambda a, b: b"Authorization: Bearer\r\n",
    lambda a, b: b"Authorization: Basic %b\r\n" % a,
    lambda a, b: b"Authorization: Basic x\r\nx-auth-token: %b\r\n" % a,
    lambda a, b: b"x-auth-token: %b\r\nx-auth-token: %b\r\n" % (a, b),
    lambda a, b: b"x-auth-token: %b\r\nAuthorization: Bearer %b\r\n" % (a, b),
    lambda a, b: b"x-auth-token: %b, %b\r\n" % (a, b),
    lambda a, b: b"x-auth-token: \t%b\xa0\r\n" % a,
    lambda a, b: b"x_auth_token: %b\r\nCookie: %b\r\n" % (a, b),
    lambda a, b: b"",
]


class Mutations:
    """An endless supply, the same for the same seed.

    ``tokens``: what is put where a token goes, good and bad; ``objects``: sessions, their members
    in the order of the contract as JSON; ``key``: the service key.
    """

    def __init__(
        self, seed: str, tokens: Sequence[bytes], objects: Sequence[Sequence[bytes]], key: bytes
    ) -> None:
        self.random = random.Random(seed)
        self.tokens = tokens
        self._objects = objects
        self._key = key

    def make(self) -> list[bytes]:
        """What goes over one connection, in the pieces in which it arrives."""
        r = self.random
        if r.random() < 0.03:
            data = r.randbytes(r.randrange(1, 300))
        else:
            data = self.message()
            while r.random() < 0.15:
                data += self.message()
            while r.random() < 0.35:
                data = self.damage(data)
        return [data] if r.random() < 0.8 else self.pieces(data)

    def pieces(self, data: bytes) -> list[bytes]:
        """The data, cut at one to three of its bytes."""
        r = self.random
        cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.randrange(1, 4)))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]

    def message(self) -> bytes:
        """One request."""
        r = self.random
        method, target = r.choice(REQUESTS)
        if r.random() < 0.07:
            method = r.choice(METHODS)
        takes_key = method in (b"POST", b"PUT") or b"/usuarios/" in target
        takes_token = target in OAUTH
        target = self._target(target, designates=method == b"DELETE")
        version = b"HTTP/1.1" if r.random() < 0.94 else r.choice(VERSIONS)
        fields = [
            b"Host: h\r\n" if r.random() < 0.95 else r.choice(HOSTS),
            self._credential(takes_key=takes_key),
        ]
        while r.random() < 0.2:
            fields.append(r.choice(HEADERS))
        body = b""
        if method in (b"POST", b"PUT", b"DELETE") or r.random() < 0.05:
            kind = r.choice(TYPES)
            body = self._json() if kind == TYPES[0] else self._form()
            if takes_token and r.random() < 0.9:
                kind, body = TYPES[1], b"token=" + self._token()
            if r.random() < 0.03:
                body = r.choice((r.randbytes(r.randrange(60)), self._text().encode(), body * 40))
            if r.random() < 0.95:
                fields.append(b"Content-Type: %b\r\n" % kind)
            elif r.random() < 0.5:
                fields.append(b"Content-Type: %b\r\n" % self._text().encode("latin-1", "ignore"))
            framing, body = self._framed(body)
            fields.append(framing)
        if r.random() < 0.1:
            r.shuffle(fields)
        return b"%b %b %b\r\n%b\r\n%b" % (method, target, version, b"".join(fields), body)

    def _target(self, target: bytes, *, designates: bool) -> bytes:
        r = self.random
        if r.random() < 0.07:
            target = r.choice(TARGETS)
        elif r.random() < 0.03:
            target = b"/" + bytes(r.choices(range(33, 127), k=r.randrange(20)))
        for at, name in enumerate((b"{ID_Sesion}", b"{ID_Usuario}")):
            known = r.random() < 0.8
            number = r.choice(self._objects)[at] if known else r.choice(NUMBERS)
            target = target.replace(name, number)
        while r.random() < 0.03:
            target += r.choice(TAILS)
        if designates and r.random() < 0.5:
            target += b"?Token_Sesion=" + self._token()
        elif r.random() < (0.3 if designates else 0.03):
            target += b"?" + r.choice(QUERIES)
        return target

    def _token(self) -> bytes:
        r = self.random
        token = r.choice(self.tokens)
        if r.random() < 0.15:
            at = r.randrange(len(token) + 1)
            token = token[:at] + r.choice((b"", b"A", b"!", b"\xff", b" ")) + token[at + 1 :]
        return token if r.random() < 0.98 else r.randbytes(r.randrange(60))

    def _credential(self, *, takes_key: bool) -> bytes:
        r = self.random
        if takes_key and r.random() < 0.85:
            key, roll = self._key, r.random()
            if roll < 0.05:
                key = key[:-1] if roll < 0.02 else key + r.randbytes(r.randrange(1, 4))
            return b"Authorization: Bearer %b\r\n" % key
        return r.choice(CREDENTIALS)(self._token(), self._token())

    def _text(self) -> str:
        """Any code points but surrogates; few of them are control characters."""
        r = self.random
        chosen = r.choices(RANGES, RANGE_WEIGHTS, k=r.randrange(20))
        return "".join([chr(r.randrange(*one)) for one in chosen])

    def _string(self) -> str:
        """Any code points, now and then with a lone surrogate."""
        r = self.random
        lone = chr(r.randrange(0xD800, 0xE000)) if r.random() < 0.5 else ""
        return lone + self._text()

    def _value(self, depth: int = 0) -> object:
        """Any JSON value."""
        r = self.random
        match r.randrange(8 if depth < 3 else 6):
            case 0:
                return r.choice((None, True, False, ""))
            case 1:
                return r.randrange(-(2**70), 2**70) >> r.randrange(70)
            case 2:
                return r.choice((r.uniform(-10, 10), r.random() * 10.0 ** r.randrange(-300, 300)))
            case 3 | 4 | 5:
                return self._string()
            case 6:
                return [self._value(depth + 1) for _ in range(r.randrange(4))]
        names = [r.choice((self._text(), r.choice(MEMBERS))) for _ in range(r.randrange(4))]
        return {name: self._value(depth + 1) for name in names}

    def _encoded(self, value: object) -> bytes:
        text = json.dumps(value, ensure_ascii=self.random.random() < 0.5)
        return text.encode("utf-8", "surrogatepass")

    def _scalar(self) -> bytes:
        r = self.random
        return r.choice(SCALARS) if r.random() < 0.7 else self._encoded(self._value())

    def _json(self) -> bytes:
        r = self.random
        roll = r.random()
        if roll < 0.04:
            return self._scalar()
        if roll < 0.045:
            return b"[%b]" % (b" " * r.randrange(16_380, 16_390))
        members = [
            (name.encode(), value)
            for name, value in zip(MEMBERS, r.choice(self._objects), strict=True)
        ]
        while r.random() < 0.3:
            at = r.randrange(len(members))
            name, value = members[at]
            near = r.random() < 0.4
            if near and value.isdigit() and len(value) < 17:
                number = int(value) + r.randrange(-50_000, 50_000)
                members[at] = name, b"%d" % min(max(number, 0), INT_MAX)
            elif near and value.startswith(b'"'):
                members[at] = name, self._encoded(self._string())
            else:
                members[at] = name, self._scalar()
        if r.random() < 0.1:
            members[-1] = members[-1][0], self._encoded(self._string())  # the device
        while r.random() < 0.15:
            members.append(self._login())
        if r.random() < 0.1:
            members.append(r.choice(members))
        if r.random() < 0.1:
            members.append((r.choice((b"otro", r.randbytes(4).hex().encode())), self._scalar()))
        if r.random() < 0.1:
            del members[r.randrange(len(members))]
        return b"{%b}" % b",".join([b'"%b":%b' % member for member in members])

    def _login(self) -> tuple[bytes, bytes]:
        """A member that a POST may have, most often a good one."""
        r = self.random
        name = r.choice([*LOGIN])
        bounds = LOGIN[name]
        if r.random() < 0.2:
            return name.encode(), self._scalar()
        if bounds is None:
            return name.encode(), b'"%b"' % r.choice(self.tokens)
        return name.encode(), b"%d" % min(
            bounds[0] + (r.randrange(4000) if r.random() < 0.7 else 0), bounds[1]
        )

    def _form(self) -> bytes:
        r = self.random
        values = [value.strip(b'"') for value in r.choice(self._objects)]
        pairs = [b"%b=%b" % (n.encode(), v) for n, v in zip(MEMBERS, values, strict=True)]
        while r.random() < 0.3:
            name, value = r.choice(MEMBERS).encode(), r.choice(FORM_VALUES)
            pairs[r.randrange(len(pairs))] = b"%b=%b" % (name, value)
        while r.random() < 0.15:
            name, encoded = self._login()
            pairs.append(b"%b=%b" % (name, encoded.strip(b'"')))
        return r.choice((b"&", b"&", b"&&", b";")).join(pairs)

    def _framed(self, body: bytes) -> tuple[bytes, bytes]:
        """The body's field, or fields, and the body as it is sent."""
        r = self.random
        roll = r.random()
        if roll < 0.75:
            return b"Content-Length: %d\r\n" % len(body), body
        if roll < 0.80:
            return b"Content-Length: %d\r\n" % (len(body) + r.randrange(-3, 4)), body
        size = r.randrange(1, 200)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        extension = r.choice((b"", b"", b";a=b", b" ", b";\x00"))
        sent = b"".join([b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in pieces])
        trailer = r.choice((b"", b"", b"x-auth-token: %b\r\n" % r.choice(self.tokens), b"x\r\n"))
        sent += b"0\r\n%b\r\n" % trailer
        both = b"Content-Length: %d\r\n" % len(body) if roll < 0.83 else b""
        return both + b"Transfer-Encoding: chunked\r\n", sent

    def damage(self, data: bytes) -> bytes:
        """The data with one part cut out, put in, replaced, flipped, doubled or cut off."""
        r = self.random
        at = r.randrange(len(data) + 1)
        piece, flipped = r.choice(PIECES), data[at : at + 1]
        match r.randrange(6):
            case 0:
                return data[:at] + data[at + r.randrange(1, 6) :]
            case 1:
                return data[:at] + piece + data[at:]
            case 2:
                return data[:at] + piece + data[at + 1 :]
            case 3:
                flipped = bytes([byte ^ 1 << r.randrange(8) for byte in flipped])
                return data[:at] + flipped + data[at + 1 :]
            case 4:
                return data[: at + r.randrange(60)] + data[at:]
        return data[:at]
