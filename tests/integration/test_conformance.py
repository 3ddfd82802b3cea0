# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one suite that every storage driver must pass."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from dataclasses import dataclass, field

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import mounts
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.storage import filesystem
from conftest import crashed, inside, sh

ODD = [b"new\nline", b"\xff\xfe not utf-8", b"-leading-dash", b"with space", b"$(id)"]


@dataclass(frozen=True)
class Store:
    """A driver on a filesystem, and what is expected of it."""

    name: str
    filesystem: str
    base: dict
    clone: dict
    of_clone: dict = field(default_factory=dict)
    needs: str = ""  # the fixture that makes its volumes
    storage: dict = field(default_factory=dict)  # options, a value of None is what the fixture made

    def options(self, volumes):
        """The base's options, its volumes made."""
        if not self.needs:
            return self.base
        made = volumes.use(self.needs)
        return {**self.base, "storage": {key: made if value is None else value for key, value in self.storage.items()}}


STORES = [
    Store("dir-rsync", "ext", {}, {"method": "copy"}, {"method": "copy"}),
    Store("dir-reflink", "xfs", {}, {"method": "copy"}, {"method": "copy"}),
    Store("overlay", "ext", {}, {"method": "snapshot"}, {"method": "snapshot"}),
    Store("overlay-copied", "ext", {}, {"method": "snapshot"}, {"method": "copy"}),
    Store("btrfs", "btrfs", {"backing_store": "btrfs"}, {"method": "snapshot"}, {"method": "snapshot"}),
    Store("loop", "ext", {"backing_store": "loop", "storage": {"size": "96M", "fstype": None}}, {"method": "copy"}, {"method": "copy"}),
    Store(
        "lvm-thin", "ext", {"backing_store": "lvm"}, {"method": "snapshot"}, {"method": "snapshot"}, "volume_group",
        {"vg": None, "thinpool": "pool", "size": "96M"},
    ),
    Store(
        "lvm-thin-copy", "ext", {"backing_store": "lvm"}, {"method": "copy"}, {"method": "copy"}, "volume_group",
        {"vg": None, "thinpool": "pool", "size": "300M", "fstype": "xfs"},
    ),
    Store("lvm-thick", "ext", {"backing_store": "lvm"}, {"method": "snapshot"}, {"method": "copy"}, "volume_group", {"vg": None, "size": "96M"}),
    Store(
        "lvm-thick-copy", "ext", {"backing_store": "lvm"}, {"method": "copy"}, {"method": "copy"}, "volume_group",
        {"vg": None, "size": "256M", "fstype": "btrfs"},
    ),
    Store("zfs", "ext", {"backing_store": "zfs"}, {"method": "snapshot"}, {"method": "snapshot"}, "zfs_dataset", {"zfs_dataset": None}),
    Store("zfs-copy", "ext", {"backing_store": "zfs"}, {"method": "copy"}, {"method": "copy"}, "zfs_dataset", {"zfs_dataset": None}),
]  # fmt: skip


# Of these tests, how a clone is made on the same store tells nothing new.
once_per_store = pytest.mark.parametrize("store", [store for store in STORES if not store.name.endswith("-copy")], ids=lambda store: store.name, indirect=True)


@pytest.fixture(params=STORES, ids=lambda store: store.name)
def store(request):
    return request.param


@pytest.fixture
def fleet(fleet_on, store, volumes, busybox_archive):
    fleet = fleet_on(store.filesystem)
    fleet.golden(state="present", rootfs_archive=busybox_archive, **store.options(volumes))
    return fleet


