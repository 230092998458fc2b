"""The paths of the service that more than one module names. http/app.py has all of them."""

SELF = "/sesiones/self"
VERIFY = "/sesiones/verificar"
"""The paths below it are the same."""

LIVE, READY, HEALTH = "/livez", "/readyz", "/healthz"
METRICS = "/metrics"
FOR_OPERATORS = (LIVE, READY, HEALTH, METRICS)
"""Probes and scrapes come every few seconds. They are neither logged nor counted."""
