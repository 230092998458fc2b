"""The table of docs/gateways/README.md: a row a test, a column a gateway, from what ran."""

import re

from scripts.gateways import DOCS, GATEWAYS

README = DOCS / "README.md"
NAMES = [gateway.name for gateway in GATEWAYS]
BEGIN, END = "<!-- written by make gateways-table -->\n", "<!-- end -->\n"

Cells = dict[tuple[str, str], str]
"""(row, gateway) to the reason why it cannot, or "" when it can."""

ran: Cells = {}


def record(row: str, gateway: str, reason: str | None) -> None:
    ran[row, gateway] = reason or ran.get((row, gateway), "")


def committed() -> str:
    return README.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def write(table: str) -> None:
    text = README.read_text("utf-8")
    README.write_text(text.replace(BEGIN + committed() + END, BEGIN + table + END), "utf-8")


def render() -> str:
    """What ran; a gateway that is not installed here stays as committed."""
    cells = _parse(committed()) | ran
    rows = dict.fromkeys(row for row, _ in ran)
    shown = {(row, name): cells.get((row, name), "not run yet") for row in rows for name in NAMES}
    reasons = list(dict.fromkeys(reason for reason in shown.values() if reason))
    lines = ["| |" + "|".join(f" {name} " for name in NAMES) + "|", "|---" * (len(NAMES) + 1) + "|"]
    for row in rows:
        marks = []
        for name in NAMES:
            reason = shown[row, name]
            marks.append(f"no ({reasons.index(reason) + 1})" if reason else "yes")
        lines.append(" | ".join([f"| {row}", *marks]) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(["", *lines, "", *notes, *([""] if notes else []), ""])


def _parse(table: str) -> Cells:
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", table, re.MULTILINE))
    cells: Cells = {}
    for line in re.findall(r"^\| (\S.*) \|$", table, re.MULTILINE):
        row, *marks = line.split(" | ")
        for name, mark in zip(NAMES, marks, strict=False):
            cells[row, name] = reasons.get(mark[4:-1], "")
    return cells
