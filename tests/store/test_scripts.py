"""The Lua scripts as files: what their first lines and their headers say of them."""

import re
from importlib.resources import files

import pytest

from sesiones.store.scripts import Script

FILES = sorted(path.name for path in (files("sesiones.store") / "lua").iterdir())
NAMES = [
    name.removesuffix(".lua")
    for name in FILES
    if (files("sesiones.store") / "lua" / name).read_text("utf-8").startswith("#!lua")
]
WRITES = re.compile(
    r"'(DEL|EXPIREAT|HSET|INCRBY|ZADD|ZREM|ZREMRANGEBYSCORE)'"
    r"|\b(write|delete|prune|prune_and_expire)\("
)


def parts(name: str) -> tuple[str, str, str]:
    """The first line, the header and the code."""
    text = (files("sesiones.store") / "lua" / f"{name}.lua").read_text("utf-8")
    first, _, rest = text.partition("\n")
    header = re.match(r"(?:--.*\n)*", rest)
    assert header is not None
    return first, header[0], rest[header.end() :]


@pytest.mark.parametrize("name", NAMES)
def test_header_names_every_key_and_argument_and_the_return_value(name: str) -> None:
    _, header, code = parts(name)
    assert "\n-- Return value: " in header
    for used in set(re.findall(r"\b(KEYS|ARGV)\b", code)):
        assert re.search(rf"^-- (KEYS, )?{used}\b", header, re.MULTILINE)
    for array, index in re.findall(r"(KEYS|ARGV)\[(\d)\]", code):
        documented = re.findall(rf"^-- {array}\[(\d)(\.\.)?\]", header, re.MULTILINE)
        numbers = [int(number) for number, _ in documented]
        assert int(index) in numbers or any(open_ended for _, open_ended in documented)


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_a_script_are_the_flags_of_its_first_line(name: str) -> None:
    first, _, _ = parts(name)
    script = Script(name)
    flags = re.fullmatch(r"#!lua(?: flags=([a-z,-]+))?", first)
    assert flags is not None
    given = (flags[1] or "").split(",")
    assert script.read_only == ("no-writes" in given)
    assert script.cross_slot == ("allow-cross-slot-keys" in given)
    assert not script.read_only or WRITES.search(script.source) is None


@pytest.mark.parametrize("name", NAMES)
def test_source_has_every_line_of_code_and_no_comment(name: str) -> None:
    _, _, code = parts(name)
    body = Script(name).source.partition("local function operation()\n")[2]
    lines = [line for line in code.splitlines() if not re.fullmatch(" *(--.*)?", line)]
    assert body.splitlines()[: len(lines)] == lines
    assert not Script(name).read_only or re.search(r"(?m)^ *--", Script(name).source) is None


@pytest.mark.parametrize(
    ("name", "safe_to_repeat", "has_read_only_twin"),
    [
        ("check", True, True),
        ("peek", True, False),
        ("create", False, False),
        ("update", False, False),
        ("end", False, False),
        ("end_all", False, False),
        ("end_again", False, False),
        ("list", False, False),
    ],
)
def test_only_checks_are_repeated_and_only_the_writing_one_has_a_twin(
    name: str, safe_to_repeat: bool, has_read_only_twin: bool
) -> None:
    script = Script(name)
    assert (script.safe_to_repeat, script.has_read_only_twin) == (
        safe_to_repeat,
        has_read_only_twin,
    )


@pytest.mark.parametrize("name", FILES)
def test_comments_and_strings_end_with_their_line(name: str) -> None:
    """Otherwise a line that looks like a comment, and is taken out, could be code or text."""
    text = (files("sesiones.store") / "lua" / name).read_text("utf-8")
    assert re.search(r"(?m)\[=*\[|\\$", text) is None
    assert text.endswith("\n")


@pytest.mark.parametrize("name", FILES)
def test_lines_are_no_longer_than_those_of_python(name: str) -> None:
    text = (files("sesiones.store") / "lua" / name).read_text("utf-8")
    assert [line for line in text.splitlines() if len(line) > 100] == []
