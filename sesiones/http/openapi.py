"""The OpenAPI 3.1 document of the service, in the API's language.

Every example is a real reply: tests/http/test_openapi.py asks the service for each, and for every
status and header that the document names.
"""

from typing import Any

import orjson

import sesiones
from sesiones.http.problems import Problem
from sesiones.sesion import INT_MAX, Sesion

Object = dict[str, Any]

METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")
"""All that OpenAPI 3.1 can name."""

_TOKEN = "ses_c7Yw21LQk2fK84siKt9UNomQuqDFaDZQ0uxdWW2HTyanw"  # noqa: S105 - it was one
_CREATED = Sesion(
    ID_Sesion=29579227305787,
    ID_Usuario=48213,
    Token_Sesion=_TOKEN,
    Fecha_Inicio=1795434549,
    Fecha_Expiracion=1795436349,
    Estado_Sesion=1,
    Ultima_Actividad=1795434549,
    Dispositivo="Firefox en Fedora (portátil)",
)
_SEEN = _CREATED._replace(Fecha_Expiracion=1795436408, Ultima_Actividad=1795434608)
_SENT = _SEEN._replace(
    Fecha_Expiracion=1795438208, Dispositivo="Firefox en Fedora (portátil del trabajo)"
)
_UPDATED = _SENT._replace(Fecha_Expiracion=1795438223, Ultima_Actividad=1795434623)


def document() -> Object:
    """The whole document."""
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "API de sesiones",
            "version": sesiones.__version__,
            "summary": "Crea, comprueba, modifica y cierra sesiones guardadas en Redis.",
            "description": (
                "Cada sesión pertenece a un usuario y a un dispositivo y se presenta con un token. "
                "El **cliente** consulta y cierra sus sesiones con su token; la **pasarela** "
                "pregunta de quién es cada petición que recibe; el **backend** que comprueba las "
                "contraseñas crea y modifica sesiones con una clave de servicio.\n\n"
                "Las fechas son segundos enteros desde 1970 (UTC), del reloj de Redis. Los enteros "
                "son enteros JSON: `1.0` no lo es. Los errores son `application/problem+json` "
                "(RFC 9457). Una ruta que no existe es un 404; un método que la ruta no admite, un "
                "405 con `Allow`."
            ),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "Este servicio"}],
        "tags": [
            {"name": "Comprobación", "description": "De quién es una petición."},
            {"name": "Cierre", "description": "El cliente cierra sus sesiones."},
            {
                "name": "Gestión",
                "description": (
                    "El backend crea y modifica sesiones con su clave de servicio. La pasarela no "
                    "debe encaminar estas peticiones desde Internet."
                ),
            },
            {"name": "Documentación", "description": "La API se describe a sí misma."},
        ],
        "paths": _paths(),
        "components": {
            "schemas": _SCHEMAS,
            "responses": {name: response for name, (_, response) in _ERRORS.items()},
            "headers": _HEADERS,
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-auth-token",
                    "description": (
                        "El token de la sesión. Tiene que llegar exactamente uno, aquí o en "
                        "`Authorization`."
                    ),
                },
                "portador": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "El mismo token, como `Authorization: Bearer <token>`.",
                },
                "clave": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": (
                        "Una clave de servicio, como `Authorization: Bearer <clave>`. Es del "
                        "backend: nunca de un navegador."
                    ),
                },
            },
        },
    }


