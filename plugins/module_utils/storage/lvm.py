# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""LVM: ``lvm:/dev/VG/LV``, thick or thin, told apart by what ``lvs`` says of the volume.

A thin snapshot is a volume of its own in the pool. A thick one is a copy-on-write area over its origin: it cannot be
snapshotted itself, it is lost when the area is full, and removing the origin would take it along.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import tempfile
import threading
from typing import Any, Collection, Iterator, Mapping, Sequence

from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.capabilities import Capabilities
from ansible_collections.fleet.lxc.plugins.module_utils.container import Rootfs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import BUSY, CONFLICT, INVALID, MISSING, RESOURCES, UNSUPPORTED, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage import filesystem
from ansible_collections.fleet.lxc.plugins.module_utils.storage.driver import SNAPSHOT, Order, Storage, StorageDriver, copy_across
from ansible_collections.fleet.lxc.plugins.module_utils.storage.lvm_report import GROWS, TAG, Group, Volume, report, suspended

# lvm(8), VALID NAMES.
_RESERVED = re.compile(r"^(snapshot|pvmove)|_([crtv]data|[crt]meta|[civ]orig(in)?|wcorig|mimage|rimage|mlog|pmspare)")
# What LVM says where a killed command had a thin device made that its metadata does not have yet.
_HALF_MADE = re.compile(r"Thin pool (\S+) .*already contain thin device with device_id (\d+)")
_MOST_PERCENT = 95.0
_WARN_PERCENT = 80.0
_MIB = 1 << 20


