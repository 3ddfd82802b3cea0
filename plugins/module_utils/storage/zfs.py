# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""ZFS: ``zfs:POOL/DATASET``, mounted at ``P/N/rootfs``. A clone stands on a snapshot of its base, named after the clone.

They do not share one snapshot, because lxc-destroy removes a clone's snapshot with it and fails when others stand on that
(zfs_destroy in src/lxc/storage/zfs.c); and ZFS refuses two snapshots of one dataset in one command.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from dataclasses import dataclass
from typing import Any, Collection, Iterator, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, MISSING, RESOURCES, UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import SNAPSHOT, Order, Storage, StorageDriver, copy_across
from ansible_collections.fleet.lxc.plugins.module_utils.storage.libzfs import ACLTYPE_POSIX, CANMOUNT_NOAUTO, XATTR_SA, LibZfs, Properties

_PROPERTY = "fleet.lxc:id"
_MADE_FOR = "fleet.lxc:snapshot"
_SEAL = "fleet.lxc-"
_COLUMNS = f"name,type,origin,used,available,mountpoint,{_PROPERTY},{_MADE_FOR}"


@dataclass(frozen=True)
class Dataset:
    """One filesystem or snapshot, as ``zfs list`` tells it. Bytes."""

    name: str
    type: str
    origin: str
    used: int
    available: int
    mountpoint: str
    mark: str  # a snapshot inherits that of its filesystem
    made_for: str  # of a snapshot of ours: the id of the clone, or the generation of the seal


