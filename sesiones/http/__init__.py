"""The wire and the API: HTTP to SessionStore and back."""
