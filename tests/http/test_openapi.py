"""The OpenAPI document says what the contract says, and what the service does: no more, no less.

Every example in sesiones/http/web/openapi.json is a reply that the service gave. These tests ask
the service for each of them again, and for every status and header that the document names.
"""

import http.client
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from redis import Redis
from starlette.types import Receive, Scope, Send

import sesiones
from sesiones import tokens
from sesiones.http import docs
from sesiones.http.app import create_app
from sesiones.sesion import DEVICE_MAX_CHARACTERS
from sesiones.settings import Settings
from sesiones.store import SessionStore
from tests.harness import asgi, contract
from tests.harness.contract import FIELDS
from tests.harness.redis_server import RedisServer
from tests.harness.service import Reply, Service
from tests.harness.stores import KEY

pytestmark = pytest.mark.anyio

DOCUMENT = orjson.loads(docs.DOCUMENT)
PATHS, COMPONENTS = DOCUMENT["paths"], DOCUMENT["components"]
SCHEMAS = COMPONENTS["schemas"]
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
SERVICE_KEY = {"Authorization": f"Bearer {KEY}"}
JSON, FORM = {"Content-Type": contract.JSON}, {"Content-Type": contract.FORM}
FRAMING = {"date", "content-length", "content-type", "connection"}
"""Headers that the document does not name: HTTP says what they mean."""


