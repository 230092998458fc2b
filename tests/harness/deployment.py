"""A Redis server and the service on it, as a caller of the API uses them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from redis import Redis

from tests.harness.redis_server import RedisServer
from tests.harness.service import Reply, Service

JSON = {"Content-Type": "application/json"}


@dataclass
class Deployment:
    """The service has no service key. It may reach the server through a relay."""

    server: RedisServer
    service: Service

    @contextmanager
    def redis(self) -> Iterator["Redis"]:
        with self.server.client(decode_responses=True) as client:
            yield client

    def check(self, token: str, path: str = "/sesiones/self") -> Reply:
        return self.service.request("GET", path, {"x-auth-token": token})

    def create(self, ID_Usuario: int = 7) -> Reply:
        body = f'{{"ID_Usuario": {ID_Usuario}, "Dispositivo": "laptop"}}'
        return self.service.request("POST", "/sesiones", JSON, body)

    def new_session(self, ID_Usuario: int = 7) -> dict[str, Any]:
        return self.service.new_session(ID_Usuario)

    def put(self, session: dict[str, Any]) -> Reply:
        return self.service.request("PUT", "/sesiones", JSON, orjson.dumps(session))

    def end(self, caller: str, designated: str, path: str = "logout") -> Reply:
        return self.service.request(
            "DELETE", f"/sesiones/{path}?Token_Sesion={designated}", {"x-auth-token": caller}
        )
