# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A sealed base: its guard, its fingerprint, and whether clones may be made of a container.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from typing import Collection, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.config import GUARD, Config, check_legacy, split_line
from ansible_collections.fleet.lxc.plugins.module_utils.container import BROKEN, STOPPED, UNFINISHED, Container, Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BROKEN as DAMAGED
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, MISSING, RESOURCES, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot
from ansible_collections.fleet.lxc.plugins.module_utils.plan import out_of_reach
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import StorageDriver
from ansible_collections.fleet.lxc.plugins.module_utils.storage.registry import Registry

REFUSED = f"{GUARD}.refused"
# Where a distribution writes when packages come and go.
_LANDMARKS = ("etc", "usr", "usr/bin", "var/lib/dpkg/status", "lib/apk/db/installed", "var/lib/rpm", "var/lib/pacman/local")

_SCRIPT = """#!/bin/sh
# {guard}: a sealed base is not started, since its clones stand on its root filesystem.
[ "$LXC_NAME" = {name} ] || exit 0
# liblxc hands the path over with its type or without it.
case $LXC_ROOTFS_PATH in '' | {rootfs} | {path}) ;; *) exit 0 ;; esac
message="{plain} is a sealed base of fleet.lxc and is not started; unseal it with lxc_base state=unsealed"
logger -t fleet.lxc "$message" 2>/dev/null || :
echo "$message" >{refused}
exit 1
"""


def guard_script(base: Container) -> str:
    """The pre-start hook of a sealed base. It refuses this base only: clones by lxc-copy inherit the line."""
    return _SCRIPT.format(
        guard=GUARD,
        name=shlex.quote(base.name),
        plain=base.name,
        rootfs=_quote(base.config.get("lxc.rootfs.path")),
        path=_quote(base.rootfs.path),
        refused=shlex.quote(f"{base.directory}/{REFUSED}"),
    )


def _quote(text: str) -> str:
    # In a case pattern only quotes keep every character literal.
    return "'" + text.replace("'", "'\\''") + "'"


def fingerprint(base: Container, driver: StorageDriver) -> str:
    """Inode, ctime and size of the places where a change of the root filesystem shows.

    No device number: that of a loop device, of LVM or of a btrfs subvolume is another one after the next boot.
    """
    digest = hashlib.sha256()

    def add(name: str, stat: os.stat_result | None) -> None:
        facts = (stat.st_ino, stat.st_ctime_ns, stat.st_size) if stat else None
        digest.update(f"{name} {facts}\n".encode())

    for sign in driver.signs(base.rootfs):
        digest.update(f"{sign}\n".encode())
    layers = driver.layers(base.rootfs)
    if layers:
        with GuestRoot(layers) as guest:
            for path in _LANDMARKS:
                add(path, guest.stat(path))
    return digest.hexdigest()[:32]


def check_source(source: Container | None, name: str, lxcpath: str, driver: StorageDriver | None) -> None:
    """:raises FleetError: MISSING, BROKEN or BUSY for a source that cannot be cloned now."""
    if source is None:
        raise FleetError("there is no such source", container=name, why=f"{lxcpath} has no container of that name", mend="Make it with lxc_base.", kind=MISSING)
    if source.kind == UNFINISHED:
        raise FleetError("is unfinished", container=name, why="the run that made it was cut off", mend="Run that task again.", kind=DAMAGED)
    if source.config is not None:
        check_legacy(source.config, name)
    if source.away:
        raise out_of_reach(source)
    if source.kind == BROKEN or source.rootfs is None or source.config is None or driver is None:
        raise FleetError("has no usable root filesystem", container=name, why=source.damage, mend="Mend its configuration file.", kind=DAMAGED)
    missing = driver.damage(source.rootfs)
    if missing:
        raise FleetError("has no root filesystem", container=name, why=missing, mend="Restore it, or correct lxc.rootfs.path.", kind=DAMAGED)
    if source.state != STOPPED:
        raise FleetError(f"is {source.state} and is not cloned", container=name, mend=f"Stop it first (lxc-stop -n {name}).", kind=BUSY)
    check_unused(source, driver, "is not cloned")


def check_unchanged(base: Container, driver: StorageDriver) -> list[str]:
    """What may be told of a base on whose root filesystem clones are to stand.

    :raises FleetError: CONFLICT when it has changed since it was sealed.
    """
    record = base.provenance
    if record is None or not record.sealed:
        return [f"{base.name} is not sealed: nothing notices when it changes while clones stand on it (lxc_base state=sealed)"]
    if fingerprint(base, driver) != record.fingerprint:
        raise FleetError(
            "has changed since it was sealed, so it is not cloned",
            container=base.name,
            why="its fingerprint differs, and clones stand on the state that was sealed",
            mend="Seal it anew (lxc_base state=sealed; its dependent clones must be removed first).",
            kind=CONFLICT,
        )
    return []


def check_unused(container: Container, driver: StorageDriver, consequence: str, roots: Sequence[mounts.Root] | None = None) -> None:
    """:raises FleetError: BUSY while a process has the root filesystem as its root, under whatever name it was started."""
    pid = driver.runs_on(container.rootfs, roots)
    if pid is not None:
        by = f"process {pid} runs on it" if pid else "it is attached as a loop device"
        raise FleetError(f"{consequence}: its root filesystem is in use", container=container.name, why=by, mend="Stop what runs there.", kind=BUSY)


def obstacle(container: Container, registry: Registry, going: Collection[str]) -> FleetError | None:
    """Why a container's storage would not be removed; None when it would, or is none of ours.

    :param going: the paths of root filesystems that are removed before it.
    """
    if container.away:
        mend = f"{container.away} If it is lost for good, remove {container.directory} by hand."
        return FleetError("is not removed: its storage is out of reach", container=container.name, why=container.damage, mend=mend, kind=RESOURCES)
    record = container.provenance
    rootfs = Rootfs.parse(record.rootfs) if record else container.rootfs
    driver = registry.drivers.get(rootfs.store) if rootfs else None
    if driver is None:
        return None
    try:
        problem = driver.obstacle(rootfs, record.id if record else None, going)
    except FleetError as error:
        problem = error
    if problem:
        problem.container = container.name
    return problem


def with_guard(config: Config, directory: str, wanted: bool) -> Config:
    """The configuration with the guard's hook, or without it."""
    line = ("lxc.hook.pre-start", f"{directory}/{GUARD}")
    if (line in config.items()) == wanted:
        return config
    changed = Config(one for one in config.lines if split_line(one) != line)
    if wanted:
        changed.set(line[0], [line[1], *changed.own(line[0])])
    return changed
