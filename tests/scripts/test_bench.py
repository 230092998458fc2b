"""The benchmark runs, counts what it says, and stops at a wrong reply."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.redis,
    pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two cores are needed"),
]


def run(folder: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    script = f"import sys; from scripts import bench; {code}\nsys.exit(bench.main())"
    return subprocess.run(
        [
            *(sys.executable, "-c", script, "--output", str(folder)),
            *("--sessions", "50", "--connections", "4", "--rounds", "1", *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_bench_writes_the_rounds_it_prints_and_a_chart(tmp_path: Path) -> None:
    done = run(tmp_path, "--only", "fast", "uvicorn")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bench.json").read_text())
    results = report["rounds"]["4"]
    assert set(results) == {"fast", "uvicorn"}
    for name, [round_] in results.items():
        assert 1 < round_["server_us"] < 1e6 / round_["rate"] * 1.1, name  # one core
        assert 0 < round_["p50_us"] <= round_["p99_us"]
        assert f"{name:<11}" in done.stdout
        assert f"{round_['server_us']:.1f}" in done.stdout
    assert results["fast"][0]["redis_us"] > 0
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_bench_stops_at_a_wrong_reply(tmp_path: Path) -> None:
    wrong = (
        "from scripts import bench_servers as servers; "
        "servers.SERVERS[:] = [servers.Server('fast', 'x', servers.bare_uvicorn)]"
    )
    done = run(tmp_path, "--only", "fast", code=wrong)
    assert done.returncode != 0
    assert "a wrong reply" in done.stderr
    assert not (tmp_path / "bench.json").exists()
