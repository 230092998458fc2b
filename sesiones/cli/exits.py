"""How a command ends."""

from enum import IntEnum
from textwrap import fill
from typing import Self


class Exit(IntEnum):
    """The exit codes, and what each means."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    OK = 0, "it is as it should be"
    NO = (
        1,
        "there is no such session, or several of that name (users), nothing is known of one (why), "
        "an error was found (doctor), the service is not alive (health) or cannot listen (serve)",
    )
    USAGE = 2, "a flag, an argument or a setting is bad, or packages are not installed (serve)"
    UNAVAILABLE = (
        3,
        "Redis cannot be asked, or refuses: sessions may or may not have ended (users, end-all)",
    )
    OUTPUT = 4, "standard output cannot be written, though the command has done its work"
    INTERRUPTED = 130, "interrupted by Ctrl-C"  # as a shell reports the end by SIGINT
    READER_LEFT = 141, "the reader of standard output has closed the pipe"  # as by SIGPIPE


def _described(code: Exit) -> str:
    return fill(code.meaning, 79, initial_indent=f"  {code:<3}  ", subsequent_indent=" " * 7)


EXIT_CODES = "\n".join(
    [
        "exit codes:",
        *map(_described, Exit),
        "\nEvery flag is also an environment variable: --redis-url is SESIONES_REDIS_URL.",
    ]
)


class CommandError(Exception):
    """A command has failed; the message is one line."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code
