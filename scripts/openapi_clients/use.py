"""Uses the client that openapi-python-client has made: ``use.py URL SERVICE_KEY``."""

import sys

from sesiones_client import AuthenticatedClient
from sesiones_client.api.cierre import cerrar, cerrar_todas
from sesiones_client.api.comprobacion import ver, verificar
from sesiones_client.api.dispositivos import cerrar_otras, cerrar_por_numero, listar
from sesiones_client.api.gestion import (
    cerrar_de_usuario,
    cerrar_usuario,
    crear,
    listar_usuario,
    modificar,
)
from sesiones_client.api.oauth import introspeccion, revocacion
from sesiones_client.models import (
    Cierre,
    Consulta,
    Creacion,
    Designacion,
    Lista,
    ListaPropia,
    Problema,
    Sesion,
    TokenNoVigente,
    TokenVigente,
)

url, key = sys.argv[1:]
backend = AuthenticatedClient(url, key, raise_on_unexpected_status=True)


def new(device: str) -> tuple[Sesion, AuthenticatedClient]:
    """A session, and a client with its token."""
    made = crear.sync(client=backend, body=Creacion(id_usuario=7, dispositivo=device))
    assert isinstance(made, Sesion)
    return made, AuthenticatedClient(url, made.token_sesion, raise_on_unexpected_status=True)


def count(answer: Cierre | Problema | None) -> int:
    assert isinstance(answer, Cierre)
    ended: int = answer.sesiones_eliminadas
    return ended


sesion, caller = new("portátil ☃")
found = ver.sync(client=caller)
assert isinstance(found, Sesion)
assert (found.id_sesion, found.dispositivo) == (sesion.id_sesion, "portátil ☃")
checked = verificar.sync_detailed(client=caller)
assert (checked.status_code, checked.headers["x-id-usuario"]) == (200, "7")
found.dispositivo = "tableta"
changed = modificar.sync(client=backend, body=found)
assert isinstance(changed, Sesion)
assert changed.dispositivo == "tableta"

other, _ = new("móvil")
own = listar.sync(client=caller)
assert isinstance(own, ListaPropia)
assert {each.id_sesion: each.actual for each in own.sesiones} == {
    sesion.id_sesion: True,
    other.id_sesion: False,
}
assert count(cerrar_por_numero.sync(other.id_sesion, client=caller)) == 1
assert count(cerrar_otras.sync(client=caller)) == 0
users = listar_usuario.sync(7, client=backend)
assert isinstance(users, Lista)
assert [each.dispositivo for each in users.sesiones] == ["tableta"]

known = introspeccion.sync(client=backend, body=Consulta(token=sesion.token_sesion))
assert isinstance(known, TokenVigente)
assert (known.active, known.sub) == (True, "7")
revoked = revocacion.sync_detailed(client=backend, body=Consulta(token=sesion.token_sesion))
assert revoked.status_code == 200
unknown = introspeccion.sync(client=backend, body=Consulta(token=sesion.token_sesion))
assert isinstance(unknown, TokenNoVigente)
refused = ver.sync(client=caller)
assert isinstance(refused, Problema)
assert (refused.status, refused.title) == (401, "No autorizado")

sesion, caller = new("portátil")
assert count(cerrar.sync(client=caller, body=Designacion(token_sesion=sesion.token_sesion))) == 1
sesion, caller = new("portátil")
assert count(cerrar_todas.sync(client=caller, body=Designacion(sesion.token_sesion))) == 1
sesion, _ = new("portátil")
assert count(cerrar_de_usuario.sync(7, sesion.id_sesion, client=backend)) == 1
assert count(cerrar_usuario.sync(7, client=backend)) == 0
refused = crear.sync(client=backend, body=Creacion(id_usuario=-1, dispositivo=""))
assert isinstance(refused, Problema)
assert isinstance(refused.errores, list)
assert len(refused.errores) == 2