def _paths() -> Object:
    return {
        "/sesiones/self": {
            "description": (
                "Devuelve la sesión del token. Cuenta como uso de ella: mueve `Ultima_Actividad` "
                "y, con ella, `Fecha_Expiracion`. `HEAD` responde lo mismo sin el cuerpo. La "
                "consulta y el cuerpo se ignoran."
            ),
            **_operations(
                "ver",
                ("get", "head"),
                tags=["Comprobación"],
                summary="Ver la propia sesión",
                security=_CALLER,
                responses=_responses(
                    {
                        "200": _reply("La sesión.", "Sesion", *_WHOSE, portatil=_SEEN._asdict())
                        | {"links": _LINKS}
                    },
                    *_CHECK_ERRORS,
                ),
            ),
        },
        "/sesiones/verificar": {
            "description": (
                "Lo que pregunta una pasarela antes de dejar pasar una petición: si el token vale "
                "y de quién es. La respuesta está en el estado y en las cabeceras; no hay cuerpo, "
                "salvo en los errores. Admite cualquier método que conozca el analizador de HTTP, "
                "también los que OpenAPI 3.1 no sabe nombrar, como `QUERY` o `PROPFIND`; "
                "`CONNECT`, no. La consulta y el cuerpo se ignoran. Cuenta como uso de la sesión."
            ),
            **_verify("verificar", "Comprobar un token"),
        },
        "/sesiones/verificar/{ruta}": {
            "description": (
                "Lo mismo que `/sesiones/verificar`, para las pasarelas que preguntan con la ruta "
                "de la petición."
            ),
            "parameters": [
                {
                    "name": "ruta",
                    "in": "path",
                    "required": True,
                    "description": (
                        "La ruta de la petición que llegó a la pasarela; se ignora. Puede tener "
                        "más barras, aunque OpenAPI no sepa decirlo."
                    ),
                    "schema": {"type": "string"},
                    "example": "pedidos",
                }
            ],
            **_verify("verificarRuta", "Comprobar un token bajo una ruta"),
        },
        "/sesiones/logout": {
            "delete": _end(
                "cerrar",
                "Cerrar una sesión",
                "Cierra la sesión que designa `Token_Sesion`: la propia o la de otro dispositivo "
                "del mismo usuario. La cabecera autentica y `Token_Sesion` designa. Si se pierde "
                "la respuesta, repita la petición; si cerraba la propia, un 401 quiere decir que "
                "ya estaba hecho.",
                _reply(
                    "1 si la sesión designada estaba viva; 0 si `Token_Sesion` no es el de ninguna "
                    "sesión viva.",
                    "Cierre",
                    cerrada={"Sesiones_Eliminadas": 1},
                    ninguna={"Sesiones_Eliminadas": 0},
                ),
            )
        },
        "/sesiones/logoutAll": {
            "delete": _end(
                "cerrarTodas",
                "Cerrar todas las sesiones",
                "Cierra todas las sesiones vivas del usuario de la cabecera, también las inactivas "
                "y la propia, en una sola operación atómica. Un `Token_Sesion` que no es el de "
                "ninguna sesión viva no lo impide; uno que es de otro usuario, sí.",
                _reply(
                    "Cuántas sesiones vivas se cerraron.",
                    "Cierre",
                    dos={"Sesiones_Eliminadas": 2},
                ),
            )
        },
        "/sesiones": {
            "post": {
                "operationId": "crear",
                "tags": ["Gestión"],
                "summary": "Crear una sesión",
                "description": (
                    "Crea una sesión activa con un token nuevo. Repetirla crea otra. Si el usuario "
                    "ya tiene el máximo de sesiones vivas, cierra la que antes caduca.\n\n"
                    "Pide la clave de servicio si hay alguna configurada; sin ninguna, el servicio "
                    "solo escucha en su propia máquina."
                ),
                "security": [{"clave": []}],
                "requestBody": _body(
                    "El usuario y su dispositivo.",
                    "Creacion",
                    {"ID_Usuario": _CREATED.ID_Usuario, "Dispositivo": _CREATED.Dispositivo},
                ),
                "responses": _responses(
                    {
                        "201": _reply("La sesión creada.", "Sesion", portatil=_CREATED._asdict())
                        | {"links": _LINKS}
                    },
                    *_BODY_ERRORS,
                    "CreacionNoValida",
                ),
            },
            "put": {
                "operationId": "modificar",
                "tags": ["Gestión"],
                "summary": "Modificar una sesión",
                "description": (
                    "Modifica la sesión viva de `Token_Sesion`, activa o no. Lleva los ocho "
                    "campos; lo normal es partir de lo que devolvió `self`.\n\n"
                    "`ID_Sesion`, `ID_Usuario` y `Fecha_Inicio` no se pueden cambiar. "
                    "`Ultima_Actividad` solo avanza, y nunca más allá de ahora. Una "
                    "`Fecha_Expiracion` igual a la guardada no la toca; otra fija la ventana "
                    "(`Fecha_Expiracion` menos `Ultima_Actividad`, al menos 1 s), sin pasar de la "
                    "vida máxima.\n\n"
                    "Pide la clave de servicio si hay alguna configurada."
                ),
                "security": [{"clave": []}],
                "requestBody": _body("La sesión como debe quedar.", "Sesion", _SENT._asdict()),
                "responses": _responses(
                    {
                        "200": _reply(
                            "La sesión como ha quedado.", "Sesion", portatil=_UPDATED._asdict()
                        )
                    },
                    *_BODY_ERRORS,
                    "SesionNoEncontrada",
                    "Inmutable",
                    "ModificacionNoValida",
                ),
            },
        },
        "/openapi.json": _operations(
            "openapi",
            ("get", "head"),
            tags=["Documentación"],
            summary="Este documento",
            security=[],
            responses=_responses(
                {
                    "200": {
                        "description": "La descripción de la API en OpenAPI 3.1.",
                        "headers": _headers(),
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                },
                *_HTTP_ERRORS,
            ),
        ),
        "/docs": _operations(
            "docs",
            ("get", "head"),
            tags=["Documentación"],
            summary="La página de documentación",
            security=[],
            responses=_responses(
                {
                    "200": {
                        "description": "Muestra este documento y deja probar la API.",
                        "headers": _headers(
                            "Content-Security-Policy", "Referrer-Policy", "X-Content-Type-Options"
                        ),
                        "content": {"text/html": {"schema": {"type": "string"}}},
                    }
                },
                *_HTTP_ERRORS,
            ),
        ),
    }


def _operations(name: str, methods: tuple[str, ...], **operation: Any) -> Object:
    """The same operation under each method; ``name`` begins their operationId."""
    return {
        method: {"operationId": name + (method.title() if i else ""), **operation}
        for i, method in enumerate(methods)
    }


def _verify(name: str, summary: str) -> Object:
    success = {
        "description": (
            "El token vale: las cabeceras dicen de quién es. Siempre 200 y sin cuerpo, nunca 204."
        ),
        "headers": _headers(*_WHOSE),
    }
    return _operations(
        name,
        METHODS,
        tags=["Comprobación"],
        summary=summary,
        security=_CALLER,
        responses=_responses({"200": success}, *_CHECK_ERRORS),
    )


def _end(name: str, summary: str, description: str, success: Object) -> Object:
    return {
        "operationId": name,
        "tags": ["Cierre"],
        "summary": summary,
        "description": description,
        "security": _CALLER,
        "requestBody": _body(
            "La sesión que se designa. `Token_Sesion` puede ir también en la consulta, sin cuerpo "
            "o el mismo en los dos sitios; aquí no se ofrece, porque las consultas acaban en los "
            "registros de los proxies.",
            "Designacion",
            {"Token_Sesion": _TOKEN},
        ),
        "responses": _responses(
            {"200": success}, *_BODY_ERRORS, "Prohibido", "DesignacionNoValida"
        ),
    }


def _body(description: str, schema: str, example: Object) -> Object:
    """A request body, in JSON or as a form."""
    media = {"schema": _ref("schemas", schema), "examples": {"portatil": {"value": example}}}
    # A field of the session that is repeated is a 400, even one that is not asked for.
    others = {
        campo: {"type": "string", "description": "Se ignora, pero no puede repetirse."}
        for campo in Sesion._fields
        if campo not in _SCHEMAS[schema]["properties"]
    }
    form = media | {"schema": {"allOf": [media["schema"]], "properties": others}}
    return {
        "description": description,
        "required": True,
        "content": {
            "application/json": media,
            "application/x-www-form-urlencoded": form if others else media,
        },
    }


def _responses(success: Object, *errors: str) -> Object:
    """The responses of an operation by status."""
    responses = success | {_ERRORS[name][0]: _ref("responses", name) for name in errors}
    return dict(sorted(responses.items()))


def _reply(description: str, schema: str, *headers: str, **examples: Object) -> Object:
    return {
        "description": description,
        "headers": _headers(*headers),
        "content": {
            "application/json": {
                "schema": _ref("schemas", schema),
                "examples": {name: {"value": value} for name, value in examples.items()},
            }
        },
    }


def _error(
    status: int,
    description: str,
    *headers: str,
    **examples: tuple[str, str] | tuple[str, str, list[tuple[str, str]]],
) -> tuple[str, Object]:
    """A status and its response; each example is a summary, a detail and the errores."""
    return str(status), {
        "description": description,
        "headers": _headers(*headers),
        "content": {
            "application/problem+json": {
                "schema": _ref("schemas", "Problema"),
                "examples": {
                    name: {
                        "summary": summary,
                        "value": orjson.loads(
                            Problem(status, detail, errores=errores[0] if errores else ())
                            .response()
                            .body
                        ),
                    }
                    for name, (summary, detail, *errores) in examples.items()
                },
            }
        },
    }


def _headers(*names: str) -> Object:
    return {name: _ref("headers", name) for name in ("Cache-Control", *names)}


def _ref(kind: str, name: str) -> Object:
    return {"$ref": f"#/components/{kind}/{name}"}


def _integer(description: str, low: int = 0) -> Object:
    return {"type": "integer", "minimum": low, "maximum": INT_MAX, "description": description}


_CALLER: list[Object] = [{"token": []}, {"portador": []}]
_WHOSE = ("X-ID-Usuario", "X-ID-Sesion", "X-Fecha-Expiracion")

_SCHEMAS: Object = {
    "Sesion": {
        "type": "object",
        "description": "Las respuestas traen siempre los ocho campos y en este orden.",
        "required": list(Sesion._fields),
        "properties": {
            "ID_Sesion": _integer("Identifica la sesión. Nunca sirve de credencial.", low=1),
            "ID_Usuario": _integer("El usuario al que pertenece."),
            "Token_Sesion": {
                "type": "string",
                "pattern": "^ses_[A-Za-z0-9_-]{45}$",
                "description": "El token. Trátelo como opaco, y como una contraseña.",
            },
            "Fecha_Inicio": _integer("Cuándo se creó."),
            "Fecha_Expiracion": _integer("Cuándo deja de existir si nadie la usa."),
            "Estado_Sesion": {
                "type": "integer",
                "enum": [0, 1],
                "description": "1, activa. 0, inactiva: existe, pero no pasa las comprobaciones.",
            },
            "Ultima_Actividad": _integer("Cuándo se usó por última vez."),
            "Dispositivo": _ref("schemas", "Dispositivo"),
        },
    },
    "Dispositivo": {
        "type": "string",
        "minLength": 1,
        "maxLength": 512,
        "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
        "description": "Texto libre, sin caracteres de control.",
    },
    "Creacion": {
        "type": "object",
        "required": ["ID_Usuario", "Dispositivo"],
        "properties": {
            "ID_Usuario": _integer("El usuario al que pertenecerá."),
            "Dispositivo": _ref("schemas", "Dispositivo"),
        },
    },
    "Designacion": {
        "type": "object",
        "required": ["Token_Sesion"],
        "properties": {
            "Token_Sesion": {
                "type": "string",
                "description": "La sesión. Si no es el token de ninguna viva, no es un error.",
            }
        },
    },
    "Cierre": {
        "type": "object",
        "required": ["Sesiones_Eliminadas"],
        "properties": {"Sesiones_Eliminadas": _integer("Cuántas sesiones se cerraron.")},
    },
    "Problema": {
        "type": "object",
        "description": "Un error, según RFC 9457. Nunca contiene un token.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"const": "about:blank", "description": "El estado lo dice todo."},
            "title": {"type": "string", "description": "El título del estado."},
            "status": {"type": "integer", "description": "El estado HTTP."},
            "detail": {
                "type": "string",
                "description": "Qué ha pasado, para personas; no dependa de su texto.",
            },
            "errores": {
                "type": "array",
                "minItems": 1,
                "description": "Solo en 409 y 422: cada campo con su motivo.",
                "items": {
                    "type": "object",
                    "required": ["campo", "motivo"],
                    "properties": {
                        "campo": {"enum": list(Sesion._fields)},
                        "motivo": {"type": "string"},
                    },
                },
            },
        },
    },
}

