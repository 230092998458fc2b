"""The command line: ``python -m sesiones serve``, ``doctor`` and ``users``."""

import sys

from sesiones import start

if __name__ == "__main__" and "serve" in sys.argv[1:2]:
    start.begin()  # before the imports below, which take long

import asyncio
import logging
import os
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import UTC, datetime

import orjson

import sesiones
from sesiones import doctor
from sesiones.app import open_store
from sesiones.connection import connect
from sesiones.doctor import Finding
from sesiones.logs import escaped
from sesiones.server import ListenError, listen, serve
from sesiones.sesion import INT_MAX, Sesion
from sesiones.settings import Settings, SettingsError
from sesiones.store import StoreUnavailable

ENVIRONMENT = "Every flag is also an environment variable: --redis-url is SESIONES_REDIS_URL."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 when it cannot do its work or doctor finds an error, 2
    for bad settings."""
    parser = ArgumentParser(prog="sesiones", description=sesiones.__doc__)
    parser.add_argument("--version", action="version", version=sesiones.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "serve", help="serve the API", allow_abbrev=False, epilog=ENVIRONMENT
    )
    Settings.add_flags(command)

    command = commands.add_parser(
        "doctor",
        help="what is wrong with a deployment, and what to do about it",
        allow_abbrev=False,
        epilog=f"Exits with 1 when it finds an error; warnings are 0. {ENVIRONMENT}",
    )
    command.add_argument("--deep", action="store_true", help="look through every key of ours too")
    command.add_argument("--json", action="store_true", help="print a JSON array of findings")
    Settings.add_flags(command, "redis_url", "redis_timeout", "wait_replicas", "key_prefix")

    command = commands.add_parser(
        "users",
        help="one user's sessions: list them, end one or all",
        allow_abbrev=False,
        epilog=ENVIRONMENT,
    )
    command.add_argument("ID_Usuario", type=_identifier, help="the user")
    ending = command.add_mutually_exclusive_group()
    ending.add_argument("--end", type=_identifier, metavar="ID_SESION", help="end that session")
    ending.add_argument("--end-all", action="store_true", help="end every session")
    command.add_argument("--json", action="store_true", help="print JSON")
    Settings.add_flags(command, "redis_url", "redis_timeout", "wait_replicas", "key_prefix")

    options = parser.parse_args(argv)
    try:
        settings = Settings.read(os.environ, vars(options))
        # A command says itself what went wrong; `serve` configures its log.
        logging.getLogger("sesiones").addHandler(logging.NullHandler())
        if options.command == "doctor":
            return asyncio.run(_doctor(settings, deep=options.deep, as_json=options.json))
        if options.command == "users":
            ending_id = None if options.end_all else options.end
            end = options.end_all or options.end is not None
            return asyncio.run(
                _users(settings, options.ID_Usuario, ending_id, end=end, as_json=options.json)
            )
        with listen(settings) as (listener, _):
            serve(settings, listener)
    except SettingsError as error:
        print(f"sesiones: {error}", file=sys.stderr)
        return 2
    except (ListenError, StoreUnavailable) as error:
        print(f"sesiones: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _identifier(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > INT_MAX:
        raise ValueError  # argparse says that it is invalid
    return int(text)


async def _doctor(settings: Settings, *, deep: bool, as_json: bool) -> int:
    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}[finding.level]
            print(f"{mark}  {finding.subject}: {finding.text}".replace("\n", "\n           "))
            if finding.advice:
                print(f"         -> {finding.advice}")

    def progress(keys: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{keys:,} keys", end="", file=sys.stderr, flush=True)

    # Patience: what is slow is to be found, not to fail.
    commands = connect(settings.redis_url, max(5.0, settings.redis_timeout))
    try:
        async for finding in doctor.examine(commands, settings):
            report(finding)
    finally:
        await commands.aclose()
    if findings[0].subject != "connection":
        async with open_store(settings) as store:
            report(await doctor.examine_store(store))
            if deep:
                finding = await doctor.examine_keys(store, progress)
                if sys.stderr.isatty():
                    print("\r\x1b[K", end="", file=sys.stderr)
                report(finding)
    if as_json:
        print(orjson.dumps([each.to_dict() for each in findings]).decode())
    return int(any(finding.level == "error" for finding in findings))


async def _users(
    settings: Settings, ID_Usuario: int, ID_Sesion: int | None, *, end: bool, as_json: bool
) -> int:
    async with open_store(settings) as store:
        if end:
            ended = await store.end_user(ID_Usuario, ID_Sesion)
            if as_json:
                print(orjson.dumps({"Sesiones_Eliminadas": ended}).decode())
            else:
                print(f"{ended} sessions ended")
            return int(ended == 0 and ID_Sesion is not None)  # it is not there
        sesiones = await store.sessions(ID_Usuario)
    if as_json:
        print("[" + ",".join(sesion.to_json().decode() for sesion in sesiones) + "]")
    else:
        print(f"user {ID_Usuario}: {len(sesiones)} live sessions")
        for sesion in sesiones:
            print(_line(sesion))
    return 0


def _date(moment: int) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OSError, OverflowError, ValueError):  # of no session that the service made
        return str(moment)


def _line(sesion: Sesion) -> str:
    moments = sesion.Fecha_Inicio, sesion.Ultima_Actividad, sesion.Fecha_Expiracion
    started, used, expires = map(_date, moments)
    state = "active" if sesion.Estado_Sesion else "inactive"
    return (
        f"{sesion.ID_Sesion}  {sesion.Token_Sesion}  {state}  started {started}  used {used}  "
        f"expires {expires}  {escaped(sesion.Dispositivo)}"
    )


if __name__ == "__main__":
    sys.exit(main())