class LvmDriver(StorageDriver):
    store = "lvm"
    outside = True
    takes = frozenset({"size", "fstype", "vg", "thinpool", "cow_size"})
    # LVM's own lock of the VG makes lvcreate one at a time; what is before and after that need not wait for another.
    capabilities = Capabilities(snapshot=True)

    def __init__(self, runner: Any):
        super().__init__(runner)
        self._seen: tuple[dict[str, Volume], dict[str, Group]] | None = None
        self._standing: dict[str, list[str]] | None = None
        self._changing = threading.Lock()
        self._cow_size = 0
        self._made: frozenset[str] = frozenset()

    # What is there

    def refresh(self) -> None:
        self._seen = self._standing = None

    def volumes(self) -> dict[str, Volume]:
        """Every logical volume by its path /dev/VG/LV."""
        return self._observe()[0]

    def groups(self) -> dict[str, Group]:
        """Every volume group by its name."""
        return self._observe()[1]

    def _observe(self) -> tuple[dict[str, Volume], dict[str, Group]]:
        seen = self._seen  # which another thread may forget
        if seen:
            return seen
        seen = self._seen = report(self.runner)
        return seen

    def _volume(self, rootfs: Rootfs) -> Volume:
        """:raises FleetError: MISSING when there is no such volume."""
        volume = self.volumes().get(rootfs.path)
        if volume is None:
            raise FleetError(f"the logical volume {rootfs.path} is missing", why="lvs does not list it", mend="See vgs and vgchange -ay.", kind=MISSING)
        self._require_active(volume)
        return self._resumed(volume)

    def _marked(self, rootfs: Rootfs, mark: str | None) -> Volume | None:
        """A volume that bears the mark, or any where none is asked for."""
        volume = self.volumes().get(rootfs.path)
        return volume if volume and (not mark or TAG + mark in volume.tags) else None

    @staticmethod
    def _require_active(volume: Volume) -> None:
        if not volume.active:
            raise FleetError(f"the logical volume {volume.path} is not active", why="so it has no device", mend=_activation(volume), kind=MISSING)

    def _resumed(self, volume: Volume) -> Volume:
        """A volume that can be read. A command of LVM that was killed in the middle leaves devices suspended, and whoever reads such a one
        waits for ever. One that is still at work has the VG locked, and ours waits for it.
        """
        needed = [volume, *(self.volumes().get(f"/dev/{volume.vg}/{name}") for name in (volume.pool, volume.origin) if name)]
        devices, found = suspended(), False
        for one in reversed([one for one in needed if one]):
            if devices & {one.device + suffix for suffix in ("", "-real", "-cow", "-tpool")}:
                self.runner.run(["lvchange", "-q", "--refresh", one.path[5:]])
                found = True
        if found:
            self.refresh()
        return volume

    def _change(self, argv: list[str]) -> None:
        """Run a command of LVM that changes something; one at a time, as LVM does it anyway.

        One that was killed between the kernel and LVM's own metadata leaves a thin device that LVM is still to make, and no command
        gets past that. The kernel does not delete a device that is active, and what was not made yet holds nothing.
        """
        with self._changing:
            seen: set[str] = set()
            while True:
                try:
                    self.runner.run(argv)
                    return
                except FleetError as error:
                    half_made = _HALF_MADE.search(str(error))
                    if not half_made or half_made[0] in seen:
                        raise
                    seen.add(half_made[0])
                    self.runner.run(["dmsetup", "message", half_made[1], "0", f"delete {half_made[2]}"])

    def _lower(self, volume: Volume) -> Volume | None:
        """The volume without which this one is lost: its origin, unless both are thin in one pool, which keeps what they share.

        A thin volume may have an external origin: one that is thick, or in another pool.
        """
        origin = self.volumes().get(f"/dev/{volume.vg}/{volume.origin}") if volume.origin else None
        return None if origin is None or (volume.thin and origin.thin and volume.pool == origin.pool) else origin

    def minds_writes(self, rootfs: Rootfs) -> bool:
        # Each write to a thick origin goes into every area above it, which is lost when it is full; to an external origin, into the volume itself.
        return bool(self.lower_of(rootfs))

    def _standing_on(self, rootfs: Rootfs) -> list[str]:
        standing = self._standing  # which another thread may forget
        if standing is None:
            standing = {}
            for volume in self.volumes().values():
                lower = self._lower(volume)
                if lower:
                    standing.setdefault(lower.path, []).append(volume.path)
            self._standing = standing
        return standing.get(rootfs.path, [])

    # Places

    def check(self, rootfs: Rootfs) -> None:
        if not re.fullmatch(r"/dev/[^/]+/[^/]+", rootfs.path):
            raise FleetError(f"{rootfs} is no logical volume", why="a volume's path is /dev/VG/LV", kind=UNSUPPORTED)

    def home(self, name: str, lxcpath: str, storage: Storage) -> Rootfs:
        vg = storage.vg or self._configured("lxc.bdev.lvm.vg") or "lxc"
        return Rootfs(self.store, f"/dev/{vg}/{name}")

    def place(self, order: Order, name: str) -> Rootfs:
        if order.reader.store != self.store:
            return self.home(name, order.lxcpath, order.storage)
        vg = order.source.path.split("/")[2]
        return Rootfs(self.store, f"/dev/{vg if order.method == SNAPSHOT else order.storage.vg or vg}/{name}")

    def _configured(self, key: str) -> str:
        return self.runner.run(["lxc-config", key], check=False).stdout.strip()

    # Before

    def problems(self, order: Order, targets: Sequence[Rootfs], swept: Collection[Rootfs] = ()) -> list[FleetError]:
        found = [problem for target in targets for problem in self._name_problems(target, target in swept)]
        if order.method == SNAPSHOT:
            found += self._snapshot_problems(order, len(targets))
        else:
            found += self._copy_problems(order, targets)
        return found

    def _name_problems(self, target: Rootfs, swept: bool) -> list[FleetError]:
        name = target.path.rpartition("/")[2]
        if _RESERVED.search(name):
            return [FleetError(f"{name} is a name that LVM keeps for itself", mend="Choose another name.", kind=INVALID)]
        if swept or target.path not in self.volumes():
            return []
        return [
            FleetError(
                f"there is already a logical volume {target.path}",
                why="no container of this lxcpath with a record of ours has it",
                mend=f"Choose another name, or remove it with lvremove {target.path} if it is not needed.",
                kind=CONFLICT,
            )
        ]

    def _snapshot_problems(self, order: Order, count: int) -> list[FleetError]:
        source, storage = self._volume(order.source), order.storage
        has = storage.fstype and filesystem.filesystem_in(source.path)
        pool, lies = (source.pool, f"it is in {source.pool}") if source.thin else (None, "it is thick")
        for option, asked, is_so, what, why in (
            ("vg", storage.vg, source.vg, f"be in the VG {storage.vg}", f"it is in {source.vg}"),
            ("thinpool", storage.thinpool, pool, f"be in the thin pool {storage.thinpool}", lies),
            ("fstype", storage.fstype, has, f"have the filesystem {storage.fstype}", f"it has {has or 'another'}"),
        ):
            if asked not in (None, is_so):
                mend = f"Leave storage.{option} out, or use method: copy."
                return [FleetError(f"a snapshot of {source.path} cannot {what}", why=why, mend=mend, kind=UNSUPPORTED)]
        if source.thin:
            if storage.cow_size:
                return [_no_area(f"a clone of {source.path}, which is thin,")]
            filesystem.require_renewal(self.runner, source.path)
            if storage.size and self._rounded(storage.size, source.vg) < source.size:
                return [_smaller(source.size)]
            return self._pool_problems(f"/dev/{source.vg}/{source.pool}", filesystem.renewal_cost(source.path) * count)
        if source.thick_snapshot:
            return [
                FleetError(
                    f"{source.path} is a thick snapshot, which LVM cannot snapshot again",
                    mend=f"Clone {source.origin} instead, use method: copy, or keep the base on a thin pool.",
                    kind=UNSUPPORTED,
                )
            ]
        if storage.size:
            return [
                FleetError(
                    "a thick snapshot has the size of its origin", mend="Set storage.cow_size for its copy-on-write area, or use method: copy.", kind=INVALID
                )
            ]
        filesystem.require_renewal(self.runner, source.path)
        group = self.groups()[source.vg]
        each, free = self.cow_size(source, storage, count), group.free
        # Of what is left over, no area is made that is full at once.
        least = max(each if storage.cow_size else 4 * group.extent, self._born_with(source))
        if storage.cow_size and each < least:
            return [
                FleetError(
                    f"storage.cow_size must be {least // _MIB}M or more",
                    why=f"a clone of {source.path} gets a UUID of its own, for which the whole log of its XFS is written anew",
                    mend="Raise it, leave it out, or make the base with fstype ext4 or on a thin pool.",
                    kind=INVALID,
                )
            ]
        if each < least or each * count > free:
            return [
                FleetError(
                    f"the VG {source.vg} has {free // _MIB} MiB free, too little for {count} copy-on-write areas of {max(each, least) // _MIB} MiB",
                    mend=f"Add space (vgextend {source.vg} DEVICE), set a smaller storage.cow_size, or keep the base on a thin pool.",
                    kind=RESOURCES,
                )
            ]
        return []

    def _rounded(self, size: int, vg: str) -> int:
        """A size as LVM makes it, of whole extents."""
        extent = self.groups()[vg].extent
        return -(-size // extent) * extent

    def _born_with(self, source: Volume) -> int:
        """Bytes of a copy-on-write area that are taken before anybody writes; LVM's own tables of what was copied included."""
        return self._rounded(filesystem.renewal_cost(source.path) * 65 // 64, source.vg)

    def cow_size(self, source: Volume, storage: Storage, count: int) -> int:
        """Bytes of a thick snapshot's copy-on-write area: as asked, else a fifth of the origin beside what it is born with,
        at most what the VG has for each.
        """
        extent = self.groups()[source.vg].extent
        wanted = storage.cow_size or min(max(source.size // 5, 64 * _MIB), source.size) + self._born_with(source)
        if not storage.cow_size:
            wanted = min(wanted, self.groups()[source.vg].free // max(count, 1) // extent * extent)
        return self._rounded(wanted, source.vg)

    def _copy_problems(self, order: Order, targets: Sequence[Rootfs]) -> list[FleetError]:
        if order.storage.cow_size:
            return [_no_area("a full copy")]
        self.runner.require("rsync", "mount")
        size, fstype = filesystem.measures(order)
        filesystem.require(self.runner, fstype)
        used = order.reader.used(order.source)
        if size < used:
            return [filesystem.too_small(size, used)]
        vg = targets[0].path.split("/")[2] if targets else ""
        if targets and vg not in self.groups():
            return [_no_group(vg)]
        pool = self._pool(vg, order) if targets else None
        if pool:
            return self._pool_problems(f"/dev/{vg}/{pool}", used * len(targets))
        free = self.groups()[vg].free if targets else 0
        size = self._rounded(size, vg) if targets else size
        if size * len(targets) > free:
            return [
                FleetError(
                    f"{len(targets)} full copies need {size * len(targets) // _MIB} MiB, the VG {vg} has {free // _MIB} MiB free",
                    mend=f"Add space (vgextend {vg} DEVICE), or set storage.size or storage.thinpool.",
                    kind=RESOURCES,
                )
            ]
        return []

    def _pool(self, vg: str, order: Order | None, storage: Storage | None = None) -> str | None:
        """The thin pool for a new volume: as asked, that of the source, or the one that LXC is configured for and that is there."""
        storage = order.storage if order else storage
        if storage.thinpool:
            pool = self.volumes().get(f"/dev/{vg}/{storage.thinpool}")
            if not pool or not pool.is_pool:
                raise FleetError(
                    f"{vg} has no thin pool {storage.thinpool}",
                    mend="Set storage.thinpool to one of its pools, or make it (role fleet.lxc.host).",
                    kind=MISSING,
                )
            return storage.thinpool
        source = self.volumes().get(order.source.path) if order and order.reader.store == self.store else None
        if source and source.vg == vg:
            return source.pool if source.thin else None
        pool = self.volumes().get(f"/dev/{vg}/{self._configured('lxc.bdev.lvm.thin_pool') or 'lxc'}")
        return pool.name if pool and pool.is_pool else None

    def _pool_problems(self, path: str, needed: int) -> list[FleetError]:
        pool = self.volumes()[path]
        mend = f"Extend it (lvextend -L +SIZE {pool.vg}/{pool.name}; for metadata lvextend --poolmetadatasize +SIZE)."
        for what, percent in (("data", pool.data_percent), ("metadata", pool.metadata_percent)):
            if percent >= _MOST_PERCENT:
                return [FleetError(f"the {what} of the thin pool {pool.vg}/{pool.name} is {percent:g}% full", mend=mend, kind=RESOURCES)]
        free = int(pool.size * (1 - pool.data_percent / 100))
        if needed > free:
            return [
                FleetError(f"the clones need {needed // _MIB} MiB, the thin pool {pool.vg}/{pool.name} has {free // _MIB} MiB free", mend=mend, kind=RESOURCES)
            ]
        return []

    # Making

    def no_place(self, rootfs: Rootfs, storage: Storage, swept: bool = False) -> FleetError | None:
        vg = rootfs.path.split("/")[2]
        if vg not in self.groups():
            return _no_group(vg)
        for problem in self._name_problems(rootfs, swept):
            return problem
        filesystem.require(self.runner, storage.fstype)
        size, pool = storage.size or filesystem.DEFAULT_SIZE, self._pool(vg, None, storage)
        if pool:
            return next(iter(self._pool_problems(f"/dev/{vg}/{pool}", 0)), None)
        free = self.groups()[vg].free
        if size > free and not swept:
            what = f"{rootfs.path} needs {size >> 20} MiB, the VG {vg} has {free >> 20} MiB free"
            return FleetError(what, mend="Extend it (vgextend), or set storage.size.", kind=RESOURCES)
        return None

    def create(self, rootfs: Rootfs, directory: str, storage: Storage, mark: str) -> None:
        vg = rootfs.path.split("/")[2]
        os.makedirs(f"{directory}/rootfs", exist_ok=True)
        self._new_volume(rootfs, storage.size or filesystem.DEFAULT_SIZE, self._pool(vg, None, storage), mark)
        self.refresh()
        filesystem.make(self.runner, rootfs.path, storage.fstype)

    def _new_volume(self, rootfs: Rootfs, size: int, pool: str | None, mark: str) -> None:
        _empty, _dev, vg, name = rootfs.path.split("/")
        place = ["-V", f"{size}b", "--thinpool", f"{vg}/{pool}"] if pool else ["-L", f"{size}b", vg]
        self._change(["lvcreate", "-q", "-y", "-Wy", "--addtag", TAG + mark, "-n", name, *place])

    def prepare(self, order: Order, targets: Mapping[str, Rootfs]) -> None:
        """Make all snapshots by one command: each of LVM's reads every disk before it does anything."""
        self._cow_size, self._made = 0, frozenset()
        if order.method == SNAPSHOT:
            source = self._volume(order.source)
            self._cow_size = 0 if source.thin else self.cow_size(source, order.storage, len(targets))
            if len(targets) > 1:
                lines = [shlex.join(self._snapshot(source, target, mark)) for mark, target in targets.items()]
                with tempfile.NamedTemporaryFile("w", prefix="fleet.lxc-") as script:
                    script.write("\n".join(["#!lvm", *lines, ""]))
                    script.flush()
                    # It ends with the first that fails; those are tried again, one by one.
                    self.runner.run(["lvm", script.name], check=False, timeout=self.runner.timeout * len(targets))
                self.refresh()
                volumes = self.volumes()
                self._made = frozenset(t.path for mark, t in targets.items() if t.path in volumes and TAG + mark in volumes[t.path].tags)

    def _snapshot(self, source: Volume, target: Rootfs, mark: str) -> list[str]:
        kind = ["-kn", "-ay"] if source.thin else ["-L", f"{self._cow_size}b"]
        return ["lvcreate", "-q", "-y", "-s", *kind, "-prw", "--addtag", TAG + mark, "-n", target.path.rpartition("/")[2], f"{source.vg}/{source.name}"]

    def clone(self, order: Order, target: Rootfs, directory: str, mark: str) -> None:
        os.makedirs(f"{directory}/rootfs", exist_ok=True)
        if order.method == SNAPSHOT:
            source = self._volume(order.source)
            if target.path not in self._made:
                self._change(self._snapshot(source, target, mark))
            filesystem.renew(self.runner, target.path)
            if order.storage.size and order.storage.size > source.size:
                filesystem.require_growth(self.runner, target.path, order.storage.size)
                self._extend(target, order.storage.size, f"{directory}/rootfs")
            return
        size, fstype = filesystem.measures(order)
        self._new_volume(target, size, self._pool(target.path.split("/")[2], order), mark)
        filesystem.make(self.runner, target.path, fstype)
        copy_across(order, self, target, directory)

    def counted(self, order: Order) -> bool:
        return order.method == SNAPSHOT and not self._volume(order.source).thin

    def mark(self, rootfs: Rootfs, mark: str) -> None:
        self.runner.run(["lvchange", "-q", "--addtag", TAG + mark, rootfs.path[5:]])

    def seal(self, rootfs: Rootfs, generation: str) -> None:
        if self._volume(rootfs).attr[1] != "r":
            self.runner.run(["lvchange", "-q", "-pr", rootfs.path[5:]])
        self.refresh()

    def unseal(self, rootfs: Rootfs) -> None:
        if self._volume(rootfs).attr[1] == "r":
            self.runner.run(["lvchange", "-q", "-prw", rootfs.path[5:]])
        self.refresh()

    # What exists

    def layers(self, rootfs: Rootfs) -> list[str] | None:
        return None

    @contextlib.contextmanager
    def rootfs_view(self, rootfs: Rootfs, point: str, writable: bool = False, devices: bool = False) -> Iterator[str]:
        volume = self.volumes().get(rootfs.path)
        if volume:
            self._require_active(volume)
            self._resumed(volume)
        with filesystem.view(self.runner, rootfs.path, point, writable, devices):
            yield point

    def size(self, rootfs: Rootfs) -> int | None:
        volume = self.volumes().get(rootfs.path)
        return (volume.grows_from or volume.size) if volume and not volume.thick_snapshot else None

    def block_filesystem(self, rootfs: Rootfs) -> tuple[int, str] | None:
        volume = self._volume(rootfs)
        # Of a thick snapshot, LVM tells the size of the area.
        origin = self._lower(volume) if volume.thick_snapshot else None
        return (origin or volume).size, filesystem.filesystem_in(rootfs.path)

    def granule(self, rootfs: Rootfs) -> int:
        group = self.groups().get(rootfs.path.split("/")[2])
        return group.extent if group else 1

    def grow(self, rootfs: Rootfs, size: int, point: str) -> None:
        volume = self._volume(rootfs)
        if volume.thick_snapshot:
            raise FleetError(f"{rootfs.path} is a thick snapshot and keeps its origin's size", mend="Leave storage.size out.", kind=INVALID)
        size = self._rounded(size, volume.vg)
        if size < volume.size:
            raise _smaller(volume.size)
        # Until the filesystem has grown, too, the volume counts as not grown, and the next run goes on.
        filesystem.require_growth(self.runner, rootfs.path, size)
        tag = f"{GROWS}{volume.grows_from or volume.size}"
        if not volume.grows_from:
            self.runner.run(["lvchange", "-q", "--addtag", tag, rootfs.path[5:]])
        self._extend(rootfs, size, point)
        self.runner.run(["lvchange", "-q", "--deltag", tag, rootfs.path[5:]])
        self.refresh()

    def _extend(self, rootfs: Rootfs, size: int, point: str) -> None:
        self.refresh()
        if size > self._volume(rootfs).size:
            self._change(["lvextend", "-q", "-L", f"{size}b", rootfs.path[5:]])
            self.refresh()
        filesystem.grow(self.runner, rootfs.path, point, self.runs_on(rootfs) is not None)

    def headroom(self, rootfs: Rootfs) -> dict[str, Any]:
        vg = rootfs.path.split("/")[2]
        room: dict[str, Any] = {"store": self.store, "vg": vg, "available": self.groups()[vg].free if vg in self.groups() else 0}
        volume = self.volumes().get(rootfs.path)
        pool = self.volumes().get(f"/dev/{vg}/{volume.pool}") if volume and volume.thin else None
        if pool:
            room.update(
                thinpool=pool.name,
                available=int(pool.size * (1 - pool.data_percent / 100)),
                data_percent=pool.data_percent,
                metadata_percent=pool.metadata_percent,
            )
        return room

    def remark(self, rootfs: Rootfs) -> str:
        volume = self.volumes().get(rootfs.path)
        if volume and volume.thick_snapshot and volume.data_percent >= _WARN_PERCENT:
            return (
                f"the copy-on-write area of {rootfs.path} is {volume.data_percent:g}% full, and a full one loses the clone: "
                f"extend it (lvextend -L +SIZE {rootfs.path}), or let dmeventd do so (snapshot_autoextend_threshold in lvm.conf)"
            )
        if volume and not volume.active:
            return f"the logical volume {rootfs.path} is not active, and LXC cannot start from it. {_activation(volume)}"
        if volume and volume.grows_from:
            return f"growing {rootfs.path} was cut off: its filesystem has {volume.grows_from} of {volume.size} bytes (run again with storage.size)"
        return ""

    def damage(self, rootfs: Rootfs) -> str:
        volume = self.volumes().get(rootfs.path)
        if volume is None:
            return f"the logical volume {rootfs.path} is missing"
        return f"the copy-on-write area of {rootfs.path} was full, which makes the snapshot invalid" if volume.thick_snapshot and volume.invalid else ""

    def away(self, rootfs: Rootfs) -> FleetError | None:
        vg = rootfs.path.split("/")[2]
        if vg in self.groups():
            return None
        return FleetError(f"the VG {vg} is not there", mend=f"Bring its disks back (pvs shows what is there; vgchange -ay {vg} activates it).", kind=RESOURCES)

    def obstacle(self, rootfs: Rootfs, mark: str | None, going: Collection[str] = ()) -> FleetError | None:
        if self._marked(rootfs, mark) is None:
            return self.away(rootfs)
        standing = [path for path in self._standing_on(rootfs) if path not in going]
        if not standing:
            return None
        return FleetError(
            f"{rootfs.path} is not removed: LVM would take along what stands on it",
            why=", ".join(standing[:10]),
            mend="Remove those first, if they are not needed.",
            kind=BUSY,
        )

    def unmark(self, rootfs: Rootfs) -> None:
        volume = self._volume(rootfs)
        for tag in volume.tags:
            if tag.startswith(TAG) and not tag.startswith(GROWS):
                self.runner.run(["lvchange", "-q", "--deltag", tag, f"{volume.vg}/{volume.name}"])

    def lower_of(self, rootfs: Rootfs) -> list[str]:
        volume = self.volumes().get(rootfs.path)
        lower = self._lower(volume) if volume else None
        return [lower.path] if lower else []

    def runs_on(self, rootfs: Rootfs, roots: Sequence[mounts.Root] | None = None) -> int | None:
        try:
            number = os.stat(rootfs.path).st_rdev
        except OSError:
            return None
        device = f"{os.major(number)}:{os.minor(number)}"
        for pid, _stat, mount in mounts.roots() if roots is None else roots:
            if mount.device == device or (mount.fstype == "btrfs" and _is_device(mount.source, number)):
                return pid
        return None

    def signs(self, rootfs: Rootfs) -> list[str]:
        volume = self._volume(rootfs)
        with open(rootfs.path, "rb") as file:
            # The superblocks of ext4, XFS and btrfs all lie here, and each changes when it was mounted and written.
            head = file.read(0x11000)
        return [volume.uuid, volume.attr[1], head.hex()]

    def discard(self, rootfs: Rootfs, mark: str | None = None) -> None:
        volume = self._marked(rootfs, mark)
        if volume is None:
            return
        try:
            self._change(["lvremove", "-q", "-f", self._resumed(volume).path[5:]])
        except FleetError as error:
            self.refresh()
            if rootfs.path in self.volumes():
                raise FleetError(f"{rootfs.path} is not removed", why=str(error), mend="Free it, if something uses it.", kind=BUSY) from error
        self.refresh()

    def used(self, rootfs: Rootfs) -> int:
        volume = self._volume(rootfs)
        return int(volume.size * volume.data_percent / 100) if volume.thin and not self._lower(volume) else self._counted(rootfs)

    def _counted(self, rootfs: Rootfs) -> int:
        """Bytes that the filesystem in a thick volume holds, asked of itself."""
        counted: list[int] = []

        def work() -> None:
            with self.rootfs_view(rootfs, "/mnt") as root:
                room = os.statvfs(root)
                counted.append((room.f_blocks - room.f_bfree) * room.f_frsize)

        mounts.in_private_mounts(work)
        return counted[0]


def _no_group(vg: str) -> FleetError:
    return FleetError(f"there is no VG {vg}", mend="Set storage.vg, or make it (role fleet.lxc.host).", kind=MISSING)


def _no_area(what: str) -> FleetError:
    return FleetError("storage.cow_size does not fit", why=f"{what} has no copy-on-write area", mend="Leave it out.", kind=INVALID)


def _smaller(size: int) -> FleetError:
    return FleetError(f"storage.size is less than the {size} bytes that it has", why="a filesystem is not made smaller", mend="Leave it out.", kind=INVALID)


def _activation(volume: Volume) -> str:
    return f"Activate it (lvchange -ay -K {volume.vg}/{volume.name})."


def _is_device(path: str, number: int) -> bool:
    """Whether a path is this block device; btrfs tells of its device by name alone, and has a number of its own (mountinfo)."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == number


def device_path(path: str) -> str:
    """``/dev/VG/LV`` for ``/dev/mapper/VG-LV``, where a dash of a name stands twice (lvm(8)); other paths as they are."""
    match = re.fullmatch(r"/dev/mapper/((?:[^-/]|--)+)-((?:[^-/]|--)+)", path)
    return f"/dev/{match.group(1)}/{match.group(2)}".replace("--", "-") if match else path
