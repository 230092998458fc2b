"""The OpenAPI document says what the service does: no more, no less.

Every example in sesiones/http/web/openapi.json is a reply that the service gave. These tests ask
the service for each of them again, and for every status and header that the document names.
"""

import http.client
import socket
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
from sesiones.settings import Settings
from sesiones.store import SessionStore
from tests.harness import asgi, contract
from tests.harness.service import Reply, Service
from tests.harness.stores import KEY

pytestmark = pytest.mark.anyio

DOCUMENT = orjson.loads(docs.DOCUMENT)
SERVICE_KEY = {"Authorization": f"Bearer {KEY}"}
JSON = {"Content-Type": contract.JSON}
FORM = {"Content-Type": contract.FORM}
OPERATIONS = [
    (path, method)
    for path, item in DOCUMENT["paths"].items()
    for method in item
    if method not in ("description", "parameters")
]
ENDS = ["/sesiones/logout", "/sesiones/logoutAll"]
FRAMING = {"date", "content-length", "content-type", "connection"}
"""Headers that the document does not name: HTTP says what they mean."""


def resolve(value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        found = DOCUMENT
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        value = found
    return value


def documented() -> dict[tuple[str, str, str], dict[str, Any]]:
    """The responses by path, method and status."""
    return {
        (path, method, status): resolve(response)
        for path, method in OPERATIONS
        for status, response in DOCUMENT["paths"][path][method]["responses"].items()
    }


def request_example(path: str, method: str) -> dict[str, Any]:
    content = DOCUMENT["paths"][path][method]["requestBody"]["content"]
    example: dict[str, Any] = content["application/json"]["examples"]["portatil"]["value"]
    assert content[FORM["Content-Type"]]["examples"]["portatil"]["value"] == example
    return example


CREATION = request_example("/sesiones", "post")


def check(value: Any, schema: dict[str, Any]) -> None:
    # With the components beside it, its references resolve.
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(value)


def test_document_is_valid_openapi_of_this_version() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == sesiones.__version__


def test_document_uses_every_component_and_tag() -> None:
    text = orjson.dumps(DOCUMENT).decode()
    for kind, components in DOCUMENT["components"].items():
        for name in components:
            wanted = (
                f'"{name}":[]' if kind == "securitySchemes" else f'"#/components/{kind}/{name}"'
            )
            assert wanted in text, name
    identifiers = [DOCUMENT["paths"][path][method]["operationId"] for path, method in OPERATIONS]
    assert len(set(identifiers)) == len(identifiers)
    tags = {DOCUMENT["paths"][path][method]["tags"][0] for path, method in OPERATIONS}
    assert tags == {tag["name"] for tag in DOCUMENT["tags"]}


@pytest.mark.parametrize("method", ["QUERY", "PROPFIND", "MKCOL"])
def test_verify_answers_methods_and_paths_that_openapi_cannot_name(
    service: Service, method: str
) -> None:
    created = service.request("POST", "/sesiones", SERVICE_KEY | JSON, orjson.dumps(CREATION))
    caller = {"x-auth-token": created.json()["Token_Sesion"]}
    for path in "/sesiones/verificar", "/sesiones/verificar/a/b/c?d#e":
        assert service.request(method, path, caller).status == 200
        assert service.request(method, path).status == 401


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_document_and_page_answer_get_and_head(service: Service, path: str) -> None:
    got, head = service.request("GET", path), service.request("HEAD", path)
    assert got.status == head.status == 200
    assert int(head.headers["content-length"]) == len(got.body)
    assert head.body == b""
    assert head.headers | {"date": ""} == got.headers | {"date": ""}
    assert service.request("GET", f"{path}/").status == 404
    assert service.request("GET", f"{path}?x=1", {"x-auth-token": "x"}).status == 200


def test_document_is_served(service: Service) -> None:
    assert service.request("GET", "/openapi.json").json() == DOCUMENT


class Asker:
    """Asks the operations of the document and keeps the path, method and reply of each."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.asked: list[tuple[str, str, Reply]] = []

    def ask(
        self,
        path: str,
        method: str,
        headers: dict[str, str] | None = None,
        body: bytes | dict[str, Any] | None = None,
        query: str = "",
    ) -> Reply:
        content = orjson.dumps(body) if isinstance(body, dict) else body
        target = path.replace("{ruta}", "pedidos") + query
        reply = self._service.request(method.upper(), target, headers, content)
        self.asked.append((path, method, reply))
        return reply

    def new_session(self, **changes: Any) -> dict[str, Any]:
        created = self.ask("/sesiones", "post", SERVICE_KEY | JSON, CREATION | changes)
        sesion: dict[str, Any] = created.json()
        return sesion

    def begin(self, path: str, method: str, rest: bytes) -> socket.socket:
        """A connection with a request line and these bytes behind it."""
        connection = self._service.connect()
        target = path.replace("{ruta}", "pedidos")
        connection.sendall(f"{method.upper()} {target} HTTP/1.1\r\n".encode() + rest)
        return connection

    def finish(self, path: str, method: str, connection: socket.socket) -> None:
        with connection:
            response = http.client.HTTPResponse(connection, method=method.upper())
            response.begin()
            fields = {name.lower(): value for name, value in response.getheaders()}
            self.asked.append((path, method, Reply(response.status, fields, response.read())))
            response.close()


def ask_for_http_errors(asker: Asker) -> None:
    slow = [(*one, asker.begin(*one, b"Host: sesiones\r\n")) for one in OPERATIONS]
    for path, method in OPERATIONS:
        asker.finish(path, method, asker.begin(path, method, b"\r\n"))  # no Host
        asker.ask(path, method, {f"x-{number}": "" for number in range(101)})
        asker.ask(path, method, {"Transfer-Encoding": "gzip, chunked"})
    for path, method, connection in slow:
        asker.finish(path, method, connection)


def ask_for_checks(asker: Asker) -> None:
    caller = {"x-auth-token": asker.new_session()["Token_Sesion"]}
    for path, method in OPERATIONS:
        if path.startswith(("/sesiones/self", "/sesiones/verificar")):
            asker.ask(path, method, caller)
            asker.ask(path, method)
            asker.ask(path, method, {"x-auth-token": "ses_"})
        elif path in ("/openapi.json", "/docs"):
            asker.ask(path, method)


def ask_for_body_errors(
    asker: Asker, path: str, method: str, credential: dict[str, str], body: dict[str, Any]
) -> None:
    asker.ask(path, method, JSON, body)
    asker.ask(path, method, {"Authorization": "Bearer x"} | JSON, body)
    asker.ask(path, method, credential | {"Content-Type": "text/plain"}, body)
    asker.ask(path, method, credential, body)
    asker.ask(path, method, credential | JSON | {"Content-Encoding": "gzip"}, body)
    asker.ask(path, method, credential | JSON, b" " * 16385)
    for bad in (b"{", b"[]"):
        asker.ask(path, method, credential | JSON, bad)
    asker.ask(path, method, credential | FORM, b"ID_Usuario=1&ID_Usuario=1")


def ask_for_creations(asker: Asker) -> None:
    path, method = "/sesiones", "post"
    ask_for_body_errors(asker, path, method, SERVICE_KEY, CREATION)
    asker.ask(path, method, SERVICE_KEY | JSON, {"ID_Usuario": str(CREATION["ID_Usuario"])})
    asker.ask(path, method, SERVICE_KEY | FORM, urlencode(CREATION).encode())


def ask_for_modifications(asker: Asker) -> None:
    path, method = "/sesiones", "put"
    sesion = asker.new_session()
    example = request_example(path, method)
    sent = sesion | {
        "Dispositivo": example["Dispositivo"],
        "Fecha_Expiracion": sesion["Ultima_Actividad"]
        + example["Fecha_Expiracion"]
        - example["Ultima_Actividad"],
    }
    ask_for_body_errors(asker, path, method, SERVICE_KEY, sent)
    for changes in (
        {},
        {"Estado_Sesion": 2},
        {"Fecha_Expiracion": sesion["Fecha_Inicio"] + 43201},
        {"Fecha_Expiracion": sesion["Ultima_Actividad"]},
        {"ID_Usuario": 51002, "Fecha_Inicio": sesion["Fecha_Inicio"] - 1},
        {"Token_Sesion": tokens.make(7)},
    ):
        asker.ask(path, method, SERVICE_KEY | JSON, sent | changes)
    asker.ask(path, method, SERVICE_KEY | FORM, urlencode(sent).encode())


def ask_for_ends(asker: Asker) -> None:
    other_users = asker.new_session(ID_Usuario=51002)["Token_Sesion"]
    for path in ENDS:
        caller, other = (asker.new_session()["Token_Sesion"] for _ in range(2))
        credential = {"x-auth-token": caller}
        ask_for_body_errors(asker, path, "delete", credential, {"Token_Sesion": caller})
        asker.ask(path, "delete", credential | JSON, {})
        asker.ask(
            path, "delete", credential | JSON, {"Token_Sesion": other}, f"?Token_Sesion={caller}"
        )
        asker.ask(path, "delete", credential | JSON, {"Token_Sesion": other_users})
        if path == "/sesiones/logout":
            for _ in range(2):
                asker.ask(path, "delete", credential | JSON, {"Token_Sesion": other})
        else:
            asker.ask("/sesiones/logout", "delete", credential, b"", f"?Token_Sesion={other}")
            asker.ask(path, "delete", credential | FORM, f"Token_Sesion={caller}".encode())
            caller, _ = (asker.new_session()["Token_Sesion"] for _ in range(2))
            asker.ask(path, "delete", {"x-auth-token": caller}, b"", f"?Token_Sesion={caller}")


async def ask_for_failures(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 of a service without Redis, and 500 of one with a bug."""
    app = create_app(Settings(redis_url="unix:///nonexistent/redis.sock", service_key=(KEY,)))

    async def answer(path: str, method: str) -> None:
        credential = SERVICE_KEY if path == "/sesiones" else {"x-auth-token": tokens.make(7)}
        body = request_example(path, method) if path == "/sesiones" else {}
        reply = await asgi.request(
            quiet, method.upper(), path, (credential | JSON).items(), orjson.dumps(body)
        )
        asker.asked.append((path, method, reply))

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(RuntimeError):  # Starlette raises it again once it has answered
            await app(scope, receive, send)

    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    for path, method in OPERATIONS:
        if path.startswith("/sesiones"):
            await answer(path, method)
    for name in "create", "update", "find":
        monkeypatch.setattr(SessionStore, name, fail)
    for path, method in ("/sesiones", "post"), ("/sesiones", "put"), *((p, "delete") for p in ENDS):
        await answer(path, method)


@pytest.fixture
async def asked(
    service: Service, redis: "Redis", monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str, Reply]]:
    """Every operation, asked for every answer that it has."""
    asker = Asker(service)
    ask_for_http_errors(asker)
    ask_for_checks(asker)
    ask_for_creations(asker)
    ask_for_modifications(asker)
    ask_for_ends(asker)
    await ask_for_failures(asker, monkeypatch)
    return asker.asked


