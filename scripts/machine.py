"""What every report says of its run: date, commit and machine."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def machine() -> dict[str, str]:
    """When and on what a report was made, and of which version of this repository."""
    processor, memory = platform.machine(), ""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        processor = found[1] if found else processor
        found = re.search(r"MemTotal: *(\d+) kB", Path("/proc/meminfo").read_text())
        memory = f"{int(found[1]) / 2**20:.0f} GiB" if found else ""
    except OSError:
        pass  # not Linux
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
        "processor": f"{processor}, {os.cpu_count()} cores",
        "memory": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit of this repository, with "-dirty" when files differ from it; "" outside of git."""
    command = "git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"
    try:
        shown = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except OSError:  # there is no git
        return ""
    return shown.stdout.strip()
