# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The storage that the role host prepares: made once, found again, refused where something is, removed when empty and asked for.

LVM and ZFS are tested where the kernel has them. /etc is a throwaway overlay, and what is mounted is seen by the test alone.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
import uuid
import zlib

import pytest
import yaml
from ansible_collections.fleet.lxc.plugins.module_utils.disk import loop_devices
from ansible_collections.fleet.lxc.plugins.module_utils.locks import hold
from ansible_collections.fleet.lxc.plugins.module_utils.pools import LOCK
from checkout import run
from conftest import need_lvm, need_zfs, sh
from machine import Machine

CALL = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.pools import STORAGE_ARGUMENTS, StorageCall
options = {key: argument.get("default") for key, argument in STORAGE_ARGUMENTS.items()}
options.update(json.loads(sys.argv[2]))
for kind in ("btrfs", "lvm", "zfs"):
    if options[kind]:
        options[kind] = {**dict.fromkeys(STORAGE_ARGUMENTS[kind]["options"]), **options[kind]}
try:
    print(json.dumps(StorageCall(options).run(sys.argv[3] == "check")))
except FleetError as error:
    sys.exit(str(error))
"""


class Host(Machine):
    """A machine whose storage is prepared."""

    def __init__(self, directory):
        super().__init__(directory)
        self.kinds = {}

    def storage(self, check=False, path="/usr/local/sbin", **options):
        """Call the module, without Ansible around it; the steps that it took.

        :param path: where its commands are looked for first.
        """
        python = ["env", f"PATH={path}:{os.environ['PATH']}", sys.executable]
        done = subprocess.run(
            self.command(*python, "-c", CALL, json.dumps(sys.path), json.dumps({**self.kinds, **options}), "check" if check else "run"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["actions"]

    def refused(self, match, **options):
        for check in (True, False):
            with pytest.raises(AssertionError, match=match):
                self.storage(check, **options)

    def role(self, check=False, tasks_from="storage", **variables):
        """Run a part of the role; (how many tasks changed something, all that it said)."""
        kinds = {f"host_{kind}": options for kind, options in self.kinds.items()}
        task = {"ansible.builtin.include_role": {"name": "fleet.lxc.host", "tasks_from": tasks_from}, "vars": {**kinds, **variables}}
        playbook = self.directory / "play.yml"
        playbook.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
        options = ["--inventory", "localhost,", "--connection", "local", "--diff", *(["--check"] if check else [])]
        said = run(*self.command("ansible-playbook", *options, playbook))
        return int(re.search(r"changed=(\d+)", said).group(1)), said


@pytest.fixture
def machine(tmp_path):
    made = Host(tmp_path)
    yield made
    made.end()
    assert not os.path.exists("/etc/fstab") or str(tmp_path) not in open("/etc/fstab").read()
    # A loop device of a mount goes a moment after the last process that saw it.
    for _attempt in range(50):
        left = [loop for loop, file in loop_devices().items() if str(tmp_path) in file]
        if not left:
            break
        time.sleep(0.1)
    assert not left


@pytest.fixture
def device(machine, tmp_path):
    """A block device that is blank."""
    image = tmp_path / "device.img"
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    sh("[ -e /dev/loop-control ] || modprobe loop")
    name = sh(["losetup", "--find", "--show", "--partscan", str(image)]).strip()
    yield name
    sh(["losetup", "--detach", name], check=False)


class Btrfs:
    """What each test needs to know of one kind."""

    def __init__(self, machine, tmp_path):
        self.variables = {"btrfs": {"mountpoint": str(tmp_path / "mounted")}}
        self.name, self.machine = str(tmp_path / "mounted"), machine

    def there(self):
        return self.machine.sh(f"findmnt -n -o FSTYPE,LABEL {self.name} || true").split() == ["btrfs", "fleet.lxc"]

    def occupy(self):
        self.machine.sh(f"btrfs subvolume create {self.name}/web")

    def vacate(self):
        self.machine.sh(f"btrfs subvolume delete {self.name}/web")

    def reboot(self):
        self.machine.sh(f"umount {self.name}")

    def clean(self):
        pass  # the mount goes with its namespace


class Lvm:
    def __init__(self, machine, tmp_path):
        self.name, self.machine = f"fleet-host-{uuid.uuid4().hex[:6]}", machine
        self.variables = {"lvm": {"vg": self.name, "thinpool": "thin-pool", "thinpool_size": "200M"}}

    def there(self):
        return sh(f"lvs --noheadings -o lv_name,lv_attr {self.name} 2>/dev/null || true").split()[:1] == ["thin-pool"]

    def occupy(self):
        sh(["lvcreate", "-q", "-y", "-V", "100M", "--thinpool", f"{self.name}/thin-pool", "-n", "web"])

    def vacate(self):
        sh(["lvremove", "-q", "-y", f"{self.name}/web"])

    def reboot(self):
        devices = sh(f"pvs --noheadings -o pv_name -S vg_name={self.name}").split()
        sh(["vgchange", "-q", "-an", self.name])
        sh(["losetup", "--detach", *devices])

    def clean(self):
        devices = sh(f"pvs --noheadings -o pv_name -S vg_name={self.name}", check=False).split()
        if devices:
            sh(["vgremove", "-q", "-f", "-y", self.name])
            sh(["pvremove", "-q", "-y", *devices])
            sh(["losetup", "--detach", *devices], check=False)


class Zfs:
    def __init__(self, machine, tmp_path):
        self.name, self.machine = f"fleet{uuid.uuid4().hex[:6]}", machine
        self.variables = {"zfs": {"dataset": f"{self.name}/some/lxc"}}

    def there(self):
        return sh(f"zfs get -H -o value mountpoint,acltype {self.name}/some/lxc 2>/dev/null || true").split() in (["none", "posix"], ["none", "posixacl"])

    def occupy(self):
        sh(["zfs", "create", f"{self.name}/some/lxc/web"])

    def vacate(self):
        sh(["zfs", "destroy", f"{self.name}/some/lxc/web"])

    def reboot(self):
        sh(["zpool", "export", self.name])

    def clean(self):
        sh(["zpool", "destroy", "-f", self.name], check=False)


KINDS = {"btrfs": Btrfs, "lvm": Lvm, "zfs": Zfs}
# What does not differ between them is tested on the one that every machine has.
of_each_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


@pytest.fixture
def kind(request, machine, tmp_path):
    name = getattr(request, "param", "btrfs")
    {"btrfs": lambda: None, "lvm": need_lvm, "zfs": need_zfs}[name]()
    made = KINDS[name](machine, tmp_path)
    machine.kinds = made.variables
    yield made
    made.clean()


@pytest.fixture
def on_file(kind, tmp_path):
    (variables,) = kind.variables.values()
    variables.update(file=str(tmp_path / "trials" / "a file"), size="400M")
    return variables["file"]


@pytest.fixture
def on_device(kind, device):
    (variables,) = kind.variables.values()
    variables["device"] = device
    yield device
    kind.clean()


def test_the_role_makes_it_once_and_destroys_what_is_named(machine, kind, on_file):
    changed, said = machine.role(check=True)
    assert changed == 1 and not os.path.exists(on_file) and not kind.there()
    planned = re.findall(r"^\+(.*)$", said, re.M)
    changed, said = machine.role()
    assert changed == 1 and kind.there() and re.findall(r"^\+(.*)$", said, re.M) == planned
    assert machine.role()[0] == 0
    assert machine.role(tasks_from="storage_absent")[0] == 0 and kind.there()
    with pytest.raises(AssertionError, match="host_storage_destroy names other"):
        machine.role(tasks_from="storage_absent", host_storage_destroy=["other"])
    assert machine.role(tasks_from="storage_absent", host_storage_destroy=[kind.name])[0] == 1 and not kind.there()


@of_each_kind
def test_what_lies_on_a_file_survives_a_reboot_and_goes_only_when_it_is_empty(machine, kind, on_file):
    planned = machine.storage(check=True)
    assert planned and not os.path.exists(on_file)
    assert machine.storage() == planned and kind.there()
    assert os.stat(on_file).st_blocks * 512 < 100 << 20
    assert machine.storage() == machine.storage(check=True) == []
    kind.reboot()
    machine.refused("cannot be seen.*state: present first", state="absent")
    assert machine.storage(check=True) == machine.storage() != [] and kind.there() and machine.storage() == []
    kind.occupy()
    machine.refused("while something is on it: .*web", state="absent")
    kind.vacate()
    assert machine.storage(state="absent", check=True) == machine.storage(state="absent") != []
    assert not kind.there() and not os.path.exists(on_file) and machine.storage(state="absent") == []
    assert "fleet.lxc" not in machine.sh("cat /etc/fstab")


@of_each_kind
def test_an_empty_device_is_used_and_given_back_empty(machine, kind, on_device):
    made = machine.storage()
    assert kind.there() and machine.storage() == []
    machine.storage(state="absent")
    assert not kind.there() and machine.storage(check=True) == [step for step in made if "directory" not in step]


OCCUPIED = {
    "it holds ext4 .label data.": "mkfs.ext4 -q -L data {device}",
    "it holds dos": "cat {point}.mbr >{device}",
    "it holds swap.*it is swap space": "mkswap -q {device} && swapon {device}",
    "it holds ext4.*it is mounted at": "mkfs.ext4 -q {device} && mkdir -p {point} && mount -o ro {device} {point}",
}


@pytest.mark.parametrize("match", OCCUPIED)
def test_a_device_that_is_not_empty_is_refused(machine, kind, on_device, tmp_path, match):
    # A partition table with one partition: of Linux, from sector 2048, 204,800 sectors long.
    (tmp_path / "point.mbr").write_bytes(bytes(446) + struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), 2048, 204800) + bytes(48) + b"\x55\xaa")
    machine.sh(OCCUPIED[match].format(device=on_device, point=tmp_path / "point"))
    before = sh(["sha256sum", on_device])
    try:
        machine.refused(f"{on_device} is not empty and is left as it is: {match}.*wipefs --all")
        with pytest.raises(AssertionError, match=match):
            machine.role()
        assert sh(["sha256sum", on_device]) == before
    finally:
        machine.sh(f"swapoff {on_device} 2>/dev/null; umount {on_device} 2>/dev/null; true")


@pytest.mark.parametrize("place", [0, 512 << 10, (400 << 20) - 1], ids=["begin", "within", "end"])
def test_a_device_with_data_of_an_unknown_kind_is_refused(machine, kind, on_device, place):
    sh(f"printf x | dd of={on_device} bs=1 seek={place} 2>&1")
    machine.refused("is not empty.*data of an unknown kind.*wipefs --all .*&& blkdiscard --zeroout")
    # The mend that is told.
    sh(f"wipefs --all {on_device} && blkdiscard --zeroout {on_device}")
    assert machine.storage() and kind.there()


def partition_table(device, partitions):
    """Write a GPT. :param partitions: {number: (first sector, last, name)}"""
    size = int(sh(["blockdev", "--getsz", device]))
    entries = bytearray(128 * 128)
    for number, (first, last, name) in partitions.items():
        kind = uuid.UUID("6a898cc3-1dd2-11b2-99a6-080020736631").bytes_le
        struct.pack_into("<16s16sQQQ72s", entries, 128 * (number - 1), kind, uuid.uuid4().bytes_le, first, last, 0, name.encode("utf-16-le"))

    def header(own, other, table, crc=0):
        words = b"EFI PART", 0x10000, 92, crc, 0, own, other, 34, size - 34, bytes(range(16)), table, 128, 128, zlib.crc32(entries)
        packed = struct.pack("<8sIIIIQQQQ16sQIII", *words)
        return packed if crc else header(own, other, table, zlib.crc32(packed))

    with open(device, "r+b") as file:
        file.write(bytes(446) + struct.pack("<B3sB3sII", 0, bytes(3), 0xEE, bytes(3), 1, size - 1) + bytes(48) + b"\x55\xaa")
        file.write(header(1, size - 1, 2).ljust(512, b"\0") + entries)
        file.seek((size - 33) * 512)
        file.write(entries + header(size - 1, 1, size - 33).ljust(512, b"\0"))
    sh(f"blockdev --rereadpt {device} && udevadm settle 2>/dev/null; [ -b {device}p1 ]")


# As ZFS divides a whole disk, and as somebody else does.
OF_ZFS = {1: (2048, 800000, "zfs-0123456789abcdef"), 9: (800256, 816640, "")}
OF_ANOTHER = {1: (2048, 400000, "zfs-0123456789abcdef"), 2: (400384, 816640, "precious")}


@pytest.mark.parametrize("kind", ["zfs"], indirect=True)
@pytest.mark.parametrize("table", [OF_ZFS, OF_ANOTHER], ids=["of_zfs", "of_another"])
def test_a_pool_on_a_partition_is_imported_and_only_what_zfs_made_is_cleared(machine, kind, on_device, tmp_path, table):
    partition_table(on_device, table)
    sh(["zpool", "create", "-m", "none", "-O", "fleet.lxc:host=yes", kind.name, f"{on_device}p1"])
    kind.reboot()
    machine.refused("cannot be seen.*state: present first", state="absent")
    wanted = {"btrfs": {"mountpoint": str(tmp_path / "mounted"), "device": on_device}, "zfs": None}
    part = f"{on_device}p1"
    machine.refused(f"it has the partition {os.path.basename(part)} with zfs_member .*brought back: zpool import -d {part} {kind.name}", **wanted)
    with pytest.raises(AssertionError) as error:
        machine.storage(**wanted)
    assert "wipefs" not in str(error.value)
    imported = f"import the pool {kind.name}"
    assert machine.storage(check=True) == [imported] and machine.storage() == [imported, f"make the dataset {kind.name}/some/lxc"]
    assert machine.storage() == [] and kind.there()
    del machine.kinds["zfs"]["device"]
    cleared = {step.split()[-1] for step in machine.storage(state="absent") if step.startswith("clear")}
    assert cleared == ({f"{on_device}p1", on_device} if table is OF_ZFS else {f"{on_device}p1"}) and not kind.there()
    machine.kinds["zfs"]["device"] = on_device
    if table is OF_ZFS:
        assert machine.storage() and kind.there()
    else:
        assert os.path.exists(f"{on_device}p2")
        machine.refused("it has the partition")


@pytest.mark.parametrize("kind", ["lvm"], indirect=True)
def test_a_vg_on_a_partition_is_never_told_to_be_wiped(machine, kind, on_device, tmp_path):
    partition_table(on_device, OF_ANOTHER)
    sh(["vgcreate", "-q", kind.name, f"{on_device}p1"])
    try:
        with pytest.raises(AssertionError, match=f"p1 with LVM2_member.*brought back: vgchange -ay for the VG on {on_device}p1") as error:
            machine.storage(lvm=None, btrfs={"mountpoint": str(tmp_path / "mounted"), "device": on_device})
        assert "wipefs" not in str(error.value)
    finally:
        sh(["vgremove", "-q", kind.name])


def test_a_device_in_use_in_another_mount_namespace_is_refused(machine, kind, on_device, tmp_path):
    # Its superblock is wiped beneath the mount: only the kernel knows.
    (tmp_path / "elsewhere").mkdir()
    other = Machine(tmp_path / "elsewhere")
    try:
        other.sh(f"mkfs.ext4 -q {on_device} && mkdir {tmp_path}/point && mount {on_device} {tmp_path}/point")
        other.sh(f"wipefs -q --all --force {on_device}")
        machine.refused("is not empty.*it is in use")
    finally:
        other.end()


@pytest.mark.parametrize("kind", ["lvm"], indirect=True)
def test_a_file_that_a_cut_left_attached_is_taken_up(machine, kind, on_file):
    planned = machine.storage(check=True)
    # Ended between the step that attaches it and the next one.
    machine.sh("mkdir -p /etc/cut && printf '#!/bin/sh\\nexit 1\\n' >/etc/cut/vgcreate && chmod +x /etc/cut/vgcreate")
    with pytest.raises(AssertionError, match="vgcreate.* failed"):
        machine.storage(path="/etc/cut")
    assert on_file in loop_devices().values()
    assert machine.storage(check=True) == [step for step in planned if kind.name in step]
    assert machine.storage() == [step for step in planned if kind.name in step] and kind.there()
    assert list(loop_devices().values()).count(on_file) == 1
    machine.storage(state="absent")
    # Another's, and one that is written to, are not.
    written = "dd if=/dev/urandom of='{0}' bs=4k seek=700 count=1 conv=notrunc"
    for prepare in ("truncate -s 400M '{0}' && chmod 644 '{0}'", f"truncate -s 400M '{{0}}' && chmod 600 '{{0}}' && {written}"):
        loop = sh(f"{prepare.format(on_file)}; losetup --find --show '{on_file}'").strip()
        machine.refused("is not empty.*attached as")
        sh(f"losetup --detach {loop}; rm '{on_file}'")


@pytest.mark.parametrize(("content", "match"), [(b"x" * 4096, "data of an unknown kind"), (None, "it holds xfs")], ids=["data", "xfs"])
def test_a_file_that_is_not_ours_is_refused(machine, kind, on_file, content, match):
    os.mkdir(os.path.dirname(on_file))
    with open(on_file, "wb") as file:
        file.write(content or b"")
        file.truncate(400 << 20)
    if content is None:
        sh(["mkfs.xfs", "-q", on_file])
    machine.refused(f"is not empty.*{match}.*[Nn]ame another file")
    assert not kind.there()


@of_each_kind
def test_what_somebody_else_made_is_used_and_never_destroyed(machine, kind, on_device, tmp_path):
    (variables,) = kind.variables.values()
    if isinstance(kind, Btrfs):
        machine.sh(f"mkfs.btrfs -q {on_device} && mkdir {kind.name} && mount {on_device} {kind.name}")
    elif isinstance(kind, Lvm):
        sh(["vgcreate", "-q", kind.name, on_device])
    else:
        sh(["zpool", "create", "-m", "none", kind.name, on_device])
    machine.storage()
    assert machine.storage() == []
    machine.refused("was not made by fleet.lxc", state="absent")
    del variables["device"]
    if not isinstance(kind, Btrfs):
        assert machine.storage() == []
        variables.update(file=str(tmp_path / "other"), size="400M")
        machine.refused(f"already a (VG|pool) {kind.name} on")


@of_each_kind
def test_what_is_named_and_is_not_what_it_lies_on_is_never_touched(machine, kind, on_device, tmp_path):
    machine.storage()
    (variables,) = kind.variables.values()
    place = {"device": variables.pop("device")}
    diary, image = tmp_path / "diary.img", tmp_path / "other.img"
    diary.write_bytes(b"precious")
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    sh(["mkfs.ext4", "-q", str(image)])
    other = sh(["losetup", "--find", "--show", str(image)]).strip()
    # A copy has the signatures of the original, and the UUID.
    copy = tmp_path / "copy.img"
    sh(["cp", "--sparse=always", place["device"], str(copy)])
    try:
        for named in ({"device": other}, {"file": str(diary), "size": "1G"}, {"file": str(copy), "size": "400M"}):
            before = sh(f"(cat {diary}; head -c 8M {other}; head -c 8M {copy}) | sha256sum")
            variables.update(named)
            machine.refused(f"(is not removed|is mounted on).*not .*{re.escape(next(iter(named.values())))}", state="absent")
            assert kind.there() and sh(f"(cat {diary}; head -c 8M {other}; head -c 8M {copy}) | sha256sum") == before
            for key in named:
                del variables[key]
        # On a file it is no other.
        assert machine.storage(state="absent", check=True) == machine.storage(state="absent") != [] and not kind.there()
        variables.update(file=str(tmp_path / "trials" / "a file"), size="400M")
        machine.storage()
        (tmp_path / "trials" / "a file 2").write_bytes(b"precious")
        variables["file"] += " 2"
        machine.refused("(is not removed|is mounted on).*not .*a file 2", state="absent")
        assert (tmp_path / "trials" / "a file 2").read_bytes() == b"precious"
        del variables["file"], variables["size"]
        if not isinstance(kind, Lvm):
            machine.refused("file .*Set file and size|is no device: .*Set file and size", state="absent")
        variables.update(file=str(tmp_path / "trials" / "a file"), size="400M")
        machine.storage(state="absent")
        assert not kind.there() and not (tmp_path / "trials" / "a file").exists()
    finally:
        sh(["losetup", "--detach", other])


def test_a_btrfs_goes_only_when_no_subvolume_of_it_holds_anything(machine, kind, on_device, tmp_path):
    machine.storage()
    machine.sh(f"cd {kind.name} && btrfs -q subvolume create @lxc && btrfs -q subvolume create @data && echo precious >@data/f")
    machine.sh(f'umount {kind.name} && mount -o subvol=@lxc {on_device} {kind.name} && [ -z "$(ls {kind.name})" ]')
    machine.refused("while something is on it: @data, @lxc", state="absent")
    machine.sh(f"mkdir {tmp_path}/all && mount {on_device} {tmp_path}/all && btrfs -q subvolume delete {tmp_path}/all/@data")
    machine.refused(f"while something is on it: it is mounted at {tmp_path}/all", state="absent")
    machine.sh(f"umount {kind.name} {tmp_path}/all && mount {kind.name}")
    machine.refused("while something is on it: @lxc", state="absent")
    machine.sh(f"btrfs -q subvolume delete {kind.name}/@lxc")
    assert machine.storage(state="absent") and not kind.there()


@pytest.mark.parametrize("kind", ["zfs"], indirect=True)
def test_a_pool_goes_only_when_no_dataset_of_it_holds_anything(machine, kind, on_device, tmp_path):
    machine.storage()
    for dataset, mounted in ((f"{kind.name}/some/lxc", True), (f"{kind.name}/some", False), (kind.name, True)):
        sh(["zfs", "set", f"mountpoint={tmp_path}/seen", dataset])
        sh(f"zfs mount {dataset}; echo precious >{tmp_path}/seen/diary")
        if not mounted:
            sh(["zfs", "unmount", dataset])
        machine.refused(f"while something is on it: diary in {dataset}\\.", state="absent")
        sh(f"zfs mount {dataset}; rm {tmp_path}/seen/diary; zfs set mountpoint=none {dataset}")
    for made in ("zfs create -V 10M {0}/vol", "zfs create {0}/some/other", "zfs snapshot {0}/some/lxc@kept"):
        sh(made.format(kind.name))
        name = made.format(kind.name).split()[-1]
        machine.refused(f"while something is on it: {name}\\.", state="absent")
        sh(["zfs", "destroy", name])
    sh(["zfs", "destroy", f"{kind.name}/some/lxc"])
    sh(f"echo a password | zfs create -o mountpoint=none -o encryption=on -o keyformat=passphrase {kind.name}/some/lxc && zfs unload-key {kind.name}/some/lxc")
    machine.refused("what is in .*some/lxc cannot be seen.*zfs load-key", state="absent")
    sh(f"zfs destroy {kind.name}/some/lxc && zfs create -V 10M {kind.name}/some/lxc")
    machine.refused("while something is on it: the volume .*some/lxc", state="absent")
    sh(["zfs", "destroy", f"{kind.name}/some/lxc"])
    assert machine.storage(state="absent", check=True) == machine.storage(state="absent") != []
    assert kind.name not in sh("zpool list -H -o name")


@of_each_kind
def test_a_device_need_not_be_named_for_removal(machine, kind, on_device):
    made = machine.storage()
    (variables,) = kind.variables.values()
    del variables["device"]
    assert machine.storage(state="absent", check=True) == machine.storage(state="absent") != [] and not kind.there()
    assert machine.storage(state="absent", check=True) == machine.storage(state="absent") == []
    variables["device"] = on_device
    assert machine.storage(check=True) == [step for step in made if "directory" not in step]


def test_two_runs_at_once_wait_for_each_other(machine, kind, on_file):
    with hold([LOCK], 60):
        assert machine.storage(check=True)
        with pytest.raises(AssertionError, match=f"storage is in use by another run: held by pid {os.getpid()} .*lock_timeout"):
            machine.storage(lock_timeout=0)
        assert not os.path.exists(on_file)
    assert machine.storage(lock_timeout=0) and kind.there()


def test_what_does_not_exist_needs_a_place(machine, kind):
    machine.refused("does not exist.*Set device, or file and size")


def test_a_directory_with_something_in_it_is_not_mounted_over(machine, tmp_path):
    (tmp_path / "full" / "web").mkdir(parents=True)
    machine.refused("not empty: web would be hidden", btrfs={"mountpoint": str(tmp_path / "full"), "file": str(tmp_path / "image"), "size": "400M"})
    assert not (tmp_path / "image").exists()


def test_anothers_line_in_fstab_mounts_it_or_is_refused(machine, kind, on_device):
    planned = machine.storage(check=True)
    others = "UUID=11111111-2222-3333-4444-555555555555 {} ext4", "LABEL=fleet.lxc {} btrfs", "/dev/nothing {} btrfs", f"{on_device} {{}} ext4"
    for line in (*others, f"{on_device} {{}} btrfs subvol=@lxc"):
        machine.sh(f"echo '{line.format(kind.name)}' >/etc/fstab")
        machine.refused(f"fstab mounts something else on .*: {line.split()[0]} .*Choose another mountpoint")
        assert not os.path.exists(kind.name) and not sh(["wipefs", on_device])
    machine.sh(f"echo '{on_device} {kind.name} btrfs noatime' >/etc/fstab")
    assert machine.storage() == [step for step in planned if not step.startswith("write")] and kind.there() and machine.storage() == []
    machine.sh(f'umount {kind.name} && echo "UUID=$(blkid -p -o value -s UUID {on_device}) {kind.name} auto noatime" >/etc/fstab')
    assert machine.storage() == [f"mount {kind.name}"] and kind.there() and machine.storage() == []


def test_an_attached_btrfs_carries_clones(machine, tmp_path):
    machine.storage(btrfs={"mountpoint": str(tmp_path / "lxc"), "file": str(tmp_path / "image"), "size": "1G"})
    arguments = f"name=golden template=busybox backing_store=btrfs lxcpath={tmp_path}/lxc"
    run(*machine.command("ansible", "localhost", "-m", "lxc_base", "-a", arguments))
    run(*machine.command("ansible", "localhost", "-m", "lxc_clone", "-a", f"source=golden name=web-[1:3] lxcpath={tmp_path}/lxc"))
    assert machine.sh(f"ls {tmp_path}/lxc").split() == ["golden", "web-1", "web-2", "web-3"]


def test_lxcs_defaults_are_written_when_asked_and_never_over_others(machine):
    wanted = {"host_lvm": {"vg": "some-vg", "thinpool": "thin"}, "host_zfs": {"dataset": "tank/lxc"}}
    machine.sh("mkdir -p /etc/lxc && echo lxc.lxcpath = /srv/lxc >/etc/lxc/lxc.conf")
    assert machine.role(tasks_from="defaults", check=True, **wanted)[0] == 1
    assert machine.role(tasks_from="defaults", **wanted)[0] == 1 and machine.role(tasks_from="defaults", **wanted)[0] == 0
    values = [machine.sh(f"lxc-config {key}").strip() for key in ("lxc.lxcpath", "lxc.bdev.lvm.vg", "lxc.bdev.lvm.thin_pool", "lxc.bdev.zfs.root")]
    assert values == ["/srv/lxc", "some-vg", "thin", "tank/lxc"]
    assert machine.role(tasks_from="storage_absent")[0] == 1
    assert machine.sh("cat /etc/lxc/lxc.conf") == "lxc.lxcpath = /srv/lxc\n"
    machine.sh("echo lxc.bdev.lvm.vg = theirs >>/etc/lxc/lxc.conf")
    with pytest.raises(AssertionError, match="sets lxc.bdev.lvm.vg = theirs already"):
        machine.role(tasks_from="defaults", **wanted)
