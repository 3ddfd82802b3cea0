# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Container names: Ansible host ranges expanded, and what a name may be.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Collection, Iterable, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils.errors import INVALID, FleetError

MOST_NAMES = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_RANGE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Name:
    """One container's name, with the number that its last range gave it and the text before its first."""

    name: str
    index: int | None = None
    set: str = ""

    def __str__(self) -> str:
        return self.name


def validate(name: str) -> str:
    """Return the name when LXC, the file system and DNS can all bear it.

    :raises FleetError: INVALID.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise FleetError(
            f"{name!r} is not a container name",
            why="a name has 1 to 63 characters: letters, digits, '-' and '.', begins with a letter or digit, and has no '..'",
            kind=INVALID,
        )
    return name


def abridged(names: Collection[str]) -> str:
    """The first ten of some names, and how many more there are."""
    shown = ", ".join(list(names)[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


def expand(patterns: Iterable[str]) -> list[Name]:
    """Expand names and Ansible host ranges (``web-[001:300]``, ``db-[a:f]``, ``n[1:9:2]``).

    :raises FleetError: INVALID for a bad name or range, a name given twice, or more than 10,000 names.
    """
    names: list[Name] = []
    for pattern in patterns:
        names.extend(_expand(pattern, MOST_NAMES - len(names)))
    if not names:
        raise FleetError("no container name was given", mend="Set the option name.", kind=INVALID)
    seen: set[str] = set()
    for name in names:
        if name.name in seen:
            raise FleetError(f"{name.name!r} is named twice in one call", kind=INVALID)
        seen.add(name.name)
    return names


def _expand(pattern: str, room: int) -> list[Name]:
    ranges = list(_RANGE.finditer(pattern))
    if not ranges:
        return [Name(validate(pattern), None, pattern)] if room > 0 else _too_many(pattern)
    choices: list[Sequence[tuple[str, int | None]]] = [_choices(pattern, match.group(1)) for match in ranges]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > room:
        _too_many(pattern)
    prefix = pattern[: ranges[0].start()]
    partial: list[tuple[str, int | None]] = [("", None)]
    end = 0
    for match, choice in zip(ranges, choices):
        between = pattern[end : match.start()]
        partial = [(text + between + piece, number) for text, _number in partial for piece, number in choice]
        end = match.end()
    return [Name(validate(text + pattern[end:]), number, prefix) for text, number in partial]


class _Numbers(Sequence):
    """The pieces of a numeric range, made one by one so that a huge range costs nothing to refuse."""

    def __init__(self, first: int, last: int, step: int, width: int):
        self.numbers, self.width = range(first, last + 1, step), width

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position):
        number = self.numbers[position]
        return str(number).zfill(self.width), number


def _choices(pattern: str, text: str) -> Sequence[tuple[str, int | None]]:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise FleetError(f"{pattern!r} has a bad range [{text}]", mend="Write [first:last] or [first:last:step].", kind=INVALID)
    first, last = parts[0], parts[1]
    if len(parts) == 3 and not (parts[2].isascii() and parts[2].isdigit() and 0 < len(parts[2]) < 10 and int(parts[2]) > 0):
        raise FleetError(f"{pattern!r} has a range with the bad step {parts[2]!r}", kind=INVALID)
    step = int(parts[2]) if len(parts) == 3 else 1
    if all(part.isascii() and part.isdigit() and len(part) < 19 for part in (first, last)):
        width = len(first) if first.startswith("0") and len(first) > 1 else 0
        if width and len(last) != width:
            raise FleetError(f"{pattern!r} has a range whose ends differ in length", mend="Pad both with zeros.", kind=INVALID)
        if int(first) > int(last):
            raise FleetError(f"{pattern!r} has a range that ends before it begins", kind=INVALID)
        return _Numbers(int(first), int(last), step, width)
    letters = string.ascii_letters
    if len(first) == len(last) == 1 and first in letters and last in letters:
        chosen = letters[letters.index(first) : letters.index(last) + 1 : step]
        if not chosen or first.islower() != last.islower():
            raise FleetError(f"{pattern!r} has a range that ends before it begins", kind=INVALID)
        return [(letter, None) for letter in chosen]
    raise FleetError(f"{pattern!r} has a bad range [{text}]", why="both ends are numbers, or both are single letters", kind=INVALID)


def _too_many(pattern: str) -> list[Name]:
    raise FleetError(f"{pattern!r} makes more than {MOST_NAMES:,} names in one call", mend="Split it over several calls.", kind=INVALID)