_HEADERS: Object = {
    name: {"required": name != "Accept-Encoding", "description": description, "schema": schema}
    for name, description, schema in (
        ("Cache-Control", "Ninguna respuesta se guarda.", {"const": "no-store"}),
        ("X-ID-Usuario", "El `ID_Usuario` de la sesión.", {"type": "integer"}),
        ("X-ID-Sesion", "Su `ID_Sesion`.", {"type": "integer"}),
        ("X-Fecha-Expiracion", "Su `Fecha_Expiracion`, ya deslizada.", {"type": "integer"}),
        (
            "WWW-Authenticate",
            "Con `error` si llegó alguna cabecera que cuenta como credencial.",
            {
                "enum": [
                    'Bearer realm="sesiones"',
                    'Bearer realm="sesiones", error="invalid_token"',
                ]
            },
        ),
        (
            "Accept-Encoding",
            "Solo si el cuerpo llegó comprimido o codificado.",
            {"const": "identity"},
        ),
        ("Retry-After", "Segundos.", {"type": "integer", "const": 1}),
        ("Connection", "Cierra la conexión.", {"const": "close"}),
        (
            "Content-Security-Policy",
            "La página no carga nada de fuera ni cabe en un marco.",
            {"type": "string"},
        ),
        ("Referrer-Policy", "Los enlaces no dicen de dónde vienen.", {"const": "no-referrer"}),
        ("X-Content-Type-Options", "El tipo es el que dice ser.", {"const": "nosniff"}),
    )
}

