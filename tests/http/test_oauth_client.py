"""Introspection and revocation as a real OAuth 2.0 client asks for them: Authlib."""

import re
from typing import Any

import pytest
import requests
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc6749 import ResourceProtector
from authlib.oauth2.rfc6750 import InvalidTokenError
from authlib.oauth2.rfc7662 import IntrospectTokenValidator
from redis import Redis
from starlette.requests import Request

from tests.harness.api import INTROSPECTION, REVOCATION, UNKNOWN, USER
from tests.harness.service import Service
from tests.harness.stores import KEY


def service_key(_: Any, __: str, uri: str, headers: Any, body: str) -> tuple[str, Any, str]:
    """Authenticates the OAuth client, in Authlib's interface."""
    headers["Authorization"] = f"Bearer {KEY}"
    return uri, headers, body


class Client(OAuth2Session):  # type: ignore[misc]
    """Of the service at a port."""

    def __init__(self, port: int) -> None:
        method = ("service_key", service_key)
        super().__init__(
            client_id="gateway",
            token_endpoint_auth_method="service_key",
            revocation_endpoint_auth_method="service_key",
        )
        self.register_client_auth_method(method)
        self._base = f"http://127.0.0.1:{port}"

    def introspection(self, token: str) -> requests.Response:
        reply: requests.Response = self.introspect_token(
            self._base + INTROSPECTION, token=token, token_type_hint="access_token"
        )
        return reply

    def revocation(self, token: str) -> requests.Response:
        reply: requests.Response = self.revoke_token(
            self._base + REVOCATION, token=token, token_type_hint="access_token"
        )
        return reply


class Validator(IntrospectTokenValidator):  # type: ignore[misc]
    """Asks the service about the token of a request."""

    def __init__(self, client: Client) -> None:
        super().__init__(realm="api")
        self._client = client

    def introspect_token(self, token_string: str) -> Any:
        reply = self._client.introspection(token_string)
        reply.raise_for_status()
        return reply.json()


def protected(client: Client, token: str) -> Any:
    """What an API behind Authlib's protection learns of a request with the token."""
    protector = ResourceProtector()
    protector.register_token_validator(Validator(client))
    header = (b"authorization", f"Bearer {token}".encode())
    return protector.validate_request(None, Request({"type": "http", "headers": [header]}))


def test_authlib_admits_a_live_session(redis: "Redis", service: Service) -> None:
    sesion = service.new_session(USER)
    with Client(service.port) as client:
        claims = protected(client, sesion["Token_Sesion"])
    assert claims["sub"] == str(sesion["ID_Usuario"])
    assert claims["sid"] == str(sesion["ID_Sesion"])
    assert claims["iat"] == sesion["Fecha_Inicio"]
    assert claims["exp"] >= sesion["Fecha_Expiracion"]


@pytest.mark.parametrize("token", [UNKNOWN, "x"])
def test_authlib_refuses_any_other_token(redis: "Redis", service: Service, token: str) -> None:
    with Client(service.port) as client, pytest.raises(InvalidTokenError):
        protected(client, token)


def test_authlib_revokes_a_session(redis: "Redis", service: Service) -> None:
    token = service.new_session(USER)["Token_Sesion"]
    with Client(service.port) as client:
        for _ in range(2):  # the second answer is the same (RFC 7009, 2.2)
            assert client.revocation(token).status_code == 200
        with pytest.raises(InvalidTokenError):
            protected(client, token)


def test_authlib_sees_a_redis_that_is_away_as_a_failure() -> None:
    with (
        Service(SESIONES_REDIS_URL="unix:///nonexistent", SESIONES_SERVICE_KEY=KEY) as service,
        Client(service.port) as client,
        pytest.raises(requests.HTTPError, match=re.escape("503")),
    ):
        protected(client, UNKNOWN)
