"""sesiones: a Redis-backed token session store service."""

__version__ = "0.1.0"
