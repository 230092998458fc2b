"""The table of the contract agrees with the service, its OpenAPI document and its reference."""

import re
from pathlib import Path

import orjson
import pytest

from sesiones import sesion
from sesiones.http import docs, problems, sessions
from sesiones.http.app import create_app
from sesiones.http.routes import Routes
from sesiones.settings import Settings
from tests.harness import contract
from tests.harness.contract import COUNT, FIELDS, OTHER, Operation
from tests.harness.service import Service

METHODS = ["get", "head", "post", "put", "patch", "delete", "options", "trace"]
"""All methods that OpenAPI 3.1 can name."""
OPERATIONS = {
    (path, method.lower()): operation
    for path, methods in contract.OPERATIONS.items()
    for method, operation in methods.items()
} | {
    (contract.VERIFY_PATH + rest, method): contract.VERIFY
    for rest in ("", "/{ruta}")
    for method in METHODS
}
every_operation = pytest.mark.parametrize(("path", "method"), OPERATIONS)

DOCUMENT = orjson.loads(docs.DOCUMENT)
COMPONENTS = DOCUMENT["components"]
SCHEMAS = COMPONENTS["schemas"]
REFERENCE = (Path(__file__).parents[2] / "docs" / "api.es.md").read_text("utf-8")


def error_headers(status: int) -> set[str]:
    return {name for name, statuses in contract.ERROR_HEADERS.items() if status in statuses}


# The service


def test_routes_are_those_of_the_contract(service: Service) -> None:
    (table,) = create_app(Settings()).routes
    assert isinstance(table, Routes)
    methods = {path: list(operations) for path, operations in contract.OPERATIONS.items()}
    methods |= {path: ["GET", "HEAD"] for path in contract.OPERATORS_PATHS}
    assert {path: list(found) for path, found in table.endpoints.items()} == methods
    for path, allowed in methods.items():
        refused = service.request("PROPFIND", path)
        assert (refused.status, refused.headers["allow"]) == (405, ", ".join(allowed))


def test_constants_of_the_service_are_those_of_the_contract() -> None:
    assert list(sesion.Sesion._fields) == FIELDS
    assert sesion.BOUNDS == contract.INTEGERS
    assert problems.TITLES == contract.TITLES
    assert list(sessions.BAD_DATES.values()) == contract.BAD_DATES


# The OpenAPI document


def test_openapi_documents_the_operations_of_the_contract() -> None:
    items = DOCUMENT["paths"].items()
    documented = {(path, one) for path, item in items for one in item if one in METHODS}
    assert documented == set(OPERATIONS)


@every_operation
def test_openapi_operation_is_that_of_the_contract(path: str, method: str) -> None:
    operation, documented = OPERATIONS[path, method], DOCUMENT["paths"][path][method]
    schemes = {"token": ["token", "portador"], "service key": ["clave"], "": []}
    assert documented["security"] == [{one: []} for one in schemes[operation.credential]]
    statuses = {operation.success, *operation.errors, *contract.BEFORE_ROUTING}
    statuses |= {contract.UNEXPECTED} if operation.body else set()
    assert [*map(int, documented["responses"])] == sorted(statuses)
    success = documented["responses"][str(operation.success)]
    shows_identity = operation in (contract.VERIFY, contract.WHOAMI)
    assert ({*map(str.lower, success["headers"])} >= {*contract.IDENTITY}) == shows_identity
    if operation.shows != OTHER:
        name = "Cierre" if operation.shows == COUNT else "Sesion"
        schema = {"schema": {"$ref": f"#/components/schemas/{name}"}}
        found = success.get("content", {}).get(contract.JSON, {})
        verify = operation is contract.VERIFY
        assert found == {} if verify else found.items() >= schema.items()


@every_operation
def test_openapi_body_requires_the_fields_of_the_contract(path: str, method: str) -> None:
    required = list(OPERATIONS[path, method].body)
    body = DOCUMENT["paths"][path][method].get("requestBody")
    assert (body is not None) == bool(required)
    if body is None:
        return
    json, form = (body["content"][kind]["schema"] for kind in (contract.JSON, contract.FORM))
    schema = SCHEMAS[json["$ref"].rpartition("/")[2]]
    assert schema["required"] == list(schema["properties"]) == required
    # A field of the session that is repeated in a form is a 400, even one that is not needed.
    others = [field for field in FIELDS if field not in required]
    assert list(form.get("properties", {})) == others
    assert form.get("allOf", [form]) == [json]


def test_openapi_schemas_have_the_bounds_of_the_contract() -> None:
    properties = SCHEMAS["Sesion"]["properties"]
    assert list(properties) == FIELDS
    created = SCHEMAS["Creacion"]["properties"]["ID_Usuario"]
    schemas = [(name, properties[name]) for name in contract.INTEGERS] + [("ID_Usuario", created)]
    for name, schema in schemas:
        values = schema.get("enum", [schema.get("minimum"), schema.get("maximum")])
        assert (schema["type"], values) == ("integer", [*contract.INTEGERS[name]])
    assert properties["Token_Sesion"]["pattern"] == f"^{contract.TOKEN_PATTERN}$"
    assert SCHEMAS["Dispositivo"]["maxLength"] == sesion.DEVICE_MAX_CHARACTERS
    errores = SCHEMAS["Problema"]["properties"]["errores"]["items"]["properties"]
    assert errores["campo"]["enum"] == FIELDS


@every_operation
def test_openapi_operations_of_one_kind_differ_in_their_operation_id_alone(
    path: str, method: str
) -> None:
    same = {"operationId": ""}
    kind = OPERATIONS[path, method]
    first = next(one for one in OPERATIONS if one[0] == path and OPERATIONS[one] == kind)
    document = DOCUMENT["paths"][path]
    assert document[method] | same == document[first[1]] | same


def test_openapi_errors_have_the_headers_of_the_contract() -> None:
    for path, method in OPERATIONS:
        for status, response in DOCUMENT["paths"][path][method]["responses"].items():
            if int(status) >= 400:
                error = COMPONENTS["responses"][response["$ref"].rpartition("/")[2]]
                names = {*map(str.lower, error["headers"])} & set(contract.ERROR_HEADERS)
                assert names == error_headers(int(status))


# The reference, docs/api.es.md

SECTIONS = {
    "GET y HEAD /sesiones/self": contract.WHOAMI,
    "/sesiones/verificar": contract.VERIFY,
    "POST /sesiones": contract.CREATE,
    "PUT /sesiones": contract.UPDATE,
    "DELETE /sesiones/logout": contract.END,
    "DELETE /sesiones/logoutAll": contract.END,
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
    assert rows == expected + [(name, "cuerpo") for name in operation.body]


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
        assert named - {"connection"} == error_headers(int(status))


def test_reference_lists_the_fields_of_the_contract() -> None:
    fields = re.findall(r"^\| `(\w+)` \|", section("El objeto sesión"), re.MULTILINE)
    assert fields == FIELDS
    text = section("422 y 409: la lista `errores`")
    reasons = re.findall(r"^\| 422 \| (.*) \| la `Fecha_Expiracion`", text, re.MULTILINE)
    assert reasons == contract.BAD_DATES
