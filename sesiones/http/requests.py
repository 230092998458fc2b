"""Bytes to validated values, or a Problem. No Redis."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from sesiones.http.problems import Problem
from sesiones.sesion import (
    BOUNDS,
    DEVICE_MAX_CHARACTERS,
    INT_MAX,
    Sesion,
    valid_device,
    valid_integer,
    valid_text,
)

BODY_MAX_BYTES = 16 * 1024

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,15}")
_MALFORMED_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")

Members = Mapping[str, Any]


def parse_json(body: bytes) -> Members:
    """The members of a JSON object (RFC 8259).

    The standard library's parser and not orjson's, which keeps the last of two members of one
    name and reads integers over 2^64 as floats.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded,
        )
    except (ValueError, RecursionError):
        raise Problem(400, "El cuerpo no es JSON válido.") from None
    if not isinstance(value, dict):
        raise Problem(400, "El cuerpo debe ser un objeto JSON.")
    return value


def parse_form(text: bytes) -> Members:
    """The members of an application/x-www-form-urlencoded body or query (WHATWG URL, 5.1).

    A percent sign must begin an escape; parse_qsl() would take any other one literally.
    """
    try:
        if _MALFORMED_ESCAPE.search(text):
            raise ValueError("a percent sign that begins no escape")
        return _unique(
            parse_qsl(
                text.decode("utf-8"), keep_blank_values=True, encoding="utf-8", errors="strict"
            )
        )
    except ValueError:
        raise Problem(400, "El formulario o la consulta no son válidos.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        if any(names.count(field) > 1 for field in Sesion._fields):
            raise ValueError("a field is repeated; of unknown members it does not matter")
    return members


def _bounded(digits: str) -> int:
    # int() refuses thousands of digits, which are JSON all the same.
    return int(digits) if len(digits) < 20 else INT_MAX + 1


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


PARSERS: dict[bytes, Callable[[bytes], Members]] = {
    b"application/json": parse_json,
    b"application/x-www-form-urlencoded": parse_form,
}


class _Reader:
    """Reads members, by the rules of sesion.py, and collects every bad one."""

    def __init__(self, members: Members, *, form: bool) -> None:
        self._members = members
        self._form = form
        self._errores: dict[str, str] = {}

    def _get(self, campo: str) -> Any:
        if campo not in self._members:
            self._errores[campo] = "es obligatorio"
        return self._members.get(campo)

    def integer(self, campo: str) -> int:
        low, high = BOUNDS[campo]
        value = self._get(campo)
        if self._form and isinstance(value, str) and _DECIMAL.fullmatch(value):
            value = int(value)
        try:
            return valid_integer(campo, value)
        except (TypeError, ValueError):
            self._errores.setdefault(campo, f"debe ser un entero entre {low} y {high}")
            return low

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
            raise unprocessable(*self._errores.items())


def unprocessable(*errores: tuple[str, str]) -> Problem:
    """422 naming each bad field as (campo, motivo)."""
    return Problem(422, "Hay campos no válidos.", errores=errores)


def creation(members: Members, *, form: bool) -> tuple[int, str]:
    """ID_Usuario and Dispositivo of a POST. Raises Problem 422."""
    reader = _Reader(members, form=form)
    values = reader.integer("ID_Usuario"), reader.device()
    reader.finish()
    return values


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
