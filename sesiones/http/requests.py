"""From the bytes of a request to validated values, or a Problem. Nothing here asks Redis."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from sesiones.http.credentials import Headers
from sesiones.http.problems import Problem
from sesiones.policy import SessionPolicy
from sesiones.sesion import (
    BOUNDS,
    DEVICE_MAX_CHARACTERS,
    INT_MAX,
    Login,
    Sesion,
    valid_device,
    valid_integer,
    valid_text,
)

BODY_MAX_BYTES = 16 * 1024

JSON_DEPTH_MAX = 500
_NO_JSON_NESTING = re.compile(r'"(?:[^"\\]|\\.)*+"|[^][{}]', re.DOTALL)
"""Whole strings, which may hold brackets, and all characters but brackets."""

DECIMAL = re.compile(r"0|[1-9][0-9]{0,15}")
_MALFORMED_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

SESSION_FIELDS = Sesion._fields
LOGIN_FIELDS = (*SESSION_FIELDS, *(field.name for field in dataclasses.fields(Login)))
"""The members that a POST knows."""

Members = Mapping[str, Any]


def parse_json(body: bytes, unique: Collection[str] = SESSION_FIELDS) -> Members:
    """The members of a JSON object (RFC 8259). ``unique``: those that may be there once only.

    This uses the standard library's parser, because orjson keeps the last of two members of one
    name and reads integers over 2^64 as floats.
    """
    try:
        text = body.decode("utf-8")
        if _is_too_deep(text):
            raise ValueError("deeper than the parser of every version of Python goes")
        value = json.loads(
            text,
            object_pairs_hook=tuple,  # members of an object within it may be repeated
            parse_constant=_no_constant,
            parse_int=_bounded,
        )
        if isinstance(value, tuple):
            return _without_repeated(value, unique)
    except ValueError:
        raise Problem(400, "El cuerpo no es JSON válido.") from None
    raise Problem(400, "El cuerpo debe ser un objeto JSON.")


def _is_too_deep(text: str) -> bool:
    """Whether arrays and objects are nested too deep (RFC 8259, 9, allows a limit)."""
    if text.count("[") + text.count("{") <= JSON_DEPTH_MAX:  # the usual case
        return False
    marks = _NO_JSON_NESTING.sub("", text)
    depths = itertools.accumulate(1 if mark in "[{" else -1 for mark in marks)
    return max(depths, default=0) > JSON_DEPTH_MAX


def parse_form(text: bytes, unique: Collection[str] = SESSION_FIELDS) -> Members:
    """The members of an application/x-www-form-urlencoded body or query (WHATWG URL, 5.1).
    ``unique``: those that may be there once only.

    A percent sign must begin an escape; parse_qsl() would take any other one literally.
    """
    try:
        if _MALFORMED_ESCAPE.search(text):
            raise ValueError("a percent sign that begins no escape")
        return _without_repeated(
            parse_qsl(
                text.decode("utf-8"), keep_blank_values=True, encoding="utf-8", errors="strict"
            ),
            unique,
        )
    except ValueError:
        raise Problem(400, "El formulario o la consulta no son válidos.") from None


def _without_repeated(pairs: Sequence[tuple[str, Any]], fields: Collection[str]) -> dict[str, Any]:
    """The members as a dict. Raises ValueError when one of the fields is repeated. Other members
    are ignored, so they may be repeated."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        if any(names.count(field) > 1 for field in fields):
            raise ValueError("a field is repeated")
    return members


def _bounded(digits: str) -> int:
    # int() refuses thousands of digits, which are valid JSON.
    return int(digits) if len(digits) < 20 else INT_MAX + 1


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


Parser = Callable[[bytes, Collection[str]], Members]
FORM_PARSERS: Mapping[bytes, Parser] = {b"application/x-www-form-urlencoded": parse_form}
PARSERS: Mapping[bytes, Parser] = {b"application/json": parse_json, **FORM_PARSERS}


async def read_token(request: Request) -> str:
    """The parameter ``token`` of an OAuth request (RFC 7662, 2.1; RFC 7009, 2.1), which is a form.
    Raises Problem 415, 413 or 400."""
    members, _ = await read_body(request, unique=["token"], parsers=FORM_PARSERS)
    token: str = members.get("token", "")
    if not token:  # RFC 6749, 3.1: a parameter without a value is as good as omitted
        raise Problem(400, "Falta el parámetro token.")
    return token


async def read_body(
    request: Request,
    *,
    optional: bool = False,
    unique: Collection[str] = SESSION_FIELDS,
    parsers: Mapping[bytes, Parser] = PARSERS,
) -> tuple[Members, bool]:
    """The members of the body, and whether it is a form. Raises Problem 415, 413 or 400.

    ``optional``: an empty body has no members, whatever its type and coding. ``unique``: the
    members that may be there once only. ``parsers``: by media type.
    """
    try:
        parse = _parser(request.scope["headers"], parsers)
    except Problem:
        if optional and not await _has_body(request):
            return {}, False
        raise
    body = await _collect(request)
    if optional and not body:
        return {}, False
    return parse(body, unique), parse is parse_form


