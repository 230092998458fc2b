"""The reply to INFO: what a server says of itself."""

from typing import Self


class Info(dict[str, str]):
    """The fields of the reply. A server may leave any of them out, as proxies and hosted servers
    do, so what is not said counts as not known."""

    @classmethod
    def parse(cls, reply: bytes) -> Self:
        lines = reply.decode(errors="replace").splitlines()
        return cls(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")

    def number(self, field: str) -> int:
        """A count or a size; 0 when it is not known."""
        return int(self.get(field, 0))

    @property
    def product(self) -> tuple[str, str | None]:
        """ "Redis" or "Valkey", which also has a redis_version; and the version."""
        if "valkey_version" in self:
            return "Valkey", self["valkey_version"]
        return "Redis", self.get("redis_version")

    @property
    def eviction_policy(self) -> str | None:
        return self.get("maxmemory_policy")
