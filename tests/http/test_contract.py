"""The table of the contract agrees with the service, its OpenAPI document and its reference."""

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from sesiones import sesion
from sesiones.http import docs, problems, sessions
from sesiones.http.app import create_app
from sesiones.http.routes import Routes
from sesiones.settings import Settings
from tests.harness import contract
from tests.harness.contract import Operation
from tests.harness.service import Service

REFERENCE = (Path(__file__).parents[2] / "docs" / "api.es.md").read_text("utf-8")
DOCUMENT = orjson.loads(docs.DOCUMENT)
SCHEMAS = DOCUMENT["components"]["schemas"]
METHODS = ["get", "head", "post", "put", "patch", "delete", "options", "trace"]
"""All methods that OpenAPI 3.1 can name."""
VERIFY_PATHS = [contract.VERIFY_PATH, f"{contract.VERIFY_PATH}/{{ruta}}"]
OPERATIONS = {
    (path, method.lower()): operation
    for path, methods in contract.OPERATIONS.items()
    for method, operation in methods.items()
} | {(path, method): contract.VERIFY for path in VERIFY_PATHS for method in METHODS}


def operation_object(path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


# The service


def test_routes_are_those_of_the_contract(service: Service) -> None:
    (table,) = create_app(Settings()).routes
    assert isinstance(table, Routes)
    read = ["GET", "HEAD"]
    methods = {path: list(operations) for path, operations in contract.OPERATIONS.items()}
    methods |= dict.fromkeys(contract.OPERATORS_PATHS, read)
    assert {path: list(found) for path, found in table.endpoints.items()} == methods
    for path, allowed in methods.items():
        refused = service.request("PROPFIND", path)
        assert (refused.status, refused.headers["allow"]) == (405, ", ".join(allowed))


def test_constants_of_the_service_are_those_of_the_contract() -> None:
    assert list(sesion.Sesion._fields) == contract.FIELDS
    assert contract.INTEGERS == sesion.BOUNDS
    assert contract.TITLES == problems.TITLES
    assert list(sessions.BAD_DATES.values()) == contract.BAD_DATES


def test_errors_of_each_operation_have_a_title() -> None:
    errors = {status for one in OPERATIONS.values() for status in one.errors}
    assert errors | {*contract.BEFORE_ROUTING, 404, 405, contract.UNEXPECTED} == set(
        contract.TITLES
    )


# The OpenAPI document


def test_openapi_documents_the_operations_of_the_contract() -> None:
    assert OPERATIONS.keys() == {
        (path, method)
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if method in METHODS
    }


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_openapi_operation_has_the_statuses_of_the_contract(path: str, method: str) -> None:
    operation = OPERATIONS[path, method]
    statuses = {operation.success, *operation.errors, *contract.BEFORE_ROUTING}
    if operation.body:
        statuses.add(contract.UNEXPECTED)
    assert list(operation_object(path, method)["responses"]) == [
        str(status) for status in sorted(statuses)
    ]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_openapi_operation_asks_for_the_credential_of_the_contract(path: str, method: str) -> None:
    schemes = {"token": ["token", "portador"], "service key": ["clave"], "": []}
    credential = OPERATIONS[path, method].credential
    assert operation_object(path, method)["security"] == [{one: []} for one in schemes[credential]]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_openapi_success_shows_what_the_contract_says(path: str, method: str) -> None:
    operation = OPERATIONS[path, method]
    success = operation_object(path, method)["responses"][str(operation.success)]
    headers = {name.lower() for name in success["headers"]}
    checks = operation in (contract.VERIFY, contract.WHOAMI)
    assert (headers >= set(contract.IDENTITY)) == checks
    schemas = {
        contract.IDENTITY_AND_SESSION: {"$ref": "#/components/schemas/Sesion"},
        contract.SESSION: {"$ref": "#/components/schemas/Sesion"},
        contract.COUNT: {"$ref": "#/components/schemas/Cierre"},
    }
    found = success.get("content", {}).get(contract.JSON, {}).get("schema")
    if operation.shows != contract.OTHER:
        assert found == schemas.get(operation.shows)


@pytest.mark.parametrize(
    ("path", "method"), [key for key, operation in OPERATIONS.items() if operation.body]
)
def test_openapi_body_requires_the_fields_of_the_contract(path: str, method: str) -> None:
    content = operation_object(path, method)["requestBody"]["content"]
    assert list(content) == [contract.JSON, contract.FORM]
    name = content[contract.JSON]["schema"]["$ref"].rpartition("/")[2]
    required = list(OPERATIONS[path, method].body)
    assert SCHEMAS[name]["required"] == list(SCHEMAS[name]["properties"]) == required
    # Every field of the session that is repeated in a form is a 400, even one that is not needed.
    form = content[contract.FORM]["schema"]
    others = [field for field in contract.FIELDS if field not in required]
    assert list(form.get("properties", {})) == others
    schema = {"$ref": f"#/components/schemas/{name}"}
    assert (form["allOf"] if others else [form]) == [schema]


def test_openapi_schemas_have_the_bounds_of_the_contract() -> None:
    properties = SCHEMAS["Sesion"]["properties"]
    assert list(properties) == contract.FIELDS
    for field, (low, high) in contract.INTEGERS.items():
        schema = properties[field]
        assert schema["type"] == "integer"
        if "enum" in schema:
            assert schema["enum"] == list(range(low, high + 1))
        else:
            assert (schema["minimum"], schema["maximum"]) == (low, high)
    created = SCHEMAS["Creacion"]["properties"]
    assert created["ID_Usuario"]["maximum"] == contract.INT_MAX
    assert created["Dispositivo"] == properties["Dispositivo"]
    assert properties["Token_Sesion"]["pattern"] == f"^{contract.TOKEN_PATTERN}$"
    assert SCHEMAS["Dispositivo"]["maxLength"] == sesion.DEVICE_MAX_CHARACTERS
    errores = SCHEMAS["Problema"]["properties"]["errores"]["items"]["properties"]
    assert errores["campo"]["enum"] == contract.FIELDS


def test_openapi_methods_of_one_path_differ_in_their_operation_id_alone() -> None:
    for path in DOCUMENT["paths"]:
        by_operation: dict[Operation, list[dict[str, Any]]] = {}
        for (one, method), operation in OPERATIONS.items():
            if one == path:
                by_operation.setdefault(operation, []).append(operation_object(path, method))
        for first, *others in by_operation.values():
            for other in others:
                assert other | {"operationId": first["operationId"]} == first


def test_openapi_error_headers_are_those_of_the_contract() -> None:
    for path, method in OPERATIONS:
        for status, response in operation_object(path, method)["responses"].items():
            if "$ref" not in response:
                continue
            error = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
            assert list(error["content"]) == [contract.PROBLEM]
            headers = {name.lower() for name in error["headers"]} & set(contract.ERROR_HEADERS)
            assert headers == {
                name for name, having in contract.ERROR_HEADERS.items() if int(status) in having
            }


# The reference, docs/api.es.md


def section(title: str) -> str:
    return REFERENCE.partition(f"\n{title}\n")[2].partition("\n## ")[0]


def statuses(text: str) -> tuple[int, ...]:
    """The first column of the tables of errors."""
    return tuple(int(status) for status in re.findall(r"^\| (\d{3}) \|", text, re.MULTILINE))


SECTIONS = {
    "## GET y HEAD /sesiones/self": contract.WHOAMI,
    "## /sesiones/verificar": contract.VERIFY,
    "## POST /sesiones": contract.CREATE,
    "## PUT /sesiones": contract.UPDATE,
    "## DELETE /sesiones/logout": contract.OPERATIONS["/sesiones/logout"]["DELETE"],
    "## DELETE /sesiones/logoutAll": contract.OPERATIONS["/sesiones/logoutAll"]["DELETE"],
}


@pytest.mark.parametrize("title", SECTIONS)
def test_reference_lists_the_errors_in_the_order_of_the_contract(title: str) -> None:
    assert statuses(section(title)) == SECTIONS[title].errors


@pytest.mark.parametrize("title", SECTIONS)
def test_reference_lists_the_credential_and_the_fields_of_the_contract(title: str) -> None:
    operation = SECTIONS[title]
    rows = re.findall(r"^\| `([^`]+)` \| (cabecera|cuerpo)", section(title), re.MULTILINE)
    assert tuple(name for name, place in rows if place == "cuerpo") == operation.body
    headers = [name for name, place in rows if place == "cabecera"]
    expected = ["x-auth-token"] if operation.credential == "token" else []
    expected += ["Authorization", *(["Content-Type"] if operation.body else [])]
    assert headers == expected


def test_reference_has_a_section_of_every_operation() -> None:
    paths = {title.split()[-1] for title in SECTIONS}
    assert paths == {path for path in contract.OPERATIONS if path.startswith("/sesiones")} | {
        contract.VERIFY_PATH
    }
    assert set(re.findall(r"^## (?:[A-Z]|/).*/.*", REFERENCE, re.MULTILINE)) == set(SECTIONS)


def test_reference_lists_the_errors_of_any_path_in_order() -> None:
    order = REFERENCE.partition("\n### Orden\n")[2].partition("\n### ")[0]
    assert statuses(order) == (*contract.BEFORE_ROUTING, 404, 405)


def test_reference_lists_every_error_with_its_title_and_header() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `([^`]+)` \| .* \|(.*)\|$", REFERENCE, re.MULTILINE)
    assert {int(status): title for status, title, _ in rows} == contract.TITLES
    for status, _, headers in rows:
        named = {name.lower() for name in re.findall(r"`([\w-]+)[`:]", headers)} - {"connection"}
        assert named == {
            name for name, having in contract.ERROR_HEADERS.items() if int(status) in having
        }


def test_reference_lists_the_fields_in_the_order_of_the_contract() -> None:
    fields = re.findall(r"^\| `(\w+)` \| (?:entero|cadena)", REFERENCE, re.MULTILINE)
    assert fields[: len(contract.FIELDS)] == contract.FIELDS
    rows = section("### 422 y 409: la lista `errores`")
    reasons = re.findall(r"^\| 422 \| (.*) \| la `Fecha_Expiracion`", rows, re.MULTILINE)
    assert reasons == contract.BAD_DATES
