"""A certificate for the servers of tests that speak TLS."""

import subprocess
from pathlib import Path


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key. Needs openssl."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    options = (
        "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 "
        f"-subj /CN=sesiones -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    )
    subprocess.run(["openssl", "req", *options.split()], check=True, capture_output=True)
    return certificate, key