def masked(value: dict[str, Any]) -> list[tuple[str, Any]]:
    """Its members in order, without what differs from one session to the next."""
    differs = {"ID_Sesion", "Token_Sesion", "Fecha_Inicio", "Fecha_Expiracion", "Ultima_Actividad"}
    return [(name, type(one) if name in differs else one) for name, one in value.items()]


async def test_document_is_what_the_service_answers(
    asked: list[tuple[str, str, Reply]],
) -> None:
    responses = documented()
    seen: dict[int, set[str]] = {}
    for path, method, reply in asked:
        one = path, method, reply
        response = responses.get((path, method, str(reply.status)))
        assert response is not None, one
        headers = {name.lower(): resolve(header) for name, header in response["headers"].items()}
        assert set(reply.headers) - FRAMING <= set(headers), one
        for name, header in headers.items():
            if not header["required"] and name not in reply.headers:
                continue
            value = reply.headers[name]
            check(int(value) if value.isdigit() else value, header["schema"])
        content = response.get("content", {})
        media_type = reply.headers.get("content-type", "").partition(";")[0]
        assert [media_type] == (list(content) or [""]), one
        if media_type.endswith("json") and method != "head":
            check(reply.json(), content[media_type]["schema"])
            for name, example in content[media_type].get("examples", {}).items():
                if masked(example["value"]) == masked(reply.json()):
                    seen.setdefault(id(response), set()).add(name)

    assert {(path, method, str(reply.status)) for path, method, reply in asked} == set(responses)
    for key, response in responses.items():
        for content in response.get("content", {}).values():
            if key[1] != "head":  # the example is the body that a GET has
                unseen = set(content.get("examples", {})) - seen.get(id(response), set())
                assert not unseen, f"{key}: no reply is as the examples {unseen}"
            for example in content.get("examples", {}).values():
                check(example["value"], content["schema"])


def test_example_bodies_are_valid() -> None:
    for path, method in OPERATIONS:
        content = DOCUMENT["paths"][path][method].get("requestBody", {}).get("content", {})
        for media in content.values():
            check(request_example(path, method), media["schema"])
