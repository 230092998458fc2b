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
LIFE_MAX = 400 * 24 * 3600
LOGIN = {
    "Ventana": (1, LIFE_MAX),
    "Vida_Maxima": (1, LIFE_MAX),
    "Token_Anterior": None,
    "Cerrar_Otras": (0, 1),
    "Max_Sesiones": (1, 10_000),
    "Sustituye": (1, INT_MAX),
}
"""The members of a POST that may be left out, with their widest bounds; None: a string. The
settings and Vida_Maxima narrow those of Ventana, and the settings those of Max_Sesiones."""
LISTED = [
    *("ID_Sesion", "Fecha_Inicio", "Fecha_Expiracion", "Estado_Sesion"),
    *("Ultima_Actividad", "Dispositivo"),
]
"""The members of a session in a list; "Actual" follows where the caller came with a token."""
INTROSPECTION = ["active", "sub", "sid", "iat", "exp", "token_type"]
"""The members of the introspection of a live token; of any other there is only the first."""
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
"""The errors whose problem document names fields, in ``errores``. The 409 of a POST has the user's
sessions instead, in ``Sesiones``."""
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
OWN_LIST, LIST = "list with Actual", "list"
ACTIVE, EMPTY = "introspection", "nothing"


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
    optional: tuple[str, ...] = ()
    """The fields that it may have."""
    media_types: tuple[str, ...] = (JSON, FORM)
    """Those of the body."""

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
CREATE = Operation(
    *(201, SESSION, (*_BODY_ERRORS, 409, 503), "service key"),
    body=("ID_Usuario", "Dispositivo"),
    optional=tuple(LOGIN),
)
UPDATE = Operation(200, SESSION, (*_BODY_ERRORS, 404, 409, 422, 503), "service key", tuple(FIELDS))
_CALLER_ERRORS = (401, 503)
_OAUTH_ERRORS = (401, 415, 413, 400, 503)
LIST_OWN = Operation(200, OWN_LIST, _CALLER_ERRORS, "token")
END_OTHERS = Operation(200, COUNT, _CALLER_ERRORS, "token")
END_OWN = Operation(200, COUNT, (404, *_CALLER_ERRORS), "token")
LIST_USER = Operation(200, LIST, (404, *_CALLER_ERRORS), "service key")
END_USER = Operation(200, COUNT, (404, *_CALLER_ERRORS), "service key")
INTROSPECT = Operation(200, ACTIVE, _OAUTH_ERRORS, "service key", ("token",), media_types=(FORM,))
REVOKE = Operation(200, EMPTY, _OAUTH_ERRORS, "service key", ("token",), media_types=(FORM,))

OPERATIONS: dict[str, dict[str, Operation]] = {
    "/sesiones": {"GET": LIST_OWN, "HEAD": LIST_OWN, "POST": CREATE, "PUT": UPDATE},
    "/sesiones/self": {"GET": WHOAMI, "HEAD": WHOAMI},
    "/sesiones/logout": {"DELETE": END},
    "/sesiones/logoutAll": {"DELETE": END},
    "/sesiones/logoutOthers": {"DELETE": END_OTHERS},
    "/sesiones/{ID_Sesion}": {"DELETE": END_OWN},
    "/sesiones/usuarios/{ID_Usuario}": {"GET": LIST_USER, "HEAD": LIST_USER, "DELETE": END_USER},
    "/sesiones/usuarios/{ID_Usuario}/{ID_Sesion}": {"DELETE": END_USER},
    "/sesiones/introspeccion": {"POST": INTROSPECT},
    "/sesiones/revocacion": {"POST": REVOKE},
    "/openapi.json": {"GET": _READ, "HEAD": _READ},
    "/docs": {"GET": _READ, "HEAD": _READ},
}
"""The API's operations by path and method, without VERIFY. A segment in braces stands for a value
of that field in plain decimal."""
OPERATORS_PATHS = ["/metrics", "/livez", "/readyz", "/healthz"]
"""GET and HEAD, for probes and scrapers: docs/operate.md describes them, the OpenAPI document does
not."""


def error_headers(status: int) -> set[str]:
    """The headers that belong to errors of this status."""
    return {name for name, statuses in ERROR_HEADERS.items() if status in statuses}


def path_of(sent: str) -> str:
    """The path of OPERATIONS that a path as it was sent leads to, else the same path; "" for one
    with a brace, which leads nowhere."""
    if "{" in sent:
        return ""
    for path in OPERATIONS:
        pairs = list(zip(path.split("/"), sent.split("/"), strict=False))
        if path.count("/") == sent.count("/") and all(_stands_for(*pair) for pair in pairs):
            return path
    return sent


def _stands_for(segment: str, sent: str) -> bool:
    if not segment.startswith("{"):
        return segment == sent
    if not (sent.isascii() and sent.isdigit() and len(sent) <= 16 and str(int(sent)) == sent):
        return False
    low, high = INTEGERS[segment[1:-1]]
    return low <= int(sent) <= high
