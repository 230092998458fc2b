"""`make openapi`: schemathesis tries the OpenAPI document on the service, with every check on.

The hooks are here too: they check what the document cannot say. Arguments go to `schemathesis run`.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests
import schemathesis

from sesiones import tokens
from tests.harness import contract
from tests.harness.redis_server import RedisServer
from tests.harness.service import Service
from tests.harness.stores import KEY

SERVICE_KEY = {"Authorization": f"Bearer {KEY}"}
USERS = itertools.count(contract.INT_MAX // 2)


@schemathesis.auth(refresh_interval=None)
class Credentials:
    """The service key where the document asks for it; elsewhere the token that the body
    designates, or one of a new session."""

    def get(self, case: schemathesis.Case, _: schemathesis.AuthContext) -> dict[str, str]:
        schemes = {name for one in case.operation.definition.raw["security"] for name in one}
        if "clave" in schemes:
            return SERVICE_KEY
        if "token" not in schemes:
            return {}
        designated = case.body.get("Token_Sesion") if isinstance(case.body, dict) else None
        if (token := tokens.parse(designated)) is not None:
            return {"x-auth-token": token}
        created = requests.post(
            f"{_base_url(case)}/sesiones",
            json={"ID_Usuario": next(USERS), "Dispositivo": "schemathesis"},
            headers=SERVICE_KEY,
            timeout=10,
        )
        return {"x-auth-token": created.json()["Token_Sesion"]}

    def set(self, case: schemathesis.Case, data: dict[str, str], _: Any) -> None:
        case.headers = {**(case.headers or {}), **data}


@schemathesis.hook
def map_body(_: schemathesis.HookContext, body: Any) -> Any:
    """Turn 1.0 into 1: no JSON Schema since draft 6 tells them apart. The API does, and the suite
    tests that. And shorten a good Ventana to a good life, which no schema can compare."""
    if not isinstance(body, dict):
        return body
    whole = {
        campo: int(body[campo])
        for campo in (*contract.FIELDS, *contract.LOGIN)
        if isinstance(value := body.get(campo), float) and value.is_integer()
    }
    body = body | whole
    window, life = body.get("Ventana"), body.get("Vida_Maxima", contract.LIFE_MAX)
    if all(type(one) is int and 1 <= one <= contract.LIFE_MAX for one in (window, life)):
        body["Ventana"] = min(window, life)
    return body


@schemathesis.check
def modification_is_refused_for_its_reasons(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """A well-formed PUT has only the 422 and the 404 for which schemathesis.toml makes room."""
    if case.operation.label != "PUT /sesiones" or case.meta.generation.mode.is_negative:
        return
    if response.status_code == 422:
        errores = response.json()["errores"]
        assert [error["campo"] for error in errores] == ["Fecha_Expiracion"], errores
        assert errores[0]["motivo"] in contract.BAD_DATES
    elif response.status_code == 404:
        token = case.body["Token_Sesion"]
        if tokens.is_well_formed(token):
            caller = {"x-auth-token": token}
            seen = requests.get(f"{_base_url(case)}/sesiones/self", headers=caller, timeout=10)
            assert seen.status_code == 401, "a live session was not found"


def _base_url(case: schemathesis.Case) -> str:
    return str(case.operation.schema.get_base_url()).rstrip("/")


def main() -> int:
    with (
        RedisServer() as redis,
        Service(
            SESIONES_REDIS_URL=redis.url,
            SESIONES_SERVICE_KEY=KEY,
            SESIONES_REDIS_TIMEOUT="5",
            SESIONES_MAX_PER_USER="10000",  # thousands are made for the user 0
            SESIONES_MAX_SECONDS=str(contract.LIFE_MAX),  # then any Ventana is good by itself
        ) as service,
    ):
        return subprocess.call(
            [
                sys.executable,
                "-m",
                "schemathesis.cli",
                "--config-file",
                str(Path(__file__).with_name("schemathesis.toml")),
                "run",
                f"http://127.0.0.1:{service.port}/openapi.json",
                *sys.argv[1:],
            ],
            env=os.environ | {"SCHEMATHESIS_HOOKS": "scripts.openapi", "PYTHONPATH": "."},
        )


if __name__ == "__main__":
    sys.exit(main())
