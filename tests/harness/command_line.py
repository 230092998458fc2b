"""The command `sesiones` on one Redis, in this process."""

import asyncio
from contextlib import aclosing
from typing import NamedTuple

import orjson
import pytest

from sesiones.cli import main
from sesiones.sesion import Sesion
from tests.harness.stores import open_store


class Diagnosis(NamedTuple):
    """What `sesiones doctor` reports."""

    code: int
    findings: dict[str, dict[str, str]]
    """By subject."""
    bad: list[str]
    """The subjects of warnings and errors."""


class CommandLine:
    """Runs commands with ``--redis-url``."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capsys = capsys

    def at(self, url: str) -> "CommandLine":
        """The same on another Redis."""
        return CommandLine(url, self._capsys)

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """The exit code, standard output and standard error."""
        self._capsys.readouterr()
        return main([*words, "--redis-url", self.url]), *self._capsys.readouterr()

    def users(self, *words: str) -> tuple[int, str, str]:
        return self("users", *words)

    def listed(self, *words: str) -> set[int]:
        """ID_Sesion of each session that `users` lists."""
        code, out, _ = self("users", *words, "--json")
        assert code == 0
        return {each["ID_Sesion"] for each in orjson.loads(out)}

    def doctor(self, *flags: str) -> Diagnosis:
        code, out, _ = self("doctor", "--json", *flags)
        findings = {each["subject"]: each for each in orjson.loads(out)}
        bad = [subject for subject, each in findings.items() if each["level"] != "ok"]
        assert all(findings[subject]["advice"] for subject in bad)
        return Diagnosis(code, findings, bad)

    def create(self, *users: int) -> list[Sesion]:
        """A new session of each user."""

        async def create() -> list[Sesion]:
            async with aclosing(open_store(self.url)) as store:
                return [await store.create(user, f"device of {user}") for user in users]

        return asyncio.run(create())
