"""The table of the contract agrees with the service, with its reference, docs/api.es.md, and with
the English summary, docs/api.en.md.

test_openapi.py compares it with the OpenAPI document.
"""

import dataclasses
import itertools
import re
from pathlib import Path

import orjson
import pytest

from sesiones import sesion
from sesiones.http import docs, problems
from sesiones.http.app import create_app
from sesiones.http.routes import Routes
from sesiones.settings import Settings
from tests.harness import contract
from tests.harness.api import SERVICE, check_problem
from tests.harness.contract import FIELDS, Operation
from tests.harness.service import Service

REFERENCE = (Path(__file__).parents[2] / "docs" / "api.es.md").read_text("utf-8")


# The service

METHODS = {path: list(operations) for path, operations in contract.OPERATIONS.items()}
METHODS |= {path: ["GET", "HEAD"] for path in contract.OPERATORS_PATHS}


def test_routes_are_those_of_the_contract() -> None:
    (table,) = create_app(Settings()).routes
    assert isinstance(table, Routes)
    assert {path: list(found) for path, found in table.endpoints.items()} == METHODS


@pytest.mark.parametrize("path", METHODS)
def test_other_method_is_a_405_with_allow_whatever_the_credential(
    service: Service, path: str
) -> None:
    sent = path.replace("{ID_Usuario}", "0").replace("{ID_Sesion}", f"{contract.INT_MAX}")
    tried = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"}
    for method in tried.difference(METHODS[path]):
        for headers in {}, SERVICE:
            reply = service.request(method, sent, headers)
            if method != "HEAD":
                check_problem(reply, 405)
            assert (reply.status, reply.headers["allow"]) == (405, ", ".join(METHODS[path]))


def test_constants_of_the_service_are_those_of_the_contract() -> None:
    assert list(sesion.Sesion._fields) == FIELDS
    assert sesion.BOUNDS == contract.INTEGERS
    assert [field.name for field in dataclasses.fields(sesion.Login)] == list(contract.LOGIN)
    assert problems.TITLES == contract.TITLES
    assert list(sesion.BAD_DATES.values()) == contract.BAD_DATES


# The reference, docs/api.es.md

SECTIONS = {
    "GET y HEAD /sesiones/self": contract.WHOAMI,
    "/sesiones/verificar": contract.VERIFY,
    "POST /sesiones": contract.CREATE,
    "PUT /sesiones": contract.UPDATE,
    "DELETE /sesiones/logout": contract.END,
    "DELETE /sesiones/logoutAll": contract.END,
    "GET y HEAD /sesiones": contract.LIST_OWN,
    "DELETE /sesiones/{ID_Sesion}": contract.END_OWN,
    "DELETE /sesiones/logoutOthers": contract.END_OTHERS,
    "GET y HEAD /sesiones/usuarios/{ID_Usuario}": contract.LIST_USER,
    "DELETE /sesiones/usuarios/{ID_Usuario}": contract.END_USER,
    "DELETE /sesiones/usuarios/{ID_Usuario}/{ID_Sesion}": contract.END_USER,
    "POST /sesiones/introspeccion": contract.INTROSPECT,
    "POST /sesiones/revocacion": contract.REVOKE,
}


def section(title: str) -> str:
    return REFERENCE.partition(f"# {title}\n")[2].partition("\n## ")[0].partition("\n### ")[0]


def statuses(text: str) -> list[int]:
    """The first column of a table of errors."""
    return [int(status) for status in re.findall(r"^\| (\d{3}) \|", text, re.MULTILINE)]


@pytest.mark.parametrize(("title", "operation"), SECTIONS.items())
def test_reference_describes_the_operation_of_the_contract(
    title: str, operation: Operation
) -> None:
    assert statuses(section(title)) == list(operation.errors)
    rows = re.findall(r"^\| `([^`]+)` \| (cabecera|cuerpo)", section(title), re.MULTILINE)
    headers = ["x-auth-token"] if operation.credential == "token" else []
    headers += ["Authorization", *(["Content-Type"] if operation.body else [])]
    expected = [(name, "cabecera") for name in headers]
    fields = (*operation.body, *operation.optional)
    assert rows == expected + [(name, "cuerpo") for name in fields]


