"""Requests that are nearly right, wrong in every way that a seed thinks of."""

import random
from collections.abc import Callable, Sequence

SELF, VERIFY = b"/sesiones/self", b"/sesiones/verificar"
LOGOUT, LOGOUT_ALL = b"/sesiones/logout", b"/sesiones/logoutAll"
ENDPOINTS = [
    (b"GET", SELF),
    (b"GET", SELF),
    (b"HEAD", SELF),
    (b"GET", VERIFY),
    (b"POST", VERIFY + b"/a/b?c=d"),
    (b"POST", b"/sesiones"),
    (b"POST", b"/sesiones"),
    (b"PUT", b"/sesiones"),
    (b"PUT", b"/sesiones"),
    (b"DELETE", LOGOUT),
    (b"DELETE", LOGOUT_ALL),
]
METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"]
METHODS += [b"PROPFIND", b"PRI", b"SOURCE", b"DESCRIBE", b"get", b"INVENTO", b""]
TARGETS = [SELF, VERIFY, LOGOUT, b"/sesiones", b"/", b"*", b"", b"//", b"/livez", b"/docs"]
TARGETS += [b"/openapi.json", b"http://h/sesiones/self", b"https://h", b"h:443", b"sesiones/self"]
TARGETS += [
    VERIFY + b"s",
    VERIFY + b"/%0A",
    VERIFY + b"#x",
    SELF + b"/",
    SELF + b"?x",
    SELF + b"%00",
]
TARGETS += [
    b"/%73esiones/self",
    b"/sesiones/../sesiones/self",
    b"/" + b"a" * 17_000,
    SELF + b"\xff",
]
VERSIONS = [
    b"HTTP/1.0",
    b"HTTP/1.0",
    b"RTSP/1.0",
    b"RTSP/1.1",
    b"ICE/1.1",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.2",
    b"HTTP/1.1x",
    b"http/1.1",
    b"",
]
HOSTS = [b"Host: \r\n", b"", b"Host: a\r\nHost: a\r\n", b"Host: a b\r\n", b"HOST:[::1]:80\r\n"]

