"""The tables of docs/gateways/README.md: a row a test, a column a gateway, from what ran."""

import re

from scripts.gateways import DOCS, GATEWAYS

README = DOCS / "README.md"
NAMES = list(dict.fromkeys(gateway.name for gateway in GATEWAYS))
BEGIN, END = "<!-- written by make gateways-table -->\n", "<!-- end -->\n"

Cells = dict[tuple[str, str], str]
"""(row, gateway) to the reason why it cannot, or "" when it can."""
Place = tuple[bool, int, int]
"""Whether a row is for websites alone, then the module and the line of its test."""

ran: Cells = {}
places: dict[str, Place] = {}


def place(row: str, where: Place) -> None:
    places[row] = where


def record(row: str, gateway: str, reason: str | None) -> None:
    ran[row, gateway] = reason or ran.get((row, gateway), "")


def committed() -> str:
    return README.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def write(table: str) -> None:
    text = README.read_text("utf-8")
    README.write_text(text.replace(BEGIN + committed() + END, BEGIN + table + END), "utf-8")


def render() -> str:
    """What ran. What was skipped, as a gateway that is not installed, stays as committed."""
    cells = _parse(committed()) | ran
    rows = sorted(places, key=lambda row: tuple(places[row]))
    shown = {(row, name): cells.get((row, name), "not run yet") for row in rows for name in NAMES}
    reasons = list(dict.fromkeys(reason for reason in shown.values() if reason))
    lines = []
    for of_websites, title in (False, "all configurations"), (True, "for websites"):
        lines += ["", f"| {title} |" + "|".join(f" {name} " for name in NAMES) + "|"]
        lines += ["|---" * (len(NAMES) + 1) + "|"]
        for row in (row for row in rows if places[row][0] == of_websites):
            marks = []
            for name in NAMES:
                reason = shown[row, name]
                marks.append(f"no ({reasons.index(reason) + 1})" if reason else "yes")
            lines.append(" | ".join([f"| {row}", *marks]) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes, *([""] if notes else []), ""])


def _parse(table: str) -> Cells:
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", table, re.MULTILINE))
    cells: Cells = {}
    for line in re.findall(r"^\| (\S.*) \|$", table, re.MULTILINE):
        row, *marks = line.split(" | ")
        for name, mark in zip(NAMES, marks, strict=False):
            cells[row, name] = reasons.get(mark[4:-1], "")
    return cells
