"""Every command block of docs/runbooks.md is run."""

from pathlib import Path

import pytest

from tests.runbooks.machines import BLOCKS, PAGE

SOURCES = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))


@pytest.mark.parametrize("heading", [heading for heading, blocks in BLOCKS.items() if blocks])
def test_blocks_of_each_section_are_run(heading: str) -> None:
    assert f'"{heading}"' in SOURCES


def test_every_block_of_the_page_is_one_of_a_section() -> None:
    assert PAGE.count("```sh\n") == sum(map(len, BLOCKS.values())) > 25
