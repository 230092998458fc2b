"""The contract of the HTTP API as data, which tests, the fuzzer and the chaos scenarios read.

tests/http/test_contract.py compares it with the service and with docs/api.es.md, and
tests/http/test_openapi.py with the OpenAPI document. It imports nothing from the package, so that a
wrong constant there does not make a wrong test.
"""

from dataclasses import dataclass

INT_MAX = 2**53 - 1
INTEGERS = {
    "ID_Sesion": (1, INT_MAX),
    "ID_Usuario": (0, INT_MAX),
    "Fecha_Inicio": (0, INT_MAX),
    "Fecha_Expiracion": (0, INT_MAX),
    "Estado_Sesion": (0, 1),
    "Ultima_Actividad": (0, INT_MAX),
}
"""The least and the greatest value of each integer field of the session object."""
FIELDS = [
    *("ID_Sesion", "ID_Usuario", "Token_Sesion", "Fecha_Inicio"),
    *("Fecha_Expiracion", "Estado_Sesion", "Ultima_Actividad", "Dispositivo"),
]
"""The members of the session object, in their order."""
TOKEN_PATTERN = "ses_[A-Za-z0-9_-]{45}"
IDENTITY = ["x-id-usuario", "x-id-sesion", "x-fecha-expiracion"]
"""The headers of every successful check; no other response has one of them."""

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
PROBLEM = "application/problem+json"

TITLES = {
    400: "Solicitud incorrecta",
    401: "No autorizado",
    403: "Prohibido",
    404: "No encontrado",
    405: "Método no permitido",
    408: "Tiempo de espera agotado",
    409: "Conflicto",
    413: "Contenido demasiado grande",
    415: "Tipo de contenido no admitido",
    422: "Contenido no procesable",
    431: "Cabeceras demasiado grandes",
    500: "Error interno",
    501: "No implementado",
    503: "Servicio no disponible",
}
"""Every status of an error, with the title of its problem document."""
WITH_FIELDS = {409, 422}
"""The errors whose problem document names fields, in ``errores``."""
ERROR_HEADERS = {
    "www-authenticate": {401},
    "allow": {405},
    "accept-encoding": {415},
    "retry-after": {503},
}
"""The headers that belong to errors, with their statuses."""
CHALLENGES = {
    'Bearer realm="sesiones"': False,
    'Bearer realm="sesiones", error="invalid_token"': True,
}
"""The values of WWW-Authenticate, and whether a header that counts as a credential was sent."""
BAD_DATES = [
    "debe ser posterior a Ultima_Actividad",
    "supera la vida máxima de la sesión",
    "dejaría la sesión ya expirada",
]
"""What a 422 says of a Fecha_Expiracion that breaks the rules of PUT, in the order of checking."""

BEFORE_ROUTING = [400, 431, 408, 501]
"""The errors of any path, which come before 404 and 405. A head is checked as it comes for its
syntax and the version in its request line (400), then for its size (431). When the whole of it has
come, its Host, its method and its framing are checked (400 too), then its transfer codings (501). A
head that does not come in time is a 408."""
UNEXPECTED = 500
"""The status of a bug: documented where an endpoint is more than a check, and never seen."""

# What a successful response shows.
IDENTITY_ONLY, IDENTITY_AND_SESSION = "identity", "identity and session"
SESSION, COUNT, OTHER = "session", "count", "other"


@dataclass(frozen=True)
class Operation:
    """What one method of one path answers."""

    success: int
    shows: str
    """One of the constants above."""
    errors: tuple[int, ...] = ()
    """In the order in which they are checked, behind those of any path."""
    credential: str = ""
    """"token", "service key", or none."""
    body: tuple[str, ...] = ()
    """The fields that the request must have."""

    @property
    def statuses(self) -> set[int]:
        """Every status that a request that arrives whole can have while Redis answers."""
        return {self.success, *self.errors} - {503}


_BODY_ERRORS = (401, 415, 413, 400, 422)
END = Operation(200, COUNT, (*_BODY_ERRORS, 403, 503), "token", ("Token_Sesion",))
_READ = Operation(200, OTHER)

VERIFY_PATH = "/sesiones/verificar"
VERIFY = Operation(200, IDENTITY_ONLY, (401, 503), "token")
"""Any method that the HTTP parser knows, at VERIFY_PATH and at every path below it."""
WHOAMI = Operation(200, IDENTITY_AND_SESSION, (401, 503), "token")
CREATE = Operation(201, SESSION, (*_BODY_ERRORS, 503), "service key", ("ID_Usuario", "Dispositivo"))
UPDATE = Operation(200, SESSION, (*_BODY_ERRORS, 404, 409, 422, 503), "service key", tuple(FIELDS))

OPERATIONS: dict[str, dict[str, Operation]] = {
    "/sesiones": {"POST": CREATE, "PUT": UPDATE},
    "/sesiones/self": {"GET": WHOAMI, "HEAD": WHOAMI},
    "/sesiones/logout": {"DELETE": END},
    "/sesiones/logoutAll": {"DELETE": END},
    "/openapi.json": {"GET": _READ, "HEAD": _READ},
    "/docs": {"GET": _READ, "HEAD": _READ},
}
"""The API's operations by path and method, without VERIFY."""
OPERATORS_PATHS = ["/metrics", "/livez", "/readyz", "/healthz"]
"""GET and HEAD, for probes and scrapers: docs/operate.md describes them, the OpenAPI document does
not."""


def error_headers(status: int) -> set[str]:
    """The headers that belong to errors of this status."""
    return {name for name, statuses in ERROR_HEADERS.items() if status in statuses}
