"""The documents say what the code says."""

import dataclasses
import re
from http import HTTPStatus
from pathlib import Path

import orjson
import pytest

from scripts.chaos.__main__ import HEAD, SCENARIOS
from sesiones import __version__
from sesiones.http.heads import HEAD_MAX_BYTES, HEAD_MAX_FIELDS
from sesiones.http.problems import TITLES
from sesiones.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TEXT = (ROOT / "docs" / "api.es.md").read_text("utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

HEAD_KIB = f"{HEAD_MAX_BYTES / 1024:g} KiB"
LIMITS_OF_THE_HEAD = {
    "docs/api.es.md": [
        f"| la cabecera pasa de {HEAD_KIB} o de {HEAD_MAX_FIELDS} campos |",
        f"| Cabecera de la petición, con la ruta | {HEAD_KIB} ({HEAD_MAX_BYTES} bytes) | 431 |",
        f"| Campos de la cabecera | {HEAD_MAX_FIELDS} | 431 |",
    ],
    "docs/api.en.md": [f"| head | {HEAD_KIB}, {HEAD_MAX_FIELDS} fields | 431 |"],
    "docs/security.md": [
        f"A head and a body have at most {HEAD_KIB} each",
        f"a head has at most {HEAD_MAX_FIELDS} fields",
    ],
    "docs/gateways/caddy.md": [f"The head of a request to sesiones may have {HEAD_KIB}"],
    "docs/gateways/envoy.md": [f"a path and query of {HEAD_KIB} are too long"],
    "sesiones/http/web/openapi.json": [
        f"La cabecera pasa de {HEAD_KIB} o de {HEAD_MAX_FIELDS} campos.",
        f"Las cabeceras superan los {HEAD_MAX_BYTES} bytes o los {HEAD_MAX_FIELDS} campos.",
    ],
}
"""What each document says of them."""


def examples(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_json_examples_of_the_reference_are_json() -> None:
    for example in examples("json"):
        assert orjson.loads(example)


def test_bodies_of_the_reference_are_json() -> None:
    for body in re.findall(r"-d '(.*?)'", "".join(examples("bash")), re.DOTALL):
        assert orjson.loads(body)


def test_replies_of_the_reference_have_the_length_and_the_title_that_they_say() -> None:
    length = 0
    for example in examples("http"):
        head, _, body = example.partition("\n\n")
        status = int(head.split()[1])
        assert head.startswith(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\n")
        assert "\ncache-control: no-store\n" in head
        if body:
            reply = orjson.loads(body)
            length = len(body.strip().encode())
            assert f"\ncontent-length: {length}\n" in head
            if status >= 400:
                assert (reply["status"], reply["title"]) == (status, TITLES[status])
        elif "\ncontent-type: " in head:  # a HEAD, of what the GET before it has answered
            assert f"\ncontent-length: {length}\n" in head


def test_every_link_leads_somewhere() -> None:
    for page in [*PAGES, ROOT / "scripts" / "README.md"]:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = page.parent / path if path else page
            assert target.exists(), (page, link)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
                anchors = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
                assert anchor in anchors, (page, link)


def test_no_page_installs_sesiones_from_an_index() -> None:
    """It is on none: such a command would fail, or install what another owner calls so."""
    for page in [*PAGES, ROOT / "docs" / "deploy" / "Dockerfile"]:
        text = re.sub(r"\\\n *", "", page.read_text("utf-8"))
        for command in re.findall(r"\bpip\b[^\n`]* install\b[^\n`]*\bsesiones\b[^\n`]*", text):
            assert re.search(r"--no-index|\.whl|@ ", command), (page, command)


def test_reliability_has_every_scenario() -> None:
    """Among the promises, and with a figure of the last run."""
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    last_run = (ROOT / "docs" / "reliability-last-run.md").read_text("utf-8")
    promises = text.partition("## Not promised")[0]
    assert set(re.findall(r"`(\w+)`", promises)) >= SCENARIOS.keys() - {"million"}
    assert set(re.findall(r"^\| (\w+) \|", last_run, re.MULTILINE)) >= SCENARIOS.keys()
    assert last_run.startswith(HEAD)


def test_documents_name_tests_and_scenarios_that_there_are() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        named = re.findall(r"`((?:gateways/)?test_\w+\.py)::(test_\w+)`", text)
        assert len(named) == text.count("::test_"), page
        for file, test in named:
            (path,) = (ROOT / "tests").rglob(file)
            source = path.read_text("utf-8")
            assert re.search(rf"^ *(async )?def {test}\(", source, re.MULTILINE), (file, test)
        for file in re.findall(r"`(tests/[\w/]+\.py)`", text):
            assert (ROOT / file).is_file(), (page, file)
        assert set(re.findall(r"scenarios? `(\w+)`", text)) <= SCENARIOS.keys(), page
    security = (ROOT / "docs" / "security.md").read_text("utf-8")
    assert "::test_" in security
    assert "scenario `" in security


def test_contributing_says_which_behaviour_each_test_module_tests() -> None:
    """By its own name or by that of its folder."""
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("| behaviour |")[2]
    named = set(re.findall(r"`(tests/[\w/.]+)`", table.partition("\n\n")[0]))
    for path in (ROOT / "tests").rglob("test_*.py"):
        name = path.relative_to(ROOT).as_posix()
        assert {name, f"{name.rpartition('/')[0]}/"} & named, name


def test_examples_use_the_redis_of_the_export_line() -> None:
    """That of `make run`: nothing listens on Redis's usual port. Deployments have their own."""
    for page in [*PAGES, ROOT / "scripts" / "README.md"]:
        if page.parent.name == "deploy":
            continue
        code = re.findall(r"^```\w*\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
        for example in code:
            named = re.sub(r'environ\.get\("SESIONES_REDIS_URL", "[^"]+"\)', "", example)
            assert not re.search(r":6379|\bfrom_url\([\"']", named), page


def test_security_has_every_requirement_of_the_chapter() -> None:
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    rows = re.findall(r"^\| (7\.\d)\.(\d) \|", text, re.MULTILINE)
    counts = {"7.1": 3, "7.2": 4, "7.3": 2, "7.4": 5, "7.5": 3, "7.6": 2}  # of ASVS 5.0.0
    assert rows == [(s, str(n + 1)) for s, count in counts.items() for n in range(count)]


@pytest.mark.parametrize("document", LIMITS_OF_THE_HEAD)
def test_limits_of_the_head_are_documented(document: str) -> None:
    text = " ".join((ROOT / document).read_text("utf-8").split())
    for statement in LIMITS_OF_THE_HEAD[document]:
        assert statement in text


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text("utf-8")
    documented = set(re.findall(r"`SESIONES_([A-Z_]+)`", text))
    documented |= set(re.findall(r"`_([A-Z]+)`", text))
    settings = {field.name.upper() for field in dataclasses.fields(Settings)}
    assert documented - {"REDIS_URL_FILE", "SERVICE_KEY_FILE", "FILE"} == settings


def test_upgrading_has_each_letter_of_the_layout() -> None:
    layout = re.findall(r"^\| `sesiones:\{<bucket>\}:(\w)\b", README, re.MULTILINE)
    upgrading = (ROOT / "docs" / "upgrading.md").read_text("utf-8")
    assert len(layout) > 3
    assert set(re.findall(r"^\| `(\w)`", upgrading, re.MULTILINE)) == set(layout)


def test_newest_version_of_the_changelog_is_that_of_the_package() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## (\S+) - (unreleased|\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == __version__


def test_architecture_names_files_and_functions_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    sources = [path for path in (ROOT / "sesiones").rglob("*.*") if path.suffix in (".py", ".lua")]
    files = re.findall(r"`((?:\w+/)*\w+\.(?:py|lua))`", text)
    assert len(files) > 20
    for file in files:
        assert (
            any(path.as_posix().endswith(f"/{file}") for path in sources) or (ROOT / file).is_file()
        ), file
    code = "\n".join(path.read_text("utf-8") for path in sources)
    functions = re.findall(r"`(?:\w+\.)*(\w+)\(\)`", text)
    assert len(functions) > 10
    for function in functions:
        assert re.search(rf"\b(?:def|function) {function}\(", code), function


def test_every_invariant_names_its_test() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    section = text.partition("\n## Invariants\n")[2].partition("\n## ")[0]
    invariants = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(invariants) > 10
    for invariant in invariants:
        assert "::test_" in invariant