def _parser(headers: Headers, parsers: Mapping[bytes, Parser]) -> Parser:
    """The parser for a body with these headers. Raises Problem 415."""
    codings = b",".join(_values(headers, b"content-encoding")).split(b",")
    if any(coding.strip().lower() not in (b"", b"identity") for coding in codings):
        raise Problem(
            415,
            "El cuerpo debe llegar sin comprimir ni codificar.",
            headers={"Accept-Encoding": "identity"},  # RFC 9110, 15.5.16
        )
    types = _values(headers, b"content-type")
    media_type = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    parse = parsers.get(media_type)
    if parse is None:
        accepted = " o ".join(media.decode() for media in parsers)
        missing = "" if any(types) else "Falta Content-Type. "
        raise Problem(415, f"{missing}El cuerpo debe ser {accepted}.")
    return parse


def _values(headers: Headers, field: bytes) -> list[bytes]:
    return [value for name, value in headers if name == field]


async def _has_body(request: Request) -> bool:
    async for chunk in request.stream():
        if chunk:
            return True
    return False


async def _collect(request: Request) -> bytes:
    too_large = Problem(413, f"El cuerpo supera los {BODY_MAX_BYTES} bytes.")
    if int(request.headers.get("content-length", 0)) > BODY_MAX_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            raise too_large
    return bytes(body)


class _Reader:
    """Reads members by the rules of sesion.py, and collects the errors of all of them."""

    def __init__(self, members: Members, *, form: bool) -> None:
        self._members = members
        self._form = form
        self._errores: dict[str, str] = {}

    def _get(self, campo: str) -> Any:
        if campo not in self._members:
            self._errores[campo] = "es obligatorio"
        return self._members.get(campo)

    def integer(self, campo: str, bounds: tuple[int, int] | None = None) -> int:
        low, high = BOUNDS[campo] if bounds is None else bounds
        value = self._get(campo)
        if self._form and isinstance(value, str) and DECIMAL.fullmatch(value):
            value = int(value)
        try:
            return valid_integer(campo, value, (low, high))
        except (TypeError, ValueError):
            self._errores.setdefault(campo, f"debe ser un entero entre {low} y {high}")
            return high  # so that a bad Vida_Maxima is not blamed on Ventana too

    def optional_integer(self, campo: str, bounds: tuple[int, int]) -> int | None:
        return self.integer(campo, bounds) if campo in self._members else None

    def string(self, campo: str) -> str:
        try:
            return valid_text(campo, self._get(campo))
        except TypeError:
            self._errores.setdefault(campo, "debe ser una cadena")
            return ""

    def device(self) -> str:
        text = self.string("Dispositivo")
        try:
            return valid_device(text)
        except ValueError:
            self._errores.setdefault(
                "Dispositivo",
                f"debe tener de 1 a {DEVICE_MAX_CHARACTERS} caracteres, ninguno de control",
            )
            return text

    def field(self, campo: str) -> Any:
        """Any field of the session object."""
        if campo in BOUNDS:
            return self.integer(campo)
        return self.device() if campo == "Dispositivo" else self.string(campo)

    def finish(self) -> None:
        if self._errores:
            order = LOGIN_FIELDS.index
            raise unprocessable(*sorted(self._errores.items(), key=lambda error: order(error[0])))


def unprocessable(*errores: tuple[str, str]) -> Problem:
    """422 naming each bad field as (campo, motivo)."""
    return Problem(422, "Hay campos no válidos.", errores=errores)


def creation(members: Members, policy: SessionPolicy, *, form: bool) -> tuple[int, str, Login]:
    """ID_Usuario, Dispositivo and the rest of a POST. Raises Problem 422."""
    reader = _Reader(members, form=form)
    ID_Usuario, Dispositivo = reader.integer("ID_Usuario"), reader.device()
    life = reader.optional_integer("Vida_Maxima", policy.login_bounds(None)["Vida_Maxima"])
    bounds = policy.login_bounds(life)
    login = Login(
        Ventana=reader.optional_integer("Ventana", bounds["Ventana"]),
        Vida_Maxima=life,
        Token_Anterior=reader.string("Token_Anterior") if "Token_Anterior" in members else None,
        Cerrar_Otras=reader.optional_integer("Cerrar_Otras", bounds["Cerrar_Otras"]) or 0,
        Max_Sesiones=reader.optional_integer("Max_Sesiones", bounds["Max_Sesiones"]),
        Sustituye=reader.optional_integer("Sustituye", bounds["Sustituye"]),
    )
    reader.finish()
    return ID_Usuario, Dispositivo, login


def update(members: Members, *, form: bool) -> Sesion:
    """The session object of a PUT. Raises Problem 422."""
    reader = _Reader(members, form=form)
    sesion = Sesion._make(map(reader.field, Sesion._fields))
    reader.finish()
    return sesion


def designation(body: Members, query: Members) -> str:
    """Token_Sesion of a DELETE, from its body, its query or both alike. Raises Problem 422."""
    merged = {**body, **query}
    if "Token_Sesion" in body and merged["Token_Sesion"] != body["Token_Sesion"]:
        raise unprocessable(("Token_Sesion", "difiere entre el cuerpo y la consulta"))
    reader = _Reader(merged, form=False)
    token = reader.string("Token_Sesion")
    reader.finish()
    return token
