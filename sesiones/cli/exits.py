"""How a command ends."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    NO = 1
    """The answer is no: there is no such session, doctor has found an error, the service is not
    alive or cannot listen."""
    USAGE = 2
    """A flag, an argument or a setting is bad, or `serve` lacks its packages."""
    UNAVAILABLE = 3
    """Redis cannot be asked, or refuses: `users` may or may not have ended sessions."""
    OUTPUT = 4
    """Standard output cannot be written. The command has done its work all the same."""
    INTERRUPTED = 130
    """A shell reports this code for a command that SIGINT ended."""
    READER_LEFT = 141
    """A shell reports this code for a command that SIGPIPE ended."""


EXIT_CODES = """\
exit codes:
  0    it is as it should be
  1    there is no such session (users), an error was found (doctor), the service
       is not alive (health) or cannot listen (serve)
  2    a flag, an argument or a setting is bad, or packages are not installed (serve)
  3    Redis cannot be asked, or refuses (users)
  4    standard output cannot be written
  130  interrupted by Ctrl-C
  141  the reader of standard output has closed the pipe

Every flag is also an environment variable: --redis-url is SESIONES_REDIS_URL."""


class CommandError(Exception):
    """A command has failed; the message is one line."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code
