"""The paths of the service that more than one module names. http/app.py has all of them."""

SELF = "/sesiones/self"
VERIFY = "/sesiones/verificar"
"""The paths below it are the same."""

LIVE, READY, HEALTH = "/livez", "/readyz", "/healthz"
PROBES = (LIVE, READY, HEALTH)
"""Health probes come every few seconds. The access log leaves them out."""
