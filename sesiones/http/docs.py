"""The two fixed resources: the OpenAPI document and the page that shows it."""

import base64
import hashlib
from importlib.resources import files

import orjson
from starlette.requests import Request
from starlette.responses import Response

import sesiones

_WEB = files("sesiones.http") / "web"


def _source(text: str) -> str:
    """The expression by which a Content-Security-Policy allows an inline element of this text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


_STYLE = (_WEB / "docs.css").read_text("utf-8")
_SCRIPT = (_WEB / "docs.js").read_text("utf-8")
_PAGE = (
    (_WEB / "docs.html")
    .read_text("utf-8")
    .replace("<style></style>", f"<style>{_STYLE}</style>")
    .replace("<script></script>", f"<script>{_SCRIPT}</script>")
)
_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_source(_SCRIPT)}",
        f"style-src {_source(_STYLE)}",
        "img-src data:",  # the icon
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_OPENAPI = orjson.loads((_WEB / "openapi.json").read_bytes())
_OPENAPI["info"]["version"] = sesiones.__version__  # empty in the file
DOCUMENT = orjson.dumps(_OPENAPI)
_NO_STORE = {"Cache-Control": "no-store"}
_PAGE_HEADERS = {
    **_NO_STORE,
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def document(_: Request) -> Response:
    """GET, HEAD /openapi.json."""
    return Response(DOCUMENT, headers=_NO_STORE, media_type="application/json")


async def page(_: Request) -> Response:
    """GET, HEAD /docs: one file, which loads nothing but the OpenAPI document."""
    return Response(_PAGE, headers=_PAGE_HEADERS, media_type="text/html")
