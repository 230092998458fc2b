"""The command `sesiones`, and ``python -m sesiones``."""

import sys

from sesiones import signals


def main() -> int:
    """Run the command line and return its exit code. A service ends its process with it at once."""
    serves = "serve" in sys.argv[1:2]
    if serves:
        signals.begin()  # before the import below, which takes long
    from sesiones import cli

    code = cli.main()
    if serves:
        signals.end(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
