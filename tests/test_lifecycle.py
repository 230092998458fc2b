"""A session's life over a real socket: the test to read first."""

from tests.harness.service import Service
from tests.harness.stores import KEY

SERVICE = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def timeless(sesion: dict[str, object]) -> dict[str, object]:
    """Without what every use moves on."""
    moving = ("Ultima_Actividad", "Fecha_Expiracion")
    return {campo: value for campo, value in sesion.items() if campo not in moving}


def test_session_lives_from_its_creation_to_its_logout(service: Service) -> None:
    made = service.request(
        "POST", "/sesiones", SERVICE, '{"ID_Usuario": 7, "Dispositivo": "portátil"}'.encode()
    )
    assert made.status == 201
    sesion = made.json()
    caller = {"x-auth-token": sesion["Token_Sesion"]}

    seen = service.request("GET", "/sesiones/self", caller)
    assert (seen.status, timeless(seen.json())) == (200, timeless(sesion))
    assert seen.headers["x-id-usuario"] == "7"

    verified = service.request("POST", "/sesiones/verificar/una/ruta?x=1", caller, b"ignored")
    assert (verified.status, verified.body) == (200, b"")

    updated = service.request("PUT", "/sesiones", SERVICE, made.body)
    assert (updated.status, timeless(updated.json())) == (200, timeless(sesion))

    ended = service.request(
        "DELETE", f"/sesiones/logout?Token_Sesion={sesion['Token_Sesion']}", caller
    )
    assert (ended.status, ended.json()) == (200, {"Sesiones_Eliminadas": 1})
    assert service.request("GET", "/sesiones/self", caller).status == 401