FIELDS = [
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Connection: keep-alive, close\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n",
    b"Proxy-Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Expect: x\r\n",
    b"Cookie: x-auth-token=1\r\n",
    b"X_Auth_Token: x\r\n",
    b"Content-Type: text/plain\r\n",
    b"Content-Type: application/json\r\n",
    b"Content-Type: application/json; charset=utf-16\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: 18446744073709551621\r\n",
    b"Content-Length: 99999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Content-Encoding: identity\r\n",
    b"User-Agent: RTSP/1.0 ICE/1.0\r\n",
    b"X: a\r\n b\r\n",
    b"X : a\r\n",
    b"X: \x00\r\n",
    b"X: a\nY: b\r\n",
    b"X: \xff\xfe\r\n",
    b"X:\r\n",
    b"\r\n",
    b"X: " + b"a" * 9000 + b"\r\n",
    b"X: " + b"a" * 17_000 + b"\r\n",
    b"X: y\r\n" * 101,
]
SCALARS = [b"0", b"1", b"7", b"-1", b"-0", b"01", b"1.0", b"1e3", b"1E400", b"0x1", b"+1", b""]
SCALARS += [b"9007199254740991", b"9007199254740992", b"18446744073709551616", b"1" * 5000]
SCALARS += [b"true", b"null", b"NaN", b"-Infinity", b'"1"', b'""', b"[]", b"{}", b"[1,", b'"x']
SCALARS += [b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\\x"', b'"\xff"', b'"\xc3\xb1"']
SCALARS += [b'"%b"' % (b"a" * 512), b'"%b"' % (b"a" * 513), b"[" * 8000, b'{"a":' * 2600]
OBJECT = [b"ID_Sesion", b"ID_Usuario", b"Token_Sesion", b"Fecha_Inicio"]
OBJECT += [b"Fecha_Expiracion", b"Estado_Sesion", b"Ultima_Actividad", b"Dispositivo"]
PIECES = [b"\r\n", b"\n", b"\r", b"\r\n\r\n", b":", b" ", b"\t", b"\x00", b"\xff", b"%", b"&", b"="]
PIECES += [b'"', b"{", b"ses_", b"GET / HTTP/1.1\r\n", b"0\r\n\r\n", b"HTTP/1.1", b"chunked", b"9"]
TYPES = [b"application/json", b"application/x-www-form-urlencoded"]


class Mutations:
    """An endless supply, the same for the same seed.

    ``tokens``: what is put where a token goes, good and bad; ``objects``: sessions, their members
    in the order of OBJECT as JSON; ``key``: the service key.
    """

    def __init__(
        self,
        seed: str,
        tokens: Sequence[bytes],
        objects: Sequence[Sequence[bytes]],
        key: bytes,
    ) -> None:
        self._random = random.Random(seed)
        self._tokens = tokens
        self._objects = objects
        self._key = key

    def make(self) -> list[bytes]:
        """What goes over one connection, in the pieces in which it arrives."""
        r = self._random
        if r.random() < 0.03:
            data = r.randbytes(r.randrange(1, 200))
        else:
            data = self.message()
            while r.random() < 0.15:
                data += self.message()
            while r.random() < 0.35:
                data = self.damage(data)
        return [data] if r.random() < 0.8 else self.pieces(data)

    def pieces(self, data: bytes) -> list[bytes]:
        """The data, cut at one to three of its bytes."""
        r = self._random
        cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.randrange(1, 4)))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]

    def message(self) -> bytes:
        """One request."""
        r = self._random
        method, target = r.choice(ENDPOINTS)
        if r.random() < 0.07:
            method = r.choice(METHODS)
        if r.random() < 0.07:
            target = r.choice(TARGETS)
        version = b"HTTP/1.1" if r.random() < 0.94 else r.choice(VERSIONS)
        fields = [
            b"Host: h\r\n" if r.random() < 0.95 else r.choice(HOSTS),
            self._credential(method),
        ]
        if method == b"DELETE" and r.random() < 0.5:
            target += b"?Token_Sesion=" + self._token()
        while r.random() < 0.2:
            fields.append(r.choice(FIELDS))
        body = b""
        if method in (b"POST", b"PUT", b"DELETE") or r.random() < 0.05:
            kind = r.choice(TYPES)
            if r.random() < 0.95:
                fields.append(b"Content-Type: %b\r\n" % kind)
            body = self._json() if kind == TYPES[0] else self._form()
            framing, body = self._framed(body)
            fields.append(framing)
        if r.random() < 0.1:
            r.shuffle(fields)
        return b"%b %b %b\r\n%b\r\n%b" % (method, target, version, b"".join(fields), body)

    def _token(self) -> bytes:
        r = self._random
        token = r.choice(self._tokens)
        if r.random() < 0.15:
            at = r.randrange(len(token) + 1)
            token = token[:at] + r.choice((b"", b"A", b"!", b"\xff", b" ")) + token[at + 1 :]
        return token

    def _credential(self, method: bytes) -> bytes:
        r = self._random
        if method in (b"POST", b"PUT") and r.random() < 0.85:
            key = self._key if r.random() < 0.95 else self._key[:-1]
            return b"Authorization: Bearer %b\r\n" % key
        return r.choice(_CREDENTIALS)(self._token(), self._token())

    def _json(self) -> bytes:
        r = self._random
        roll = r.random()
        if roll < 0.04:
            return r.choice(SCALARS)
        if roll < 0.06:
            return r.randbytes(r.randrange(60))
        if roll < 0.065:
            return b"[%b]" % (b" " * r.randrange(16_380, 16_390))
        members = list(zip(OBJECT, r.choice(self._objects), strict=True))
        while r.random() < 0.3:
            at = r.randrange(len(members))
            members[at] = members[at][0], r.choice(SCALARS)
        if r.random() < 0.1:
            members.append(r.choice(members))
        if r.random() < 0.1:
            members.append((b"otro", r.choice(SCALARS)))
        if r.random() < 0.1:
            del members[r.randrange(len(members))]
        return b"{%b}" % b",".join([b'"%b":%b' % member for member in members])

    def _form(self) -> bytes:
        r = self._random
        values = [value.strip(b'"') for value in r.choice(self._objects)]
        pairs = [b"%b=%b" % pair for pair in zip(OBJECT, values, strict=True)]
        while r.random() < 0.3:
            name, value = (
                r.choice(OBJECT),
                r.choice((b"", b"01", b"%FF", b"%", b"%zz", b"+", b"9" * 20)),
            )
            pairs[r.randrange(len(pairs))] = b"%b=%b" % (name, value)
        return r.choice((b"&", b"&", b"&&", b";")).join(pairs)

    def _framed(self, body: bytes) -> tuple[bytes, bytes]:
        """The body's field, or fields, and the body as it is sent."""
        r = self._random
        roll = r.random()
        if roll < 0.75:
            return b"Content-Length: %d\r\n" % len(body), body
        if roll < 0.80:
            return b"Content-Length: %d\r\n" % (len(body) + r.randrange(-3, 4)), body
        size = r.randrange(1, 200)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        extension = r.choice((b"", b"", b";a=b", b" ", b";\x00"))
        sent = b"".join([b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in pieces])
        trailer = r.choice((b"", b"", b"x-auth-token: %b\r\n" % r.choice(self._tokens), b"x\r\n"))
        sent += b"0\r\n%b\r\n" % trailer
        both = b"Content-Length: %d\r\n" % len(body) if roll < 0.83 else b""
        return both + b"Transfer-Encoding: chunked\r\n", sent

    def damage(self, data: bytes) -> bytes:
        """One thing cut out, put in, turned, doubled or cut off."""
        r = self._random
        at = r.randrange(len(data) + 1)
        roll = r.randrange(6)
        if roll == 0:
            return data[:at] + data[at + r.randrange(1, 6) :]
        if roll == 1:
            return data[:at] + r.choice(PIECES) + data[at:]
        if roll == 2:
            return data[:at] + r.choice(PIECES) + data[at + 1 :]
        if roll == 3 and at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1 :]
        if roll == 4:
            return data[: at + r.randrange(60)] + data[at:]
        return data[:at]


_CREDENTIALS: list[Callable[[bytes, bytes], bytes]] = [
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
