# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""LXC's own bookkeeping of clones: ``lxc_rdepends`` of a clone, ``lxc_snapshots`` of its base; pairs of lines, lxcpath and name.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
from typing import Collection

from ansible_collections.fleet.lxc.plugins.module_utils.container import Container
from ansible_collections.fleet.lxc.plugins.module_utils.records import write_atomically


def rdepends(source: Container) -> str:
    """``lxc_rdepends`` of a clone: what its source depends on, and the source."""
    inherited = ""
    if source.rootfs.store == "overlay":
        with contextlib.suppress(OSError):
            with open(f"{source.directory}/lxc_rdepends", encoding="utf-8") as file:
                inherited = file.read()
    return f"{inherited}{source.lxcpath}\n{source.name}\n"


def pairs(text: str) -> list[tuple[str, str]]:
    lines = text.splitlines()
    return list(zip(lines[::2], lines[1::2]))


def keep_snapshots(directory: str, added: Collection[tuple[str, str]] = (), removed: Collection[tuple[str, str]] = ()) -> None:
    """Bring a container's ``lxc_snapshots`` up to date.

    Of its own lxcpath only what exists stays in it; what another lxcpath has lost may be on a disk that is not mounted now.

    :param directory: the container that has clones.
    """
    path, text, removed = f"{directory}/lxc_snapshots", "", set(removed)
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8") as file:
            text = file.read()
    if text.strip().isdigit():
        # The bare counter of LXC before 1.1, which liblxc keeps as it is.
        kept = f"{max(0, int(text) + len(added) - len(removed))}\n"
    else:
        here = os.path.dirname(directory)
        known = [pair for pair in pairs(text) if pair not in removed and (pair[0] != here or os.path.isdir("/".join(pair)))]
        kept = "".join(f"{lxcpath}\n{name}\n" for lxcpath, name in dict.fromkeys([*known, *added]))
    if kept.strip() in ("", "0"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    elif kept != text and os.path.isdir(directory):
        write_atomically(path, kept, 0o644)


def owners_of(container: Container) -> list[tuple[str, str]]:
    """The containers in whose ``lxc_snapshots`` a container may stand."""
    owners: list[tuple[str, str]] = []
    with contextlib.suppress(OSError):
        with open(f"{container.directory}/lxc_rdepends", encoding="utf-8") as file:
            owners = pairs(file.read())
    record = container.provenance
    if record and record.source:
        owners.append((record.source_lxcpath or container.lxcpath, record.source))
    return owners
