"""The commands and their arguments."""

import math
import re
from argparse import (
    Action,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import sesiones
from sesiones.cli.console import complain, counted, show
from sesiones.cli.exits import EXIT_CODES, Exit
from sesiones.logs import escaped
from sesiones.sesion import BOUNDS
from sesiones.settings import Settings

COMMANDS = {
    "serve": "serve the API",
    "doctor": "what is wrong with a deployment, and what to do about it",
    "users": "one user's sessions, or those of a name of the log: list them, end one or all",
    "stats": "how many sessions and users there are",
    "end-all": "end every session, or those that began before a moment",
    "why": "what is known of a user's sessions or of a token: which live, why others ended",
    "health": "whether the service on this machine answers, at the address of its settings",
}

ANY = 0
"""--end without a value. It is no ID_Sesion."""


class _Parser(ArgumentParser):
    """A parser whose errors repeat no value, which may be a secret, and which writes its messages
    as the commands do."""

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
        """Print help or version. Unlike argparse's own method, show() reports a failed write."""
        show(message.removesuffix("\n"))


_REDIS = "redis_url", "redis_ca_file", "redis_timeout", "wait_replicas", "key_prefix"
"""The settings of every command that asks Redis."""


def parse(argv: Sequence[str] | None) -> Namespace:
    """The command and its arguments. Raises SystemExit for arguments that are bad."""
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
    if options.command == "users":
        if options.name is None and options.end == ANY:
            parser.error("argument --end: takes a value, ID_SESION")
        if options.name is not None and options.ID_Usuario is not None:
            parser.error("argument --name: not allowed with argument ID_Usuario")
        if options.name is not None and options.end_all:
            parser.error("argument --end-all: not allowed with argument --name")
    return options


def _parser() -> ArgumentParser:
    parser = _Parser(prog="sesiones", description=sesiones.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=sesiones.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve, doctor, users, stats, end_all, why, health = (
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
    Settings.add_flags(serve)
    doctor.add_argument("--deep", action="store_true", help="look through every key of ours too")
    doctor.add_argument("--json", action="store_true", help="print a JSON array of findings")
    Settings.add_flags(doctor, *_REDIS, "cache_seconds", "touch_seconds")
    _add_users_flags(users)
    stats.add_argument("--json", action="store_true", help="print JSON")
    Settings.add_flags(stats, *_REDIS)
    end_all.add_argument(
        "--before",
        type=_moment,
        metavar="TIME",
        help="end only sessions that began before this: 2026-11-27T09:00:00Z, or another time with "
        "its time zone, or epoch seconds",
    )
    end_all.add_argument(
        "--yes", action="store_true", help="end them; without it, they are only counted"
    )
    end_all.add_argument("--json", action="store_true", help="print JSON")
    Settings.add_flags(end_all, *_REDIS, "why_seconds", "log_format")
    why.add_argument(
        "whose",
        metavar="WHOSE",
        help="the user's number; a token; a token's name in the log, ses_#1a2b3c4d; or -, which "
        "reads one of them from standard input, so that no shell remembers a token",
    )
    why.add_argument(
        "--deep",
        action="store_true",
        help="look through every key, as always for a name: a session that has expired stands in "
        "its user's index alone until the user is back",
    )
    why.add_argument("--json", action="store_true", help="print a JSON array of sessions")
    Settings.add_flags(why, *_REDIS, "why_seconds")
    Settings.add_flags(health, "host", "port", "uds")
    return parser


def _add_users_flags(users: ArgumentParser) -> None:
    user = users.add_argument("ID_Usuario", type=_user, help="the user's number")

    class Name(Action):
        """--name, in the place of the user's number. (With `nargs="?"`, argparse would not take a
        number that follows a flag.)"""

        def __call__(self, parser: Any, namespace: Namespace, value: Any, flag: Any = None) -> None:
            user.required = False
            setattr(namespace, self.dest, value)

    users.add_argument(
        "--name",
        type=_name,
        action=Name,
        metavar="SES_NAME",
        help="the name that the log gives a session's token, ses_#1a2b3c4d, instead of the user's "
        "number; looks through every key",
    )
    ending = users.add_mutually_exclusive_group()
    ending.add_argument(
        "--end",
        type=_session,
        nargs="?",
        const=ANY,
        metavar="ID_SESION",
        help="end that session; with --name, the number may be left out",
    )
    ending.add_argument("--end-all", action="store_true", help="end every session of the user")
    users.add_argument(
        "--deep",
        action="store_true",
        help="look through every key for sessions that the user's index does not name",
    )
    users.add_argument("--json", action="store_true", help="print JSON")
    Settings.add_flags(users, *_REDIS, "why_seconds", "log_format")


def _number(text: str, field: str) -> int:
    low, high = BOUNDS[field]
    if (
        not text.isascii()
        or not text.isdigit()
        or len(text) > len(str(high))
        or not low <= int(text) <= high
    ):
        raise ArgumentTypeError(f"must be an integer from {low} to {high}")
    return int(text)


def _user(text: str) -> int:
    return _number(text, "ID_Usuario")


def _session(text: str) -> int:
    return _number(text, "ID_Sesion")


def _name(text: str) -> str:
    """The 8 hex digits."""
    match = re.fullmatch(r"(?:ses_)?#?([0-9a-f]{8})", text)
    if match is None:
        raise ArgumentTypeError("must be ses_# and 8 hex digits, as in the log")
    return match[1]


def _moment(text: str) -> int:
    """A time in epoch seconds. The first whole second that is not before it: sessions have the
    second in which they began."""
    if re.fullmatch(r"[0-9]{1,12}", text):
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ArgumentTypeError(
            "must be a time with its time zone, such as 2026-11-27T09:00:00Z, or epoch seconds"
        )
    return math.ceil(moment.timestamp())
