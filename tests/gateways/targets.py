"""Request targets that a gateway must not take for others."""

TARGETS = [
    "/a?b=c&b=d%20e",
    "/a?x-auth-token=b",
    "/?a?b#c"[:-2],
    "/a;b=c/d",
    "/%7Ea/~b",
    "/a%2Fb",
    "/a%2fb%2Fc",
    "/a%252Fb",
    "/a%20b%C3%B1",
    "/sesiones",
    "/sesiones/verificar",
    "/sesiones/verificar/a",
    "/a%0d%0aX-ID-Usuario:%20666",
]

DOTS = ["/a//b", "/a/./b/../c", "/a/%2e%2e/b", "/a/%2E./b"]

ODD_TARGETS = [
    "//a",
    "/../a",
    "/../../sesiones",
    "/..%2f..%2fsesiones",
    "/..",
    "/a/../..",
    "/a%00b",
    "/a\tb",
    "/a\\b",
    "/_sesiones",
    "*",
    "a",
    "http://a/b",
    "http://127.0.0.1:8000/sesiones/verificar",
]
