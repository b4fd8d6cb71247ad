"""The fenced blocks of README, CONTRIBUTING and docs/, and the commands in them.

    [(block.where, command) for block in blocks(README) for command in commands(block)]

A block without a language is what a user types into a shell, `python` runs as it stands, `text` is a picture or a formula.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*).*\n((?:.*\n)*?)\1```$", re.M)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, from top to bottom, without its indentation."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: found.start()].count("\n") + 1, found[2], re.sub(rf"(?m)^{found[1]}", "", found[3]))
        for found in _FENCE.finditer(text)
    ]


def commands(block: Block) -> Iterator[str]:
    """The lines of a shell block, continued ones joined, comments and blank lines left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s+)#.*$", "", line).strip()
        if command:
            yield " ".join(command.split()) if "'" not in command and '"' not in command else command
