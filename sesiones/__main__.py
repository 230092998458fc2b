"""The command `sesiones`, and ``python -m sesiones``."""

import sys

from sesiones import signals


def main() -> int:
    """Run the command line and return its exit code."""
    if "serve" in sys.argv[1:2]:
        signals.begin()  # before the import below, which takes long
    from sesiones import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
