"""Clients that two generators make of the OpenAPI document: `python -m scripts.openapi_clients`."""