def furnish(path):
    """Put everything into a root filesystem that a copy could lose."""
    top = os.path.join(path, "srv").encode()
    os.makedirs(top, exist_ok=True)
    for name in ODD:
        with open(os.path.join(top, name), "wb") as file:
            file.write(name)
    with open(top + b"/sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"middle")
    os.chown(top + b"/sparse", 1234, 4321)
    os.chmod(top + b"/sparse", 0o4711)
    os.setxattr(top + b"/sparse", "user.mark", b"value")
    os.setxattr(top + b"/sparse", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    subprocess.run(["setfacl", "-m", "u:77:r,g:88:rw", top + b"/with space"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:77:r", top], check=True)
    os.link(top + b"/with space", top + b"/hard link")
    os.symlink("/nowhere", top + b"/dangling")
    os.mknod(top + b"/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(top + b"/fifo")
    os.utime(top + b"/sparse", ns=(10**18 + 7, 10**18 + 123456789))


def described(path):
    """Every file of a tree with all that a copy must keep; /etc/hostname is the clone's own."""
    found = {}
    top = os.fsencode(path)
    for directory, folders, files in os.walk(top):
        for name in [b"."] + folders + files:
            file = os.path.join(directory, name)
            relative = os.path.relpath(file, top)
            if relative in (b"etc/hostname", b"lost+found") or relative.startswith(b"lost+found/"):
                continue
            info = os.lstat(file)
            kind = stat.S_IFMT(info.st_mode)
            content = (
                os.readlink(file)
                if kind == stat.S_IFLNK
                else open(file, "rb").read()
                if kind == stat.S_IFREG
                else info.st_rdev
                if kind == stat.S_IFCHR
                else None
            )
            xattrs = {} if kind == stat.S_IFLNK else {n: os.getxattr(file, n) for n in os.listxattr(file) if ".overlay." not in n and n != "btrfs.compression"}
            # Directories get a link of their own for each subdirectory, and their times change with /etc/hostname.
            links, time = (info.st_nlink, info.st_mtime_ns) if kind != stat.S_IFDIR else (0, 0)
            # rsync takes the time of a symlink or device for right when the seconds are.
            time = time if kind == stat.S_IFREG else time // 10**9
            found[relative] = (info.st_mode, info.st_uid, info.st_gid, links, time, content, xattrs)
    return found


def test_a_clone_is_complete_to_the_last_attribute(fleet, store):
    inside(fleet, "golden", furnish, writable=True)
    fleet.clone(source="golden", name="one", **store.clone)
    base, clone = inside(fleet, "golden", described), inside(fleet, "one", described)
    assert base.keys() == clone.keys() and len(base) > 100
    assert {name: (base[name], clone[name]) for name in base if base[name] != clone[name]} == {}
    blocks = inside(fleet, "one", lambda path: os.stat(f"{path}/srv/sparse").st_blocks)
    assert blocks * 512 < 4 << 20


def test_base_and_clone_do_not_see_each_others_writes(fleet, store):
    fleet.clone(source="golden", name=["one", "two"], **store.clone)

    def write(path):
        with open(f"{path}/etc/fresh", "w") as file:
            file.write("x")
        os.unlink(f"{path}/etc/passwd")

    inside(fleet, "one", write, writable=True)
    for name in ("golden", "two"):
        assert inside(fleet, name, lambda path: (os.path.exists(f"{path}/etc/fresh"), os.path.exists(f"{path}/etc/passwd"))) == (False, True)


def test_a_clone_of_a_clone_has_the_clones_changes(fleet, store):
    fleet.clone(source="golden", name="one", **store.clone)
    inside(fleet, "one", furnish, writable=True)
    fleet.clone(source="one", name="two", **store.of_clone)
    one, two = inside(fleet, "one", described), inside(fleet, "two", described)
    assert {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)} == set()


def test_a_clone_starts_and_lxcs_own_tools_work_on_it(fleet, store):
    fleet.clone(source="golden", name="one", state="started", **store.clone)
    path = ["-P", fleet.lxcpath, "-n", "one"]
    assert "RUNNING" in sh(["lxc-info", *path, "-s"])
    assert sh(["lxc-attach", *path, "--", "hostname"]).strip() == "one"
    fleet.clone(source="golden", name="one", state="stopped", **store.clone)
    sh(["lxc-start", *path])
    sh(["lxc-stop", *path, "-k"])
    sh(["lxc-destroy", *path])
    assert fleet.names() == ["golden"] and not os.path.exists(fleet.path("one"))
    assert not os.path.exists(fleet.path("golden", "lxc_snapshots"))


MACHINE_ID = "0123456789abcdef0123456789abcdef\n"
BIRTHMARKS = {
    "usr/lib/systemd/systemd": "",
    "usr/bin/ssh-keygen": "",
    "etc/hostname": "golden\n",
    "etc/hosts": "127.0.1.1 golden\n",
    "etc/machine-id": MACHINE_ID,
    "etc/ssh/ssh_host_rsa_key": "secret",
    "var/lib/dhcp/dhclient.leases": "lease",
}


def mark(path):
    """Make a guest one whose copies would be taken for each other."""
    for name, text in BIRTHMARKS.items():
        os.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
        with open(f"{path}/{name}", "w") as file:
            file.write(text)


def marks(path):
    """What a guest has of it."""
    return {name: open(f"{path}/{name}").read() for name in BIRTHMARKS if os.path.isfile(f"{path}/{name}")}


@once_per_store
def test_a_clone_is_itself_whether_its_base_is_scrubbed_or_not(fleet, store):
    own = {"usr/lib/systemd/systemd": "", "usr/bin/ssh-keygen": "", "etc/machine-id": ""}
    inside(fleet, "golden", mark, writable=True)
    (made,) = fleet.clone(source="golden", name="one", **store.clone)["clones"]
    assert made["identity"] == ["hostname", "machine_id", "ssh_host_keys", "dhcp"]
    assert inside(fleet, "golden", marks) == BIRTHMARKS
    assert inside(fleet, "one", marks) == {**own, "etc/hostname": "one\n", "etc/hosts": "127.0.1.1 one\n"}
    fleet.clone(name="one", state="absent")
    sealed = fleet.golden(state="sealed", backing_store=store.base.get("backing_store", "dir"))
    assert sealed["scrubbed"] == ["machine_id", "ssh_host_keys", "dhcp"]
    assert inside(fleet, "golden", marks) == {**own, "etc/hostname": "golden\n", "etc/hosts": "127.0.1.1 golden\n"}
    (made,) = fleet.clone(source="golden", name="one", **store.clone)["clones"]
    assert made["identity"] == ["hostname"]
    assert inside(fleet, "one", marks) == {**own, "etc/hostname": "one\n", "etc/hosts": "127.0.1.1 one\n"}


@once_per_store
def test_a_hostile_guest_is_cloned_and_nothing_is_written_through_its_links(fleet, store, tmp_path):
    host = tmp_path / "host"
    host.mkdir()
    for name in ("hosts", "ssh_host_rsa_key"):
        (host / name).write_text("127.0.1.1 golden the host's\n")

    def turn(path):
        mark(path)
        for name, target in {"etc/hostname": "/etc/passwd", "etc/hosts": host / "hosts", "etc/ssh": host, "var/lib/dhcp": "../../.."}.items():
            sh(["rm", "-rf", f"{path}/{name}"])
            os.symlink(target, f"{path}/{name}")
        os.unlink(f"{path}/etc/machine-id")
        os.mkfifo(f"{path}/etc/machine-id")

    def links(path):
        return [os.readlink(f"{path}/{name}") for name in ("etc/hostname", "etc/hosts", "etc/ssh", "var/lib/dhcp")], open(f"{path}/etc/passwd").read()

    inside(fleet, "golden", turn, writable=True)
    before = inside(fleet, "golden", links)
    made = fleet.clone(source="golden", name="one", **store.clone)
    assert "identity" not in made["clones"][0] and len(made["warnings"]) >= 4
    assert inside(fleet, "golden", links) == inside(fleet, "one", links) == before
    assert {(host / name).read_text() for name in os.listdir(host)} == {"127.0.1.1 golden the host's\n"} and len(os.listdir(host)) == 2


@once_per_store
def test_a_view_ends_although_a_file_in_it_is_open_for_a_moment(fleet, store):
    fleet.clone(source="golden", name="one", **store.clone)
    inside(fleet, "one", lambda path: threading.Timer(0.5, os.close, [os.open(path, os.O_RDONLY)]).start(), writable=True)


def test_removal_leaves_nothing(fleet, store, volumes):
    outside = volumes.present()
    before = sorted(os.listdir(fleet.path("golden")))
    fleet.clone(source="golden", name="n-[1:3]", state="started", **store.clone)
    fleet.clone(name="n-[1:3]", state="absent")
    assert os.listdir(fleet.lxcpath) == ["golden"]
    assert sorted(os.listdir(fleet.path("golden"))) == before
    assert not [m for m in mounts.table() if m.point.startswith(fleet.lxcpath)]
    assert volumes.present() == outside


def test_a_base_goes_only_without_storage_dependents(fleet, store, volumes):
    fleet.clone(source="golden", name="one", **store.clone)
    if store.name in ("overlay", "overlay-copied", "lvm-thick", "zfs"):
        with pytest.raises(FleetError, match="one"):
            fleet.base(name="golden", state="absent")
        fleet.clone(name="one", state="absent")
        fleet.base(name="golden", state="absent")
    else:
        fleet.base(name="golden", state="absent")
        fleet.clone(source_lxcpath=None, name="one", state="absent")
    assert os.listdir(fleet.lxcpath) == [] and volumes.present() == []


@once_per_store
def test_a_sealed_base_is_protected_and_its_clones_are_not(fleet, store):
    fleet.golden(state="sealed", backing_store=store.base.get("backing_store", "dir"))
    assert not fleet.golden(state="sealed", backing_store=store.base.get("backing_store", "dir"))["changed"]
    fleet.clone(source="golden", name="one", **store.clone)

    def write(path):
        with open(f"{path}/etc/fresh", "w") as file:
            file.write("x")

    inside(fleet, "one", write, writable=True)
    fleet.clone(source="golden", name="one", state="started", **store.clone)
    fleet.clone(name="one", state="absent")
    fleet.golden(state="unsealed", backing_store=store.base.get("backing_store", "dir"))
    inside(fleet, "golden", write, writable=True)
    fleet.golden(state="sealed", backing_store=store.base.get("backing_store", "dir"))


@once_per_store
def test_a_snapshot_is_refused_where_the_store_has_none(fleet, store, refused):
    if store.name == "loop":
        refused(fleet, "no snapshots.*method: copy", fleet.clone, source="golden", name="one", method="snapshot")
    fleet.clone(source="golden", name="one", **store.clone)
    if store.name == "lvm-thick":
        refused(fleet, "thick snapshot.*Clone golden instead", fleet.clone, source="one", name="two", method="snapshot")


@once_per_store
def test_a_damaged_clone_is_noticed(fleet, store):
    fleet.clone(source="golden", name="one", **store.clone)
    kind = store.name.split("-")[0]
    gone = {"overlay": "overlay/delta", "loop": "rootdev"}.get(kind, "rootfs")
    if kind == "lvm":
        subprocess.run(["lvremove", "-q", "-f", fleet.rootfs("one").path], check=True)
    elif kind == "zfs":
        subprocess.run(["zfs", "destroy", fleet.rootfs("one").path], check=True)
    elif store.name == "btrfs":
        subprocess.run(["btrfs", "subvolume", "delete", fleet.path("one", gone)], check=True, capture_output=True)
    else:
        subprocess.run(["rm", "-rf", fleet.path("one", gone)], check=True)
    with pytest.raises(FleetError, match="one: is broken.*missing.*state=absent"):
        fleet.clone(source="golden", name="one", **store.clone)
    fleet.clone(name="one", state="absent")
    assert fleet.clone(source="golden", name="one", **store.clone)["summary"]["created"] == 1


def test_a_size_is_kept_and_can_grow(fleet, store, refused, monkeypatch):
    if store.name.split("-")[0] not in ("loop", "lvm"):
        refused(fleet, "storage.size does not fit", fleet.clone, source="golden", name="one", storage={"size": "2G"}, **store.clone)
        return

    def size(name):
        rootfs = fleet.rootfs(name)
        return os.path.getsize(rootfs.path) if rootfs.store == "loop" else int(sh(["blockdev", "--getsize64", rootfs.path]))

    def blocks(name):
        return inside(fleet, name, lambda path: os.statvfs(path).f_blocks * os.statvfs(path).f_frsize)

    fleet.clone(source="golden", name="one", **store.clone)
    assert size("one") == size("golden") and blocks("one") == blocks("golden")
    larger = f"{(size('golden') >> 20) + 64}M"
    refused(fleet, "not made smaller|keeps|no size of its own", fleet.clone, source="golden", name="one", storage={"size": "8M"}, **store.clone)
    if store.name == "lvm-thick":
        return
    check = fleet.clone(check_mode=True, source="golden", name="one", storage={"size": larger}, **store.clone)
    result = fleet.clone(source="golden", name=["one", "two"], storage={"size": larger}, **store.clone)
    assert check["clones"][0]["actions"] == result["clones"][0]["actions"] == ["grow"]
    for name in ("one", "two"):
        assert size(name) >= size("golden") + (64 << 20) and blocks(name) > blocks("golden") + (32 << 20)
    assert not fleet.clone(source="golden", name=["one", "two"], storage={"size": larger}, **store.clone)["changed"]
    # Cut off when the device has grown and the filesystem has not, it is finished by the next run.
    larger = f"{(size('one') >> 20) + 64}M"
    options = {"source": "golden", "name": "one", "storage": {"size": larger}, **store.clone}
    with monkeypatch.context() as cut:
        cut.setattr(filesystem, "grow", cut_off)
        with pytest.raises(FleetError, match="cut off"):
            fleet.clone(**options)
    assert size("one") == int(larger[:-1]) << 20 and blocks("one") == blocks("two")
    assert "growing" in fleet.call(source="golden", name="one")["warnings"][0]
    assert fleet.clone(check_mode=True, **options)["clones"][0]["actions"] == fleet.clone(**options)["clones"][0]["actions"] == ["grow"]
    assert blocks("one") > blocks("two") + (32 << 20) and not fleet.clone(**options)["changed"]
    assert not fleet.call(source="golden", name="one")["warnings"]


@once_per_store
def test_another_filesystem_is_refused_where_the_file_is_copied_as_it_is(fleet, store, refused):
    if store.name == "loop":
        refused(fleet, "cannot have the filesystem xfs.*with ext4", fleet.clone, source="golden", name="one", storage={"fstype": "xfs"}, **store.clone)
        fleet.clone(source="golden", name="one", storage={"fstype": "ext4"}, **store.clone)


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"], ids=lambda fstype: f"loop-{fstype}")
def test_what_a_crash_left_in_the_journal_of_a_loop_file_is_copied(fleet_on, busybox_archive, fstype):
    fleet = fleet_on("ext")
    fleet.golden(state="present", rootfs_archive=busybox_archive, backing_store="loop", storage={"size": "300M", "fstype": fstype})
    crashed(fleet, "golden")
    fleet.clone(source="golden", name=["one", "two"], method="copy", backing_store="dir")
    for name in ("one", "two"):
        assert os.path.getsize(fleet.path(name, "rootfs", "root", "kept")) == 100000


def cut_off(*_arguments, **_options):
    raise FleetError("cut off")
