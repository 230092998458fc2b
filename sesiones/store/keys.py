"""The only module that names a key in Redis; lua/session.lua says what each key holds."""

from sesiones import tokens

INDEX = "u:"
TRACES = "w"
SESSION = "h:"
"""Stands between base() and a session's digest in the session's key. The letter names the layout of
the record; the scripts have it too (lua/session.lua)."""

DIGEST_LENGTH = len(tokens.digest(""))


class Keys:
    """The keys of one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.pattern = f"{prefix}:{{??}}:*"
        """Of every key, for SCAN."""

        self.channel = f"{prefix}:invalidated"
        """Where the scripts publish the digests of sessions that have ended or changed."""

    def base(self, bucket: str) -> str:
        """What every key of the bucket begins with."""
        return f"{self._prefix}:{{{bucket}}}:"

    def sessions_of(self, digest_start: str) -> str:
        """The pattern of the keys of sessions whose digests begin so, for SCAN."""
        rest = DIGEST_LENGTH - len(digest_start)
        return f"{self.base('??')}{SESSION}{digest_start}{'?' * rest}"

    def index(self, ID_Usuario: int) -> str:
        return f"{self.base(tokens.user_bucket(ID_Usuario))}{INDEX}{ID_Usuario}"

    def counter(self, bucket: str) -> str:
        return f"{self.base(bucket)}n"

    def traces(self, bucket: str) -> str:
        return f"{self.base(bucket)}{TRACES}"

    def session(self, token: str) -> str:
        # base(), spelled out, because every check comes here.
        return f"{self._prefix}:{{{token[4:6]}}}:{SESSION}{tokens.digest(token)}"


def base_of(key: str) -> str:
    """What every key of the key's bucket begins with."""
    return f"{key.partition('}:')[0]}}}:"
