"""For other processes: sessions in their own Starlette application, and over HTTP."""
