"""The command line, ``python -m sesiones``; arguments.py has the commands."""

import asyncio
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from sesiones.cli import doctor, end_all, health, stats, users, why
from sesiones.cli.arguments import parse
from sesiones.cli.console import OutputError, complain, prepare, show
from sesiones.cli.exits import CommandError, Exit
from sesiones.sesion import StoreUnavailable
from sesiones.settings import Settings, SettingsError, warnings


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, one of Exit's. Like argparse, raises SystemExit for
    an argument that is bad."""
    prepare()
    try:
        return _run(parse(argv))
    except OutputError as error:
        if error.reader_left:
            return Exit.READER_LEFT
        complain(f"sesiones: standard output cannot be written: {error}")
        return Exit.OUTPUT
    except CommandError as error:
        complain(f"sesiones: {error}")
        return error.code
    except SettingsError as error:
        complain(f"sesiones: {error}")
        return Exit.USAGE
    except StoreUnavailable as error:
        complain(f"sesiones: {error}")
        return Exit.UNAVAILABLE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _run(options: Namespace) -> Exit:
    settings = Settings.read(os.environ, vars(options))
    # A command reports its own failures, and `serve` configures its log: without a handler,
    # logging would print warnings and errors on standard error.
    logging.getLogger("sesiones").addHandler(logging.NullHandler())
    if options.command not in ("serve", "health"):  # `serve` logs its warnings
        for warning in warnings(settings, os.environ, sys.argv):
            complain(f"sesiones: warning: {warning}")
    match options.command:
        case "doctor":
            return asyncio.run(doctor.run(settings, options))
        case "users":
            return asyncio.run(users.run(settings, options))
        case "why":
            return asyncio.run(why.run(settings, options))
        case "stats":
            return asyncio.run(stats.run(settings, options))
        case "end-all":
            return asyncio.run(end_all.run(settings, options))
        case "health":
            show(f"{health.ask(settings)}: alive")
        case _:
            _serve(settings)
    return Exit.OK


def _serve(settings: Settings) -> None:
    try:
        # Only here: a library installation lacks the web server, and the other commands do
        # without it.
        from sesiones.http.server import serve
        from sesiones.http.sockets import ListenError, listen
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "sesiones"):
            raise
        advice = f"serve needs the package {package}: pip install 'sesiones[server]'"
        raise CommandError(Exit.USAGE, advice) from error
    try:
        with listen(settings) as (listeners, _):
            serve(settings, listeners)
    except ListenError as error:
        raise CommandError(Exit.NO, str(error)) from error