def resolve(value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        found = DOCUMENT
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        value = found
    return value


RESPONSES = {
    (path, method, int(status)): resolve(response)
    for path, method in OPERATIONS
    for status, response in PATHS[path][method]["responses"].items()
}


def check(value: Any, schema: dict[str, Any]) -> None:
    # With the components beside it, its references resolve.
    Draft202012Validator(schema | {"components": COMPONENTS}).validate(value)


def example(path: str, method: str) -> dict[str, Any]:
    """The example of a request body."""
    (media,) = PATHS[path][method]["requestBody"]["content"].values()
    found: dict[str, Any] = media["examples"]["portatil"]["value"]
    return found


# The document and the contract


def test_document_is_valid_openapi_of_this_version(service: Service) -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == sesiones.__version__
    assert service.request("GET", "/openapi.json").json() == DOCUMENT


def test_document_uses_every_component_and_tag() -> None:
    text = docs.DOCUMENT.decode()
    for kind, components in COMPONENTS.items():
        form = '"%s":[]' if kind == "securitySchemes" else f'"#/components/{kind}/%s"'
        for name in components:
            assert form % name in text
    # Generators of clients know no other references.
    referred = re.findall(r'"\$ref":"(.*?)"', text)
    assert all(re.fullmatch(r"#/components/\w+/[\w-]+", one) for one in referred)
    operations = [PATHS[path][method] for path, method in OPERATIONS]
    assert len({one["operationId"] for one in operations}) == len(operations)
    names = [tag["name"] for tag in DOCUMENT["tags"]]
    assert {one["tags"][0] for one in operations} == {*names}
    # A generated client has a module for each tag, and the page shows the other name.
    assert all(re.fullmatch("[a-z]+", name) for name in names)
    assert all(tag["x-displayName"] for tag in DOCUMENT["tags"])


def test_document_has_the_operations_of_the_contract() -> None:
    documented = {(path, one) for path, item in PATHS.items() for one in item if one in METHODS}
    assert documented == set(OPERATIONS)


@every_operation
def test_operation_is_that_of_the_contract(path: str, method: str) -> None:
    operation, documented = OPERATIONS[path, method], PATHS[path][method]
    schemes = {"token": ["token", "portador"], "service key": ["clave"], "": []}
    assert documented["security"] == [{one: []} for one in schemes[operation.credential]]
    statuses = {operation.success, *operation.errors, *contract.BEFORE_ROUTING}
    reads = operation in (contract.VERIFY, contract.WHOAMI) or operation.shows == contract.OTHER
    statuses |= set() if reads else {contract.UNEXPECTED}
    assert [*map(int, documented["responses"])] == sorted(statuses)
    # Operations of one path that are of one kind differ in their operationId alone.
    first = next(key for key in OPERATIONS if key[0] == path and OPERATIONS[key] == operation)
    same = {"operationId": ""}
    assert documented | same == PATHS[path][first[1]] | same


SHOWN = {
    contract.IDENTITY_ONLY: "",
    contract.IDENTITY_AND_SESSION: "Sesion",
    contract.SESSION: "Sesion",
    contract.COUNT: "Cierre",
    contract.OWN_LIST: "ListaPropia",
    contract.LIST: "Lista",
    contract.ACTIVE: "Introspeccion",
    contract.EMPTY: "",
}
"""The schema of what a response shows."""


@every_operation
def test_responses_are_those_of_the_contract(path: str, method: str) -> None:
    operation = OPERATIONS[path, method]
    success = RESPONSES[path, method, operation.success]
    identity = {*map(str.lower, success["headers"])} & {*contract.IDENTITY}
    checks = operation in (contract.VERIFY, contract.WHOAMI)
    assert identity == ({*contract.IDENTITY} if checks else set())
    name = SHOWN[operation.shows] if operation.shows != contract.OTHER else ""
    if operation.shows != contract.OTHER:
        schema = success.get("content", {}).get(contract.JSON, {}).get("schema")
        assert schema == ({"$ref": f"#/components/schemas/{name}"} if name else None)
    for status in set(contract.TITLES):
        if response := RESPONSES.get((path, method, status)):
            headers = {*map(str.lower, response["headers"])} & set(contract.ERROR_HEADERS)
            assert headers == contract.error_headers(status)


@every_operation
def test_body_requires_the_fields_of_the_contract(path: str, method: str) -> None:
    operation = OPERATIONS[path, method]
    required = list(operation.body)
    body = PATHS[path][method].get("requestBody")
    assert (body is not None) == bool(required)
    if body is None:
        return
    # A client that is generated from two media types does not work: the text names the second.
    ((media_type, media),) = body["content"].items()
    assert media_type == operation.media_types[0]
    assert all(f"`{other}`" in body["description"] for other in operation.media_types[1:])
    schema = resolve(media["schema"])
    assert schema["required"] == required
    assert list(schema["properties"]) == [*required, *operation.optional]
    for shown in media["examples"].values():
        check(shown["value"], media["schema"])


def test_schemas_have_the_bounds_of_the_contract() -> None:
    properties = SCHEMAS["Sesion"]["properties"]
    assert list(properties) == FIELDS
    created = SCHEMAS["Creacion"]["properties"]["ID_Usuario"]
    schemas = [(name, resolve(properties[name])) for name in contract.INTEGERS]
    schemas.append(("ID_Usuario", created))
    login = SCHEMAS["Creacion"]["properties"]
    bounds: dict[str, tuple[int, int]] = dict(contract.INTEGERS)
    for name, between in contract.LOGIN.items():
        if between is None:
            assert login[name]["type"] == "string"
        else:
            schemas.append((name, login[name]))
            bounds[name] = between
    for name, schema in schemas:
        values = schema.get("enum", [schema.get("minimum"), schema.get("maximum")])
        assert (schema["type"], values) == ("integer", [*bounds[name]])
    assert properties["Token_Sesion"]["pattern"] == f"^{contract.TOKEN_PATTERN}$"
    assert SCHEMAS["Dispositivo"]["maxLength"] == DEVICE_MAX_CHARACTERS
    errores = SCHEMAS["Problema"]["properties"]["errores"]["items"]["properties"]
    assert errores["campo"]["enum"] == [*FIELDS, *contract.LOGIN]
    listed, own = SCHEMAS["SesionListada"], SCHEMAS["SesionPropia"]
    assert listed["required"] == list(listed["properties"]) == contract.LISTED
    assert own["required"] == list(own["properties"]) == [*contract.LISTED, "Actual"]
    inactive, active = SCHEMAS["Introspeccion"]["oneOf"]
    assert list(inactive["properties"]) == contract.INTROSPECTION[:1]
    assert active["required"] == list(active["properties"]) == contract.INTROSPECTION


def test_numbers_in_paths_have_the_bounds_of_the_contract() -> None:
    for path, item in PATHS.items():
        named = re.findall(r"{(\w+)}", path)
        assert [one["name"] for one in item.get("parameters", [])] == named
        for one in item.get("parameters", []):
            if one["name"] in contract.INTEGERS:
                between = [one["schema"]["minimum"], one["schema"]["maximum"]]
                assert between == [*contract.INTEGERS[one["name"]]]


# What is served


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_document_and_page_answer_get_and_head(service: Service, path: str) -> None:
    got, head = service.request("GET", path), service.request("HEAD", path)
    assert got.status == head.status == 200
    assert int(head.headers["content-length"]) == len(got.body)
    assert head.body == b""
    assert head.headers | {"date": ""} == got.headers | {"date": ""}
    assert service.request("GET", f"{path}/").status == 404
    assert service.request("GET", f"{path}?x=1", {"x-auth-token": "x"}).status == 200


@pytest.mark.parametrize("method", ["QUERY", "PROPFIND", "MKCOL"])
def test_verify_answers_what_openapi_cannot_name(service: Service, method: str) -> None:
    creation = orjson.dumps(example("/sesiones", "post"))
    created = service.request("POST", "/sesiones", SERVICE_KEY | JSON, creation)
    caller = {"x-auth-token": created.json()["Token_Sesion"]}
    for path in "/sesiones/verificar", "/sesiones/verificar/a/b/c?d#e":
        assert service.request(method, path, caller).status == 200
        assert service.request(method, path).status == 401


# The document and the replies


def sent(path: str, ID_Sesion: object = 1, ID_Usuario: object = 48213) -> str:
    """The path with something in the place of each parameter."""
    path = path.replace("{ID_Sesion}", str(ID_Sesion)).replace("{ID_Usuario}", str(ID_Usuario))
    return path.replace("{ruta}", "pedidos")


class Asker:
    """Asks for every answer of every operation, and keeps the path, method and reply of each."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.asked: list[tuple[str, str, Reply]] = []

    def ask(
        self,
        path: str,
        method: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | dict[str, Any] | None = None,
        query: str = "",
        **numbers: object,
    ) -> Reply:
        content = orjson.dumps(body) if isinstance(body, dict) else body
        target = sent(path, **numbers) + query
        reply = self._service.request(method.upper(), target, dict(headers or {}), content)
        self.asked.append((path, method, reply))
        return reply

    def new_session(self, **changes: Any) -> dict[str, Any]:
        body = example("/sesiones", "post") | changes
        sesion: dict[str, Any] = self.ask("/sesiones", "post", SERVICE_KEY | JSON, body).json()
        return sesion

    def _begin(self, path: str, method: str, rest: bytes) -> socket.socket:
        """A connection with a request line and these bytes behind it."""
        connection = self._service.connect()
        target = sent(path)
        connection.sendall(f"{method.upper()} {target} HTTP/1.1\r\n".encode() + rest)
        return connection

    def _finish(self, path: str, method: str, connection: socket.socket) -> None:
        with connection, http.client.HTTPResponse(connection, method=method.upper()) as response:
            response.begin()
            fields = {name.lower(): value for name, value in response.getheaders()}
            self.asked.append((path, method, Reply(response.status, fields, response.read())))

    def http_errors(self) -> None:
        slow = {key: self._begin(*key, b"Host: sesiones\r\n") for key in OPERATIONS}
        for key in OPERATIONS:
            self._finish(*key, self._begin(*key, b"\r\n"))  # no Host
            self.ask(*key, {f"x-{number}": "" for number in range(101)})
            self.ask(*key, {"Transfer-Encoding": "gzip, chunked"})
        for key, connection in slow.items():
            self._finish(*key, connection)

    def checks_and_documents(self) -> None:
        caller = {"x-auth-token": self.new_session()["Token_Sesion"]}
        for (path, method), operation in OPERATIONS.items():
            if operation in (contract.VERIFY, contract.WHOAMI):
                self.ask(path, method, caller)
                self.ask(path, method, {"x-auth-token": "ses_"})
            if not operation.body:
                self.ask(path, method)

    def body_errors(
        self, path: str, method: str, credential: dict[str, str], body: dict[str, Any]
    ) -> None:
        for headers in (
            JSON,
            {"Authorization": "Bearer x"} | JSON,
            credential | {"Content-Type": "text/plain"},
            credential,
            credential | JSON | {"Content-Encoding": "gzip"},
        ):
            self.ask(path, method, headers, body)
        for bad in (b" " * 16385, b"{", b"[]"):
            self.ask(path, method, credential | JSON, bad)
        self.ask(path, method, credential | FORM, b"ID_Usuario=1&ID_Usuario=1")

    def creations(self) -> None:
        key, body = ("/sesiones", "post"), example("/sesiones", "post")
        self.body_errors(*key, SERVICE_KEY, body)
        self.ask(*key, SERVICE_KEY | JSON, {"ID_Usuario": str(body["ID_Usuario"])})
        self.ask(*key, SERVICE_KEY | FORM, urlencode(body).encode())

    def updates(self) -> None:
        key = "/sesiones", "put"
        sesion, body = self.new_session(), example(*key)
        window = body["Fecha_Expiracion"] - body["Ultima_Actividad"]
        sent = sesion | {
            "Dispositivo": body["Dispositivo"],
            "Fecha_Expiracion": sesion["Ultima_Actividad"] + window,
        }
        self.body_errors(*key, SERVICE_KEY, sent)
        for changes in (
            {},
            {"Estado_Sesion": 2},
            {"Fecha_Expiracion": sesion["Fecha_Inicio"] + 43201},
            {"Fecha_Expiracion": sesion["Ultima_Actividad"]},
            {"ID_Usuario": 51002, "Fecha_Inicio": sesion["Fecha_Inicio"] - 1},
            {"Token_Sesion": tokens.make(7)},
        ):
            self.ask(*key, SERVICE_KEY | JSON, sent | changes)
        self.ask(*key, SERVICE_KEY | FORM, urlencode(sent).encode())

    def ends(self) -> None:
        other_users = self.new_session(ID_Usuario=51002)["Token_Sesion"]
        for path in "/sesiones/logout", "/sesiones/logoutAll":
            caller, other = (self.new_session()["Token_Sesion"] for _ in range(2))
            credential, key = {"x-auth-token": caller}, (path, "delete")
            self.body_errors(*key, credential, {"Token_Sesion": caller})
            self.ask(*key, credential | JSON, {})
            designation = {"Token_Sesion": other}
            self.ask(*key, credential | JSON, designation, f"?Token_Sesion={caller}")
            self.ask(*key, credential | JSON, {"Token_Sesion": other_users})
            if path == "/sesiones/logout":
                for _ in range(2):
                    self.ask(*key, credential | JSON, designation)
            else:
                self.ask("/sesiones/logout", "delete", credential, b"", f"?Token_Sesion={other}")
                self.ask(*key, credential | FORM, f"Token_Sesion={caller}".encode())
                caller, _ = (self.new_session()["Token_Sesion"] for _ in range(2))
                self.ask(*key, {"x-auth-token": caller}, b"", f"?Token_Sesion={caller}")

    def management(self, redis: "Redis") -> None:
        redis.flushdb()
        self.ask("/sesiones/usuarios/{ID_Usuario}", "get", SERVICE_KEY)
        others = [self.new_session(), self.new_session()]
        own = self.new_session(Dispositivo="Móvil de Ana")
        credential = {"x-auth-token": own["Token_Sesion"]}
        one = {"ID_Sesion": others[0]["ID_Sesion"]}
        for _ in range(2):
            self.ask("/sesiones/{ID_Sesion}", "delete", credential, **one)
        for method in "get", "head":
            self.ask("/sesiones", method, credential)
            self.ask("/sesiones/usuarios/{ID_Usuario}", method, SERVICE_KEY)
        self.new_session()
        for _ in range(2):
            self.ask("/sesiones/logoutOthers", "delete", credential)
        one = {"ID_Sesion": own["ID_Sesion"]}
        for _ in range(2):
            path = "/sesiones/usuarios/{ID_Usuario}/{ID_Sesion}"
            self.ask(path, "delete", SERVICE_KEY, **one)
        self.new_session(), self.new_session()
        for _ in range(2):
            self.ask("/sesiones/usuarios/{ID_Usuario}", "delete", SERVICE_KEY)
        for path, method in OPERATIONS:
            if "{ID" in path:
                self.ask(path, method, SERVICE_KEY, ID_Sesion=0, ID_Usuario="+1")

    def oauth(self) -> None:
        token = self.new_session()["Token_Sesion"]
        form = SERVICE_KEY | FORM
        for path in "/sesiones/introspeccion", "/sesiones/revocacion":
            key = (path, "post")
            self.ask(*key)
            self.ask(*key, SERVICE_KEY | JSON, {"token": token})
            self.ask(*key, form, b"x" * 16385)
            self.ask(*key, form, b"")
            for sent_token in token, "ses_":
                self.ask(*key, form, urlencode({"token": sent_token}).encode())

    async def refusals(self, url: str) -> None:
        """409 of a service that refuses at the limit."""
        settings = Settings(
            redis_url=url, service_key=(KEY,), redis_timeout=5, max_per_user=2, at_limit="refuse"
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            await asgi.request(
                app, "DELETE", sent("/sesiones/usuarios/{ID_Usuario}"), SERVICE_KEY.items()
            )
            for changes in {}, {"Dispositivo": "Móvil de Ana"}, {}:
                body = orjson.dumps(example("/sesiones", "post") | changes)
                headers = (SERVICE_KEY | JSON).items()
                reply = await asgi.request(app, "POST", "/sesiones", headers, body)
                self.asked.append(("/sesiones", "post", reply))

    async def failures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """503 of a service without Redis, and 500 of one with a bug."""
        app = create_app(Settings(redis_url="unix:///nonexistent/redis.sock", service_key=(KEY,)))

        async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
            with suppress(RuntimeError):  # Starlette raises it again once it has answered
                await app(scope, receive, send)

        async def fail(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        async def ask_all(status: int) -> None:
            for path, method, one in RESPONSES:
                if one == status:
                    key = OPERATIONS[path, method].credential == "service key"
                    credential = SERVICE_KEY if key else {"x-auth-token": tokens.make(7)}
                    members = example(path, method) if key and OPERATIONS[path, method].body else {}
                    as_form = contract.JSON not in OPERATIONS[path, method].media_types
                    body = urlencode(members).encode() if as_form else orjson.dumps(members)
                    headers = (credential | (FORM if as_form else JSON)).items()
                    reply = await asgi.request(quiet, method.upper(), sent(path), headers, body)
                    self.asked.append((path, method, reply))

        await ask_all(503)
        for name in "create", "update", "find", "sessions", "end_user", "revoke":
            monkeypatch.setattr(SessionStore, name, fail)
        await ask_all(contract.UNEXPECTED)


def masked(value: dict[str, Any]) -> list[tuple[str, Any]]:
    """Its members in order, without what differs from one session to the next."""
    differs = {"ID_Sesion", "Token_Sesion", "Fecha_Inicio", "Fecha_Expiracion", "Ultima_Actividad"}
    differs |= {"sid", "iat", "exp"}
    return [
        (name, type(one) if name in differs else _masked_members(one))
        for name, one in value.items()
    ]


def _masked_members(value: Any) -> Any:
    if isinstance(value, list):
        return [masked(one) if isinstance(one, dict) else one for one in value]
    return value


async def test_document_is_what_the_service_answers(
    service: Service,
    redis_server: RedisServer,
    redis: "Redis",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asker = Asker(service)
    asker.http_errors()
    asker.checks_and_documents()
    asker.creations()
    asker.updates()
    asker.ends()
    asker.management(redis)
    asker.oauth()
    await asker.refusals(redis_server.url)
    await asker.failures(monkeypatch)

    seen: dict[int, set[str]] = {}
    for path, method, reply in asker.asked:
        one = path, method, reply
        response = RESPONSES.get((path, method, reply.status))
        assert response is not None, one
        headers = {name.lower(): resolve(header) for name, header in response["headers"].items()}
        assert set(reply.headers) - FRAMING <= set(headers), one
        for name, header in headers.items():
            if header["required"] or name in reply.headers:
                value = reply.headers[name]
                check(int(value) if value.isdigit() else value, header["schema"])
        content = response.get("content", {})
        media_type = reply.headers.get("content-type", "").partition(";")[0]
        assert [media_type] == (list(content) or [""]), one
        if media_type.endswith("json") and method != "head":
            check(reply.json(), content[media_type]["schema"])
            for name, shown in content[media_type].get("examples", {}).items():
                if masked(shown["value"]) == masked(reply.json()):
                    seen.setdefault(id(response), set()).add(name)

    assert {(path, method, reply.status) for path, method, reply in asker.asked} == set(RESPONSES)
    for key, response in RESPONSES.items():
        for media in response.get("content", {}).values():
            examples = media.get("examples", {})
            if key[1] != "head":  # the example is the body that a GET has
                unseen = set(examples) - seen.get(id(response), set())
                assert not unseen, f"{key}: no reply is as the examples {unseen}"
            for shown in examples.values():
                check(shown["value"], media["schema"])
