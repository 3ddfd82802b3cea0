# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A container's claim and record on disk, and files written whole.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import replace
from datetime import datetime, timezone

from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.container import INTENT, PROVENANCE, Provenance
from ansible_collections.fleet.lxc.plugins.module_utils.errors import CONFLICT, RESOURCES, FleetError

VERSION = "0.1.0"


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def claim(directory: str, intent: Provenance) -> None:
    """Take a container's directory for ourselves and say in it what it will be.

    :raises FleetError: CONFLICT when another was faster.
    """
    try:
        os.mkdir(directory, 0o770)
    except FileExistsError as error:
        raise FleetError("appeared while this call ran", container=intent.name, mend="Run again.", kind=CONFLICT) from error
    try:
        os.chmod(directory, 0o770)  # whatever the umask is, as liblxc does
        write_file(f"{directory}/{INTENT}", intent.dumps(), 0o640)
    except BaseException:
        os.rmdir(directory)
        raise


def complete(directory: str) -> None:
    """Turn a container's intent into its provenance, once all of it has reached the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs(descriptor)
        os.rename(f"{directory}/{INTENT}", f"{directory}/{PROVENANCE}")
        syncfs(descriptor)
    finally:
        os.close(descriptor)


def reconfigure(directory: str, before: Provenance, config: Config, record: Provenance) -> None:
    """Write a container's configuration anew, and the record that goes with it.

    :param before: the record as it is.
    """
    known = {**before.inherited, **record.inherited}
    if known != before.inherited:
        # Cut off from here on, what the keys had before is not forgotten.
        write_atomically(f"{directory}/{PROVENANCE}", replace(before, inherited=known).dumps())
    write_atomically(f"{directory}/config", str(config))
    write_atomically(f"{directory}/{PROVENANCE}", record.dumps())


def write_file(path: str, text: str, mode: int) -> None:
    """Write a new file, whole or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        data = text.encode("utf-8", "surrogateescape")
        while data:
            data = data[os.write(descriptor, data) :]
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def write_atomically(path: str, text: str, mode: int | None = None) -> None:
    """Replace a file in one moment, its owner and mode kept."""
    temporary = f"{path}.fleet.lxc.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    write_file(temporary, text, 0o640 if mode is None else mode)
    with contextlib.suppress(FileNotFoundError):
        old = os.stat(path)
        os.chown(temporary, old.st_uid, old.st_gid)
        mode = old.st_mode & 0o7777 if mode is None else mode
    if mode is not None:
        os.chmod(temporary, mode)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, path)


def syncfs(descriptor: int, mend: str = "") -> None:
    """:raises FleetError: RESOURCES when something did not reach the disk."""
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
        raise FleetError("cannot write to the disk", why=os.strerror(ctypes.get_errno()), mend=mend, kind=RESOURCES)