class ZfsDriver(StorageDriver):
    store = "zfs"
    outside = True
    takes = frozenset({"zfs_dataset"})
    capabilities = Capabilities(snapshot=True)

    def __init__(self, runner: Any):
        super().__init__(runner)
        self._datasets: dict[str, Dataset] | None = None

    # What is there

    def refresh(self) -> None:
        self._datasets = None

    def datasets(self) -> dict[str, Dataset]:
        """Every filesystem and snapshot by its name."""
        datasets = self._datasets  # which another thread may forget
        if datasets is None:
            self.runner.require("zfs")
            rows = self.runner.run(["zfs", "list", "-H", "-p", "-t", "filesystem,snapshot", "-o", _COLUMNS]).stdout.splitlines()
            datasets = {}
            for row in rows:
                name, kind, origin, used, available, mountpoint, mark, made_for = row.split("\t")
                datasets[name] = Dataset(
                    name,
                    kind,
                    _value(origin),
                    int(used),
                    int(available) if available.isdigit() else 0,
                    mountpoint,
                    _value(mark),
                    _value(made_for),
                )
            self._datasets = datasets
        return datasets

    @staticmethod
    @functools.lru_cache(maxsize=None)
    def library() -> LibZfs | None:
        try:
            return LibZfs()
        except OSError:
            return None

    def _marked(self, rootfs: Rootfs, mark: str | None) -> Dataset | None:
        """A dataset that bears the mark, or any where none is asked for."""
        dataset = self.datasets().get(rootfs.path)
        return dataset if dataset and (not mark or dataset.mark == mark) else None

    def _snapshots_of(self, name: str) -> list[Dataset]:
        return [one for one in self.datasets().values() if one.type == "snapshot" and one.name.startswith(name + "@")]

    def _clones_of(self, snapshot: str) -> list[str]:
        return [one.name for one in self.datasets().values() if one.origin == snapshot]

    # Places

    def check(self, rootfs: Rootfs) -> None:
        if rootfs.path.startswith("/"):
            raise FleetError(
                f"{rootfs} is a ZFS container of the old kind and is not touched",
                why="LXC 6 and 7 may destroy another dataset than its own",
                mend="Write lxc.rootfs.path = zfs:POOL/DATASET in its configuration (zfs list shows it).",
                kind=UNSUPPORTED,
            )

    def home(self, name: str, lxcpath: str, storage: Storage) -> Rootfs:
        root = storage.zfs_dataset or self.runner.run(["lxc-config", "lxc.bdev.zfs.root"], check=False).stdout.strip() or "lxc"
        return Rootfs(self.store, f"{root}/{name}")

    def place(self, order: Order, name: str) -> Rootfs:
        if order.reader.store != self.store or order.storage.zfs_dataset:
            return self.home(name, order.lxcpath, order.storage)
        return Rootfs(self.store, f"{order.source.path.rpartition('/')[0]}/{name}")

    # Before

    def problems(self, order: Order, targets: Sequence[Rootfs], swept: Collection[Rootfs] = ()) -> list[FleetError]:
        problem = self._root_problem(targets[0].path.rpartition("/")[0]) if targets else None
        if problem:
            return [problem]
        for target in targets:
            root = target.path.rpartition("/")[0]
            if order.method == SNAPSHOT and root.split("/")[0] != order.source.path.split("/")[0]:
                return [FleetError(f"a clone of {order.source.path} cannot be in another pool", mend="Use method: copy.", kind=UNSUPPORTED)]
            stale = [name for name in (target.path, self._snapshot_for(order.source, target)) if name in self.datasets()]
            if target not in swept and stale and (stale[0] == target.path or order.method == SNAPSHOT):
                return [self._taken(stale[0])]
        if order.method != SNAPSHOT:
            self.runner.require("rsync")
            needed = order.reader.used(order.source) * len(targets)
            free = self.datasets()[targets[0].path.rpartition("/")[0]].available if targets else needed
            if needed > free:
                return [
                    FleetError(
                        f"the full copies need {needed >> 20} MiB, the pool has {free >> 20} MiB free",
                        mend="Add space, or use method: snapshot.",
                        kind=RESOURCES,
                    )
                ]
        return []

    @staticmethod
    def _snapshot_for(source: Rootfs, target: Rootfs) -> str:
        return f"{source.path}@{target.path.rpartition('/')[2]}"

    def no_place(self, rootfs: Rootfs, storage: Storage, swept: bool = False) -> FleetError | None:
        problem = self._root_problem(rootfs.path.rpartition("/")[0])
        if problem is None and rootfs.path in self.datasets() and not swept:
            return self._taken(rootfs.path)
        return problem

    def _root_problem(self, root: str) -> FleetError | None:
        """Why no dataset can be made below another."""
        if root not in self.datasets():
            away = self.away(Rootfs(self.store, root))
            return away or FleetError(f"there is no dataset {root}", mend="Set storage.zfs_dataset, or make it (role fleet.lxc.host).", kind=MISSING)
        readonly, key = self.runner.run(["zfs", "get", "-H", "-o", "value", "readonly,keystatus", root]).stdout.split()
        if readonly == "on":
            return FleetError(f"the dataset {root} is read-only", mend=f"Set readonly=off (zfs set readonly=off {root}), or use another.", kind=RESOURCES)
        if key == "unavailable":
            return FleetError(f"the dataset {root} is encrypted and its key is not loaded", mend=f"Load it (zfs load-key {root}).", kind=RESOURCES)
        return None

    def _taken(self, name: str) -> FleetError:
        stood_on = self._clones_of(name)
        return FleetError(
            f"there is already a {'snapshot' if '@' in name else 'dataset'} {name}",
            why=f"{', '.join(stood_on)} stands on it" if stood_on else "no container of this lxcpath with a record of ours has it",
            mend="Choose another name" + ("." if stood_on else f", or remove it with zfs destroy {name} if it is not needed."),
            kind=CONFLICT,
        )

    # Making

    def create(self, rootfs: Rootfs, directory: str, storage: Storage, mark: str) -> None:
        point = f"{directory}/rootfs"
        os.makedirs(point, exist_ok=True)
        self.runner.run(["zfs", "create", "-u", *_properties(point, mark), rootfs.path])
        self.refresh()

    def clone(self, order: Order, target: Rootfs, directory: str, mark: str) -> None:
        point = f"{directory}/rootfs"
        if order.method == SNAPSHOT:
            os.makedirs(point, exist_ok=True)
            snapshot = self._snapshot_for(order.source, target)
            library = self.library()
            if not (library and library.snapshot(snapshot, {_MADE_FOR: mark})):
                self.runner.run(["zfs", "snapshot", "-o", f"{_MADE_FOR}={mark}", snapshot])
            if not (library and library.clone(target.path, snapshot, _numbered(point, mark))):
                self.runner.run(["zfs", "clone", *_properties(point, mark), snapshot, target.path])
        else:
            self.create(target, directory, order.storage, mark)
            copy_across(order, self, target, directory)

    def mark(self, rootfs: Rootfs, mark: str) -> None:
        self.runner.run(["zfs", "set", f"{_PROPERTY}={mark}", rootfs.path])

    def unmark(self, rootfs: Rootfs) -> None:
        self.runner.run(["zfs", "inherit", _PROPERTY, rootfs.path])

    def seal(self, rootfs: Rootfs, generation: str) -> None:
        self.unseal(rootfs)
        self.runner.run(["zfs", "snapshot", "-o", f"{_MADE_FOR}={generation}", f"{rootfs.path}@{_SEAL}{generation}"])
        # The first mount after a snapshot writes a block, even one that is read-only, and what was written is a sign of change.
        mounts.in_private_mounts(lambda: self._mount_once(rootfs))
        self.refresh()

    def _mount_once(self, rootfs: Rootfs) -> None:
        with tempfile.TemporaryDirectory(prefix="fleet.lxc.") as point, self.rootfs_view(rootfs, point):
            pass

    def unseal(self, rootfs: Rootfs) -> None:
        for snapshot in self._snapshots_of(rootfs.path):
            if snapshot.name.partition("@")[2].startswith(_SEAL):
                self.runner.run(["zfs", "destroy", snapshot.name])
        self.refresh()

    # What exists

    def layers(self, rootfs: Rootfs) -> list[str] | None:
        return None

    @contextlib.contextmanager
    def rootfs_view(self, rootfs: Rootfs, point: str, writable: bool = False, devices: bool = False) -> Iterator[str]:
        mounts.mount(rootfs.path, point, "zfs", writable, devices)
        try:
            yield point
        finally:
            mounts.unmount(point)

    def headroom(self, rootfs: Rootfs) -> dict[str, Any]:
        dataset = self.datasets().get(rootfs.path)
        return {"store": self.store, "pool": rootfs.path.split("/")[0], "available": dataset.available if dataset else 0}

    def damage(self, rootfs: Rootfs) -> str:
        dataset = self.datasets().get(rootfs.path)
        if dataset is None:
            return f"the dataset {rootfs.path} is missing"
        return (
            "" if dataset.mountpoint == "legacy" or dataset.mountpoint.startswith("/") else f"the dataset {rootfs.path} has the mountpoint {dataset.mountpoint}"
        )

    def away(self, rootfs: Rootfs) -> FleetError | None:
        pool = rootfs.path.split("/")[0]
        if pool in self.datasets():
            return None
        return FleetError(f"the pool {pool} is not imported", mend=f"Import it (zpool import {pool}).", kind=RESOURCES)

    def obstacle(self, rootfs: Rootfs, mark: str | None, going: Collection[str] = ()) -> FleetError | None:
        dataset = self._marked(rootfs, mark)
        if dataset is None:
            return self.away(rootfs)
        snapshots = self._snapshots_of(dataset.name)
        clones = [name for snapshot in snapshots for name in self._clones_of(snapshot.name) if name not in going]
        below = [name for name in self.datasets() if name.startswith(f"{dataset.name}/") and "@" not in name]
        foreign = [snapshot.name for snapshot in snapshots if not snapshot.made_for]
        for names, why in ((clones, "stand on its snapshots"), (below, "lie below it"), (foreign, "are snapshots that were not made by fleet.lxc")):
            if names:
                return FleetError(
                    f"the dataset {dataset.name} is not removed",
                    why=f"{', '.join(names[:10])}{' …' if len(names) > 10 else ''} {why}",
                    mend="Remove those first (zfs destroy), if they are not needed.",
                    kind=BUSY,
                )
        return None

    def lower_of(self, rootfs: Rootfs) -> list[str]:
        dataset = self.datasets().get(rootfs.path)
        return [dataset.origin.partition("@")[0]] if dataset and dataset.origin else []

    def runs_on(self, rootfs: Rootfs, roots: Sequence[mounts.Root] | None = None) -> int | None:
        for pid, _stat, mount in mounts.roots() if roots is None else roots:
            if mount.fstype == "zfs" and mount.source == rootfs.path:
                return pid
        return None

    def signs(self, rootfs: Rootfs) -> list[str]:
        seals = sorted(one.name for one in self._snapshots_of(rootfs.path) if one.name.partition("@")[2].startswith(_SEAL))
        if not seals:
            return []
        answer = self.runner.run(["zfs", "get", "-H", "-p", "-o", "value", f"guid,written@{seals[-1].partition('@')[2]}", rootfs.path])
        return [seals[-1], *answer.stdout.split()]

    def discard(self, rootfs: Rootfs, mark: str | None = None) -> None:
        dataset = self.datasets().get(rootfs.path)
        if dataset and mark and dataset.mark != mark:
            return
        origins = self._made_for(rootfs, dataset, mark)
        if dataset:
            for snapshot in self._snapshots_of(dataset.name):
                self.runner.run(["zfs", "destroy", snapshot.name])
            self.runner.run(["zfs", "destroy", dataset.name])
        for origin in origins:
            self.runner.run(["zfs", "destroy", origin])
        self.refresh()

    def _made_for(self, rootfs: Rootfs, dataset: Dataset | None, mark: str | None) -> list[str]:
        """The snapshot that a clone stands on, or stood on before a run was cut off. ``zfs send`` carries its mark to replicas, which are not ours."""
        if dataset:
            origin = self.datasets().get(dataset.origin)
            return [origin.name] if origin and origin.made_for and origin.made_for == dataset.mark else []
        leaf = rootfs.path.rpartition("/")[2]
        marked = [one.name for one in self.datasets().values() if one.type == "snapshot" and mark and one.made_for == mark and one.name.endswith(f"@{leaf}")]
        if not marked:
            return []
        rows = self.runner.run(["zfs", "get", "-H", "-o", "name,source", _MADE_FOR, *marked]).stdout.splitlines()
        return [name for name, source in (row.split("\t") for row in rows) if source == "local"]

    def used(self, rootfs: Rootfs) -> int:
        dataset = self.datasets().get(rootfs.path)
        return dataset.used if dataset else 0


def _value(field: str) -> str:
    return "" if field == "-" else field


def _properties(mountpoint: str, mark: str) -> list[str]:
    # A clone inherits from its parent in the tree, not from its origin; and without acltype, ACLs are neither set nor copied.
    return ["-o", "acltype=posixacl", "-o", "xattr=sa", "-o", f"mountpoint={mountpoint}", "-o", "canmount=noauto", "-o", f"{_PROPERTY}={mark}"]


def _numbered(mountpoint: str, mark: str) -> Properties:
    """The same for the library."""
    return {"acltype": ACLTYPE_POSIX, "xattr": XATTR_SA, "mountpoint": mountpoint, "canmount": CANMOUNT_NOAUTO, _PROPERTY: mark}