def test_reference_has_a_section_of_every_operation() -> None:
    found = re.findall(r"^## (.*/sesiones.*|/.*)$", REFERENCE, re.MULTILINE)
    assert found == list(SECTIONS)
    paths = {path for path in contract.OPERATIONS if path.startswith("/sesiones")}
    assert {title.split()[-1] for title in found} == paths | {contract.VERIFY_PATH}


def test_reference_lists_the_errors_of_the_contract() -> None:
    assert statuses(section("Orden")) == [*contract.BEFORE_ROUTING, 404, 405]
    rows = re.findall(r"^\| (\d{3}) \| `([^`]+)` \| .* \|(.*)\|$", REFERENCE, re.MULTILINE)
    assert {int(status): title for status, title, _ in rows} == contract.TITLES
    for status, _, headers in rows:
        named = {name.lower() for name in re.findall(r"`([\w-]+)[`:]", headers)}
        assert named - {"connection"} == contract.error_headers(int(status))


def test_reference_and_openapi_list_the_same_members_of_an_error() -> None:
    document = orjson.loads(docs.DOCUMENT)
    rows = re.findall(r"^\| `(\w+)` \| \w+ \|", section("Errores"), re.MULTILINE)
    assert rows == list(document["components"]["schemas"]["Problema"]["properties"])


def test_reference_lists_the_fields_of_the_contract() -> None:
    fields = re.findall(r"^\| `(\w+)` \|", section("El objeto sesión"), re.MULTILINE)
    assert fields == FIELDS
    text = section("422 y 409: la lista `errores`")
    reasons = re.findall(r"^\| 422 \| (.*) \| la `Fecha_Expiracion`", text, re.MULTILINE)
    assert reasons == contract.BAD_DATES


# The summary, docs/api.en.md

SUMMARY = (Path(__file__).parents[2] / "docs" / "api.en.md").read_text("utf-8")


def summary_rows(title: str) -> list[list[str]]:
    """The cells of each row of the first table behind the title."""
    table = SUMMARY.partition(f"\n## {title}\n")[2].partition("\n| ")[2].partition("\n\n")[0]
    return [re.split(r" *\| *", line)[1:-1] for line in table.split("\n")[2:]]


def described(first: str) -> tuple[list[str], list[str]]:
    """The methods and the paths that the first cell of a row names."""
    code = " ".join(re.findall(r"`([^`]+)`", first)).split()
    paths = [word.replace("<", "{").replace(">", "}") for word in code if word.startswith("/")]
    return [word for word in code if word.isupper()], paths


def test_summary_describes_every_operation_of_the_contract() -> None:
    left = {
        (method, path): operation
        for path, operations in contract.OPERATIONS.items()
        for method, operation in operations.items()
    }
    left["any", contract.VERIFY_PATH] = contract.VERIFY
    credentials = {"a token": "token", "the service key": "service key", "every caller": ""}
    statuses_above: list[int] = []
    for first, who, body, success, errors in summary_rows("Requests"):
        statuses = [int(status) for status in re.findall(r"\b\d{3}\b", errors)]
        statuses_above = statuses_above if errors == "the same" else statuses
        methods, paths = described(first)
        for method, path in itertools.product(methods or ["any"], paths):
            operation = left.pop((method, path))
            assert credentials[who] == operation.credential, first
            assert success.startswith(str(operation.success)), first
            assert statuses_above == [*operation.errors], first
            if body not in ("the same", "all eight fields of the session"):
                assert re.findall(r"`(\w+)`", body) == [*operation.body], first
    assert not left


def test_summary_lists_the_fields_and_the_errors_of_the_contract() -> None:
    for title, names in {
        "The session": FIELDS,
        "A login in one act": list(contract.LOGIN),
    }.items():
        assert [first.strip("`") for first, *_ in summary_rows(title)] == names
    before = SUMMARY.partition("Before the errors of a row")[2].partition("\n\n")[0]
    found = [int(status) for status in re.findall(r"\b\d{3}\b", before)]
    assert found == [*contract.BEFORE_ROUTING, 404, 405]
    listed = SUMMARY.partition("A session in a list has")[2].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", listed) == [*contract.LISTED, "Actual"]
