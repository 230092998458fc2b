"""The commands and their arguments."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

import sesiones
from sesiones.cli.console import complain, counted, show
from sesiones.cli.exits import EXIT_CODES, Exit
from sesiones.logs import escaped
from sesiones.sesion import BOUNDS
from sesiones.settings import Settings

COMMANDS = {
    "serve": "serve the API",
    "doctor": "what is wrong with a deployment, and what to do about it",
    "users": "one user's sessions: list them, end one or all",
    "why": "what is known of a user's sessions or of a token: which live, why others ended",
    "health": "whether the service on this machine answers, at the address of its settings",
}


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
    return options


def _parser() -> ArgumentParser:
    parser = _Parser(prog="sesiones", description=sesiones.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=sesiones.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve, doctor, users, why, health = (
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
    Settings.add_flags(doctor, *redis, "cache_seconds", "touch_seconds")
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
    Settings.add_flags(users, *redis, "why_seconds", "log_format")
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
    Settings.add_flags(why, *redis, "why_seconds")
    Settings.add_flags(health, "host", "port", "uds")
    return parser


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
