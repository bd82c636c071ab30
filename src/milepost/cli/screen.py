"""Consoles that a job cannot speak to: notes, errors, labels and names come from others, and reach the terminal as text only.

An escape sequence in an error message could set the title, the clipboard or the colours of the terminal of whoever looks, and a
character that turns the direction of writing around makes one file name look like another.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# What commands a terminal: C0 and C1 but for line feed and tab; and the characters that turn the direction of writing.
COMMANDS = dict.fromkeys((*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)))
COMMANDS |= dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)))
BREAKS = {ord("\n"): " ", ord("\r"): " ", 0x85: " ", 0x2028: " ", 0x2029: " "}


def harmless(text: str) -> str:
    """The text without what would command a terminal; these characters have no width, so a line stays as long as it was."""
    return text if text.isascii() and text.isprintable() else text.translate(COMMANDS)


def one_line(text: str) -> str:
    """Harmless, and without breaks: what stands on a line of its own for other programs to read.  Tabs stay."""
    return text if text.isascii() and text.isprintable() else text.translate(BREAKS).translate(COMMANDS)


class Screen(Console):
    """A console whose text is harmless; its own colours and cursor movements are made of other things than text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)
