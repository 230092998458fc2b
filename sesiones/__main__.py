"""The command line: ``python -m sesiones serve``."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

import sesiones
from sesiones.server import ListenError, listen, serve
from sesiones.settings import Settings, SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 when it cannot listen, 2 for bad settings."""
    parser = ArgumentParser(prog="sesiones", description=sesiones.__doc__)
    parser.add_argument("--version", action="version", version=sesiones.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "serve",
        help="serve the API",
        allow_abbrev=False,
        epilog="Every flag is also an environment variable: --redis-url is SESIONES_REDIS_URL.",
    )
    Settings.add_flags(command)
    flags = vars(parser.parse_args(argv))
    del flags["command"]
    try:
        settings = Settings.read(os.environ, flags)
        with listen(settings) as (listener, _):
            serve(settings, listener)
    except SettingsError as error:
        print(f"sesiones: {error}", file=sys.stderr)
        return 2
    except ListenError as error:
        print(f"sesiones: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
