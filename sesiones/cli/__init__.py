"""The command line: ``python -m sesiones serve``, ``doctor``, ``users`` and ``health``."""

import asyncio
import dataclasses
import json
import logging
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from enum import IntEnum
from typing import NoReturn

import sesiones
from sesiones.cli import alive, doctor
from sesiones.cli.console import (
    Complaints,
    OutputError,
    complain,
    counted,
    is_watched,
    prepare,
    show,
)
from sesiones.cli.doctor import Finding
from sesiones.http.app import open_store
from sesiones.http.server import serve
from sesiones.http.sockets import ListenError, listen
from sesiones.logs import TEXT_FORMAT, JsonFormatter, TextFormatter, escaped
from sesiones.redis_client import connect
from sesiones.sesion import INT_MAX, Sesion, StoreUnavailable
from sesiones.settings import Settings, SettingsError, warnings
from sesiones.store import SessionStore

PATIENCE_SECONDS = 5.0
"""The least timeout of an operator's command: what is slow is to be found, not to fail."""


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    NO = 1
    """What was asked for is not so: there is no such session, doctor has found an error, the
    service is not alive or cannot listen."""
    USAGE = 2
    """A flag, an argument or a setting is bad."""
    UNAVAILABLE = 3
    """Redis cannot be asked, or refuses: `users` may or may not have ended sessions."""
    OUTPUT = 4
    """Standard output cannot be written. What was to be done has been done."""
    INTERRUPTED = 130
    """As a shell has it of a command that SIGINT ended, and of one that SIGPIPE did."""
    READER_LEFT = 141


EXIT_CODES = """\
exit codes:
  0    it is as it should be
  1    there is no such session (users), an error was found (doctor), the service
       is not alive (health) or cannot listen (serve)
  2    a flag, an argument or a setting is bad
  3    Redis cannot be asked, or refuses (users)
  4    standard output cannot be written
  130  interrupted by Ctrl-C
  141  the reader of standard output has closed the pipe

Every flag is also an environment variable: --redis-url is SESIONES_REDIS_URL."""


class _Parser(ArgumentParser):
    """Repeats no value that it was given, which may be a secret, and writes as the commands do."""

    def error(self, message: str) -> NoReturn:
        head, found, _ = message.partition("ignored explicit argument")
        if found:
            message = f"{head}takes no value"
        head, found, _ = message.partition("expected one argument")
        if found:
            flag = head.removeprefix("argument ").removesuffix(": ")
            message = f"{head}takes a value, {self._option_string_actions[flag].metavar}"
        head, found, _ = message.partition("invalid choice")
        if found:
            message = f"{head}must be {', '.join(COMMANDS)}"
        complain(f"{self.format_usage()}{self.prog}: error: {message}")
        raise SystemExit(Exit.USAGE)

    def _print_message(self, message: str, file: object = None) -> None:
        """Help and version, which argparse would write without a look at what came of it."""
        show(message.removesuffix("\n"))


COMMANDS = {
    "serve": "serve the API",
    "doctor": "what is wrong with a deployment, and what to do about it",
    "users": "one user's sessions: list them, end one or all",
    "health": "whether the service on this machine answers, at the address of its settings",
}


def _parser() -> ArgumentParser:
    parser = _Parser(prog="sesiones", description=sesiones.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=sesiones.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve, doctor, users, health = (
        commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            epilog=EXIT_CODES,
            formatter_class=RawDescriptionHelpFormatter,
        )
        for name, text in COMMANDS.items()
    )
    redis = "redis_url", "redis_timeout", "wait_replicas", "key_prefix"
    Settings.add_flags(serve)
    doctor.add_argument("--deep", action="store_true", help="look through every key of ours too")
    doctor.add_argument("--json", action="store_true", help="print a JSON array of findings")
    Settings.add_flags(doctor, *redis)
    users.add_argument("ID_Usuario", type=_user, help="the user's number")
    ending = users.add_mutually_exclusive_group()
    ending.add_argument("--end", type=_session, metavar="ID_SESION", help="end that session")
    ending.add_argument("--end-all", action="store_true", help="end every session")
    users.add_argument(
        "--deep",
        action="store_true",
        help="look through every key for sessions that the user's index does not name",
    )
    users.add_argument("--json", action="store_true", help="print JSON")
    Settings.add_flags(users, *redis, "log_format")
    Settings.add_flags(health, "host", "port", "uds")
    return parser


def _options(argv: Sequence[str] | None) -> Namespace:
    """Raises SystemExit for arguments that are bad."""
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    flags = [
        word.partition("=")[0] if word[:2] == "--" else word[:2]
        for word in rest
        if word[0:1] == "-"
    ]
    if flags:
        parser.error(
            f"unknown {'flag' if len(flags) == 1 else 'flags'} {escaped(', '.join(flags))}"
        )
    if rest:
        parser.error(f"{counted(len(rest), 'argument')} too many")
    return options


def _number(text: str, low: int) -> int:
    if (
        not text.isascii()
        or not text.isdigit()
        or len(text) > 16
        or not low <= int(text) <= INT_MAX
    ):
        raise ArgumentTypeError(f"must be an integer from {low} to {INT_MAX}")
    return int(text)