_HTTP_ERRORS = ("SolicitudIncorrecta", "TiempoAgotado", "CabecerasGrandes", "NoImplementado")
_CHECK_ERRORS = (*_HTTP_ERRORS, "NoAutorizado", "NoDisponible")
_BODY_ERRORS = (*_CHECK_ERRORS, "CuerpoGrande", "TipoNoAdmitido", "ErrorInterno")

_INVALID = "Hay campos no válidos."
_ERRORS = {
    "SolicitudIncorrecta": _error(
        400,
        "La petición no se puede leer: HTTP mal formado, y entonces cierra la conexión, o un "
        "cuerpo o una consulta que no son válidos.",
        http=("HTTP mal formado", "La petición HTTP está mal formada."),
        json=("Un cuerpo que no es JSON", "El cuerpo no es JSON válido."),
        objeto=("JSON, pero no un objeto", "El cuerpo debe ser un objeto JSON."),
        formulario=("Un campo repetido", "El formulario o la consulta no son válidos."),
    ),
    "NoAutorizado": _error(
        401,
        "Falta una credencial válida. La respuesta es la misma si falta, está mal formada o no "
        "existe, o si la sesión caducó, se cerró o está inactiva.",
        "WWW-Authenticate",
        credencial=("Siempre la misma", "Falta una credencial válida."),
    ),
    "Prohibido": _error(
        403,
        "`Token_Sesion` es una sesión viva de otro usuario; no se cierra nada.",
        ajena=("De otro usuario", "Token_Sesion es la sesión de otro usuario."),
    ),
    "SesionNoEncontrada": _error(
        404,
        "No hay ninguna sesión viva con ese `Token_Sesion`.",
        ninguna=(
            "No existe, caducó o se cerró",
            "No hay ninguna sesión viva con ese Token_Sesion.",
        ),
    ),
    "TiempoAgotado": _error(
        408,
        "La petición no llegó entera en 5 s.",
        "Connection",
        lenta=("Demasiado lenta", "La petición no llegó entera en 5 s."),
    ),
    "Inmutable": _error(
        409,
        "`ID_Sesion`, `ID_Usuario` o `Fecha_Inicio` no son los de la sesión; `errores` nombra "
        "cuáles.",
        dos=(
            "Otro usuario y otro inicio",
            "Hay campos que no se pueden cambiar.",
            [("ID_Usuario", "no se puede cambiar"), ("Fecha_Inicio", "no se puede cambiar")],
        ),
    ),
    "CuerpoGrande": _error(
        413,
        "El cuerpo pasa de 16 KiB.",
        grande=("Más de 16 KiB", "El cuerpo supera los 16384 bytes."),
    ),
    "TipoNoAdmitido": _error(
        415,
        "`Content-Type` falta, se repite o es otro; o el cuerpo llega con un `Content-Encoding`, y "
        "entonces `Accept-Encoding` dice cuál se admite.",
        "Accept-Encoding",
        tipo=(
            "Ni JSON ni formulario",
            "El cuerpo debe ser application/json o application/x-www-form-urlencoded.",
        ),
        falta=(
            "Sin Content-Type",
            "Falta Content-Type. El cuerpo debe ser application/json o "
            "application/x-www-form-urlencoded.",
        ),
        comprimido=("Comprimido", "El cuerpo debe llegar sin comprimir ni codificar."),
    ),
    "CreacionNoValida": _error(
        422,
        "`ID_Usuario` o `Dispositivo` faltan o no son válidos; `errores` los nombra todos.",
        dos=(
            "Una cadena por un entero, y ningún dispositivo",
            _INVALID,
            [
                ("ID_Usuario", f"debe ser un entero entre 0 y {INT_MAX}"),
                ("Dispositivo", "es obligatorio"),
            ],
        ),
    ),
    "ModificacionNoValida": _error(
        422,
        "Falta alguno de los ocho campos o no es válido, y `errores` los nombra todos; o "
        "`Fecha_Expiracion` no cumple las reglas.",
        estado=(
            "Un estado que no existe",
            _INVALID,
            [("Estado_Sesion", "debe ser un entero entre 0 y 1")],
        ),
        vida=(
            "Más allá de la vida máxima",
            _INVALID,
            [("Fecha_Expiracion", "supera la vida máxima de la sesión")],
        ),
        ventana=(
            "Una ventana de menos de 1 s",
            _INVALID,
            [("Fecha_Expiracion", "debe ser posterior a Ultima_Actividad")],
        ),
    ),
    "DesignacionNoValida": _error(
        422,
        "`Token_Sesion` falta, no es una cadena o difiere entre el cuerpo y la consulta.",
        falta=("Falta", _INVALID, [("Token_Sesion", "es obligatorio")]),
        difiere=("Difiere", _INVALID, [("Token_Sesion", "difiere entre el cuerpo y la consulta")]),
    ),
    "CabecerasGrandes": _error(
        431,
        "La cabecera pasa de 16 KiB o de 100 campos.",
        "Connection",
        grandes=(
            "Demasiado grande",
            "Las cabeceras superan los 16384 bytes o los 100 campos.",
        ),
    ),
    "NoImplementado": _error(
        501,
        "`Transfer-Encoding` nombra otra codificación además de `chunked`.",
        "Connection",
        codificacion=("gzip, chunked", "De Transfer-Encoding solo se admite chunked."),
    ),
    "ErrorInterno": _error(
        500,
        "Un fallo del propio servicio; no debería verse.",
        inesperado=("Inesperado", "Ha ocurrido un error inesperado."),
    ),
    "NoDisponible": _error(
        503,
        "Redis no responde o rechaza la operación. Si era un `POST`, un `PUT` o un `DELETE`, no se "
        "sabe si llegó a hacerse.",
        "Retry-After",
        redis=(
            "Redis no responde",
            "El almacén de sesiones no responde; inténtelo de nuevo.",
        ),
    ),
}

_LINKS = {
    "modificar": {
        "operationId": "modificar",
        "requestBody": "$response.body",
        "description": "El objeto, tal como llegó, es un `PUT` que no cambia nada.",
    },
    "cerrar": {
        "operationId": "cerrar",
        "requestBody": {"Token_Sesion": "$response.body#/Token_Sesion"},
        "description": "Con el mismo token en la cabecera, cierra la propia sesión.",
    },
    "cerrarTodas": {
        "operationId": "cerrarTodas",
        "requestBody": {"Token_Sesion": "$response.body#/Token_Sesion"},
        "description": "Con el mismo token en la cabecera, cierra todas las del usuario.",
    },
}