def _user(text: str) -> int:
    return _number(text, 0)


def _session(text: str) -> int:
    return _number(text, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is one of Exit's. Like argparse, raises SystemExit for an
    argument that is bad."""
    prepare()
    try:
        return _run(_options(argv))
    except OutputError as error:
        if error.reader_left:
            return Exit.READER_LEFT
        complain(f"sesiones: standard output cannot be written: {error}")
        return Exit.OUTPUT
    except SettingsError as error:
        complain(f"sesiones: {error}")
        return Exit.USAGE
    except (ListenError, alive.DeadError) as error:
        complain(f"sesiones: {error}")
        return Exit.NO
    except StoreUnavailable as error:
        complain(f"sesiones: {error}")
        return Exit.UNAVAILABLE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _run(options: Namespace) -> int:
    settings = Settings.read(os.environ, vars(options))
    # A command says itself what went wrong; `serve` configures its log.
    logging.getLogger("sesiones").addHandler(logging.NullHandler())
    if options.command in ("doctor", "users"):  # `serve` logs them
        for warning in warnings(settings, os.environ, sys.argv):
            complain(f"sesiones: warning: {warning}")
    match options.command:
        case "doctor":
            return asyncio.run(_doctor(settings, options))
        case "users":
            with _logged(settings.log_format):
                return asyncio.run(_users(settings, options))
        case "health":
            show(f"{alive.ask(settings)}: alive")
        case _:
            with listen(settings) as (listener, _):
                serve(settings, listener)
    return Exit.OK


def _patient(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings, redis_timeout=max(PATIENCE_SECONDS, settings.redis_timeout)
    )


async def _doctor(settings: Settings, options: Namespace) -> int:
    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        if not options.json:
            mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}[finding.level]
            text = f"{mark}  {finding.subject}: {finding.text}".replace("\n", "\n           ")
            show(text + (f"\n         -> {finding.advice}" if finding.advice else ""))

    def progress(keys: int) -> None:
        if is_watched():
            complain(f"\r\x1b[K{counted(keys, 'key')}", end="")

    patient = _patient(settings)
    async with aclosing(connect(patient.redis_url, patient.redis_timeout)) as commands:
        async for finding in doctor.examine(commands, settings):
            report(finding)
    if not any(finding.subject == "connection" for finding in findings):
        async with open_store(patient) as store:
            report(await doctor.examine_prefix(store, settings))
            report(await doctor.examine_store(store))
            if options.deep:
                finding = await doctor.examine_keys(store, settings, progress)
                if is_watched():
                    complain("\r\x1b[K", end="")
                report(finding)
    if options.json:
        show(json.dumps([each.to_dict() for each in findings]))
    return Exit.NO if any(finding.level == "error" for finding in findings) else Exit.OK


async def _users(settings: Settings, options: Namespace) -> int:
    async with open_store(_patient(settings)) as store:
        if options.end_all or options.end is not None:
            return await _end(store, settings, options)
        sesiones = await store.sessions(options.ID_Usuario, deep=options.deep)
        await _doubt(store, settings, options, found=len(sesiones))
    if options.json:
        show(json.dumps([sesion._asdict() for sesion in sesiones], separators=(",", ":")))
    else:
        found = counted(len(sesiones), "live session")
        title = f"user {options.ID_Usuario}: {found} ({doctor.place(settings)})"
        show("\n".join([title, *map(_line, sesiones)]))
    return Exit.OK


async def _end(store: SessionStore, settings: Settings, options: Namespace) -> int:
    ended = await store.end_user(options.ID_Usuario, options.end, deep=options.deep)
    await _doubt(store, settings, options, found=ended)
    if options.json:
        show(json.dumps({"Sesiones_Eliminadas": ended}, separators=(",", ":")))
    else:
        show(f"{counted(ended, 'session')} ended ({doctor.place(settings)})")
    return Exit.NO if options.end is not None and not ended else Exit.OK


async def _doubt(
    store: SessionStore, settings: Settings, options: Namespace, *, found: int
) -> None:
    """Say on standard error why there may be more sessions than were found."""
    where = doctor.place(settings)
    if not found and not await store.was_used():
        complain(f"sesiones: warning: {where}: there is nothing at all. {doctor.NOTHING_ADVICE}")
    elif not options.deep:
        patient = _patient(settings)
        async with aclosing(connect(patient.redis_url, patient.redis_timeout)) as commands:
            async for finding in doctor.evictions(commands):
                complain(
                    f"sesiones: warning: {finding.text}: the user's index may be incomplete. "
                    "--deep looks through every key."
                )
        if not found:
            complain(
                f"sesiones: the index of user {options.ID_Usuario} is missing or names no such "
                "session. Where keys were lost, --deep finds the sessions that it lacks."
            )


@contextmanager
def _logged(log_format: str) -> Iterator[None]:
    """What becomes of sessions, as the service logs it, on standard error. Errors are left out:
    the command ends with its own line about them."""
    handler = Complaints()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(TEXT_FORMAT))
    handler.addFilter(lambda record: record.levelno < logging.ERROR)
    logger = logging.getLogger("sesiones")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


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
