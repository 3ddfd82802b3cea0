# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""LVM where LXC goes wrong, each trap shown first as LXC falls into it; full pools and areas; runs cut off at random moments.

They skip where the kernel has no device-mapper: ./test storage runs them in a machine that has it.
"""

from __future__ import annotations

import os
import uuid

import pytest
import test_crashes
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import crashed, inside, lxc, need_lvm, sh, starts

THIN = {"thinpool": "pool", "size": "64M"}
THICK = {"size": "64M"}


def test_thin_lxc_copy_fails_without_a_word_and_ours_starts(base_on):
    fleet = base_on(THIN)
    theirs = lxc("lxc-copy", fleet, "golden", "-N", "theirs", "-s", "-B", "lvm")
    assert theirs.returncode != 0 and theirs.stdout + theirs.stderr == ""
    room = fleet.clone(source="golden", name="ours", method="snapshot")["storage"]
    assert room["thinpool"] == "pool" and 0 < room["data_percent"] < 50 and 0 < room["metadata_percent"] < 50
    assert starts(fleet, "ours")
    fleet.clone(source="ours", name="of-ours", method="snapshot")
    assert starts(fleet, "of-ours")


def test_a_running_clone_grows(base_on):
    fleet = base_on(THIN)
    fleet.clone(source="golden", name="web", state="started")

    def room():
        return int(lxc("lxc-attach", fleet, "web", "--", "df", "-kP", "/").stdout.splitlines()[-1].split()[1])

    assert room() < 64 << 10
    assert fleet.clone(source="golden", name="web", state="started", storage={"size": "160M"})["clones"][0]["actions"] == ["grow"]
    assert room() > 128 << 10 and fleet.up() == ["web"]


@pytest.mark.parametrize("storage", [THIN, THICK], ids=["thin", "thick"])
def test_a_size_that_is_no_multiple_of_an_extent_is_rounded_as_lvm_does(base_on, storage):
    fleet = base_on({**storage, "size": "90M"})
    options = {"source": "golden", "name": "web", "method": "snapshot" if storage is THIN else "copy", "storage": {"size": "90M"}}
    assert fleet.clone(**options)["summary"]["created"] == 1
    assert not fleet.clone(**options)["changed"] and starts(fleet, "web")


def test_a_thin_base_goes_and_its_clones_live_on(base_on):
    fleet = base_on(THIN)
    fleet.clone(source="golden", name="web")
    fleet.base(name="golden", state="absent")
    assert sh(["lxc-start", "-P", fleet.lxcpath, "-n", "web"]) == "" and fleet.up() == ["web"]


def test_lxc_destroy_of_a_thick_base_takes_the_clones_disks_along_and_ours_refuses(base_on, volumes):
    fleet = base_on(THICK)
    assert lxc("lxc-copy", fleet, "golden", "-N", "theirs", "-s", "-L", "16M").returncode == 0
    assert any(path.endswith("/theirs") for path in volumes.present())
    assert lxc("lxc-destroy", fleet, "golden").returncode == 0
    assert volumes.present() == [] and fleet.names() == ["theirs"]

    fleet = base_on(THICK)
    fleet.clone(source="golden", name="web", method="snapshot", storage={"cow_size": "16M"})
    before = volumes.present()
    with pytest.raises(FleetError, match="golden: is not removed.*web"):
        fleet.base(name="golden", state="absent")
    assert volumes.present() == before
    assert fleet.base(name="golden", state="absent", cascade=True)["base"]["dependents"] == [fleet.path("web")]
    assert volumes.present() == []


def test_a_snapshot_of_a_thick_snapshot_is_refused_before_anything_is_touched(base_on, volumes, refused):
    fleet = base_on(THICK)
    fleet.clone(source="golden", name="web", method="snapshot", storage={"cow_size": "16M"})
    before = volumes.present()
    refused(fleet, "thick snapshot, which LVM cannot snapshot again.*method: copy", fleet.clone, source="web", name="of-web", method="snapshot")
    assert volumes.present() == before


def test_a_base_that_is_named_by_its_mapper_path_is_the_same_volume(base_on, busybox_archive):
    fleet = base_on(THIN)
    volume = fleet.rootfs("golden").path
    _empty, _dev, vg, name = volume.split("/")
    mapper = f"/dev/mapper/{vg.replace('-', '--')}-{name.replace('-', '--')}"
    assert os.path.realpath(mapper) == os.path.realpath(volume) and "-" in vg
    sh(["sed", "-i", f"s|^lxc.rootfs.path = .*|lxc.rootfs.path = {mapper}|", fleet.path("golden", "config")])
    theirs = lxc("lxc-copy", fleet, "golden", "-N", "theirs", "-s")
    assert theirs.returncode != 0
    assert not fleet.golden(state="present", rootfs_archive=busybox_archive)["changed"]
    fleet.clone(source="golden", name="web", method="snapshot")
    assert str(fleet.rootfs("web")) == f"lvm:/dev/{vg}/web" and starts(fleet, "web")


def test_a_thick_base_is_not_started_beneath_its_clones(base_on, refused):
    fleet = base_on(THICK)
    fleet.clone(source="golden", name="web", method="snapshot", storage={"cow_size": "16M"})
    for check_mode in (True, False):
        match = "golden: is not started while 1 containers depend on its storage: web"
        refused(fleet, match, fleet.base, name="golden", state="started", check_mode=check_mode)


def test_a_thin_base_is_started_beside_its_clones(base_on):
    fleet = base_on(THIN)
    fleet.clone(source="golden", name="web")
    fleet.base(name="golden", state="started")
    assert fleet.up() == ["golden"]


def test_a_base_with_btrfs_in_it_that_runs_under_another_name_is_noticed(base_on, refused, tmp_path):
    fleet = base_on({"thinpool": "pool", "size": "256M", "fstype": "btrfs"})
    sh(["lxc-start", "-P", str(tmp_path), "-n", "other", "-f", fleet.path("golden", "config")])
    try:
        refused(fleet, "golden: is not cloned: its root filesystem is in use.*runs on it", fleet.clone, source="golden", name="web")
        refused(fleet, "golden: is not sealed: its root filesystem is in use", fleet.base, name="golden", state="sealed")
    finally:
        sh(["lxc-stop", "-P", str(tmp_path), "-n", "other", "-k"])
    fleet.base(name="golden", state="sealed")


def test_a_volume_that_is_not_active_is_told_of_with_the_mend(base_on, volumes, refused):
    fleet, vg = base_on(THIN, state="sealed"), volumes.use("volume_group")
    fleet.clone(source="golden", name="web")
    for name in ("golden", "web"):
        sh(["lvchange", "-an", f"{vg}/{name}"])
    mend = f"golden is not active.*lvchange -ay -K {vg}/golden"
    refused(fleet, mend, fleet.golden, state="sealed", backing_store="lvm")
    refused(fleet, mend, fleet.clone, source="golden", name="more")
    refused(fleet, mend, fleet.clone, source="golden", name="more", method="copy")
    sh(["lvchange", "-ay", f"{vg}/golden"])
    (warning,) = fleet.call(source="golden", name="web")["warnings"]
    assert warning.startswith("web: ") and f"lvchange -ay -K {vg}/web" in warning
    fleet.clone(name="web", state="absent")


@pytest.mark.parametrize("base", [THIN, THICK], ids=["thin", "thick"])
def test_options_that_do_not_fit_a_clone_are_refused(base_on, volumes, refused, base):
    fleet = base_on(base)
    for method, storage, match in (
        ("snapshot", {"fstype": "xfs"}, "cannot have the filesystem xfs: it has ext4.*method: copy"),
        ("snapshot", {"thinpool": "other"}, f"cannot be in the thin pool other: {'it is in pool' if base is THIN else 'it is thick'}.*method: copy"),
        ("snapshot", {"vg": "other"}, "cannot be in the VG other"),
        ("copy", {"cow_size": "16M"}, "cow_size does not fit: a full copy has no"),
        *([("snapshot", {"cow_size": "16M"}, "cow_size does not fit: .* is thin, has no")] if base is THIN else []),
    ):
        refused(fleet, match, fleet.clone, source="golden", name="web", method=method, storage=storage)
    own = {"fstype": "ext4", "vg": volumes.use("volume_group"), **({"thinpool": "pool"} if base is THIN else {"cow_size": "16M"})}
    assert fleet.clone(source="golden", name="web", method="snapshot", storage=own)["summary"]["created"] == 1


@pytest.mark.parametrize("shape", [{"size": "96M"}, {"size": "300M", "fstype": "xfs"}, {"size": "256M", "fstype": "btrfs"}], ids=["ext4", "xfs", "btrfs"])
def test_what_a_crash_left_in_the_journal_is_copied(base_on, refused, shape):
    fleet = base_on({"thinpool": "pool", **shape})
    crashed(fleet, "golden")
    fleet.base(name="golden", state="sealed", scrub=False)
    with pytest.raises(FleetError, match="golden was not unmounted cleanly.*read-only.*state=unsealed"):
        fleet.clone(source="golden", name="web", method="copy")
    assert os.listdir(fleet.lxcpath) == ["golden"]
    fleet.base(name="golden", state="unsealed")
    fleet.clone(source="golden", name="web", method="copy")
    assert inside(fleet, "web", lambda path: os.path.getsize(f"{path}/root/kept")) == 100000
    fleet.base(name="golden", state="sealed", scrub=False)
    fleet.clone(source="golden", name="db", method="copy")


def test_what_lvm_conf_says_of_its_log_does_not_matter(base_on):
    local, fleet = "/etc/lvm/lvmlocal.conf", base_on(THIN)
    before = open(local, encoding="utf-8").read() if os.path.exists(local) else ""
    with open(local, "a", encoding="utf-8") as file:
        file.write("\nlog {\n\treport_command_log = 1\n\tverbose = 1\n}\n")
    try:
        assert fleet.clone(source="golden", name="web")["summary"]["created"] == 1
        assert not fleet.clone(source="golden", name="web")["changed"]
    finally:
        with open(local, "w", encoding="utf-8") as file:
            file.write(before)


def test_a_stale_volume_of_a_clones_name_is_neither_taken_nor_removed(base_on, volumes, refused):
    fleet = base_on(THIN)
    vg = volumes.use("volume_group")
    sh(["lvcreate", "-q", "-y", "-L", "8M", "-n", "web", vg])
    refused(fleet, f"already a logical volume /dev/{vg}/web.*lvremove", fleet.clone, source="golden", name="web")
    assert f"/dev/{vg}/web" in volumes.present()


def test_a_thick_clone_of_xfs_has_room_for_the_log_that_it_does_not_share(base_on, refused):
    fleet = base_on({"size": "300M", "fstype": "xfs"})
    refused(fleet, "cow_size must be 68M or more.*log.*ext4", fleet.clone, source="golden", name="web", storage={"cow_size": "64M"})
    fleet.clone(source="golden", name="web")
    fleet.clone(source="golden", name="tight", storage={"cow_size": "68M"})
    for name, most in (("web", 60), ("tight", 100)):
        attr, percent = sh(["lvs", "--noheadings", "-o", "lv_attr,data_percent", fleet.rootfs(name).path]).split()
        assert attr[4] == "a" and 40 < float(percent) < most
    # Beside its base, also as LXC mounts it.
    assert inside(fleet, "golden", lambda _path: inside(fleet, "web", os.listdir)) and starts(fleet, "web")


def test_thin_clones_of_xfs_fit_into_the_pool_with_their_logs(base_on, volumes, refused):
    vg = volumes.use("volume_group")
    sh(["lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "240M", "-n", "tight", vg])
    fleet = base_on({"thinpool": "tight", "size": "300M", "fstype": "xfs"})
    refused(fleet, "the clones need 195 MiB, the thin pool .*/tight has .*lvextend", fleet.clone, source="golden", name="web-[1:3]")
    before = float(sh(["lvs", "--noheadings", "-o", "data_percent", f"{vg}/tight"]))
    fleet.clone(source="golden", name="web-1")
    assert float(sh(["lvs", "--noheadings", "-o", "data_percent", f"{vg}/tight"])) - before <= 65 / 240 * 100 + 1


@pytest.mark.parametrize("backing_store", ["lvm", "loop"])
def test_a_copy_of_a_thick_snapshot_has_its_size_and_filesystem(base_on, backing_store):
    fleet = base_on({"size": "256M", "fstype": "btrfs"})
    fleet.clone(source="golden", name="web", method="snapshot", storage={"cow_size": "64M"})
    fleet.clone(source="web", name="copy", method="copy", backing_store=backing_store)
    path = fleet.rootfs("copy").path
    held = sh(["blockdev", "--getsize64", path]) if backing_store == "lvm" else os.path.getsize(path)
    assert int(held) == 256 << 20 and sh(["blkid", "-p", "-o", "value", "-s", "TYPE", path]).strip() == "btrfs"
    assert starts(fleet, "copy")


def test_a_full_copy_on_write_area_is_reported_and_nothing_else_is_harmed(base_on):
    fleet = base_on(THICK)
    fleet.clone(source="golden", name=["small", "large"], method="snapshot", storage={"cow_size": "12M"})

    def fill(path):
        with open(f"{path}/filler", "wb") as file:
            file.write(os.urandom(40 << 20))

    try:
        inside(fleet, "small", fill, writable=True)
    except (FleetError, OSError):
        pass
    assert "I" in sh(["lvs", "--noheadings", "-o", "lv_attr", fleet.rootfs("small").path]).strip()[4]
    with pytest.raises(FleetError, match="small: is broken: the copy-on-write area of .*/small was full.*state=absent"):
        fleet.clone(source="golden", name=["small", "large"])
    fleet.clone(name="small", state="absent")
    fleet.clone(source="golden", name=["small", "large"], storage={"cow_size": "48M"})
    assert starts(fleet, "small") and starts(fleet, "large")


def test_a_copy_on_write_area_that_fills_is_told_of_in_time(base_on):
    fleet = base_on(THICK)
    fleet.clone(source="golden", name="web", method="snapshot", storage={"cow_size": "40M"})

    def write(path):
        with open(f"{path}/filler", "wb") as file:
            file.write(os.urandom(32 << 20))

    inside(fleet, "web", write, writable=True)
    (warning,) = fleet.call(source="golden", name="web")["warnings"]
    assert "web: the copy-on-write area of " in warning and "lvextend -L" in warning and "snapshot_autoextend_threshold" in warning


def test_too_little_room_for_all_is_told_before_the_first(base_on, refused, volumes):
    fleet = base_on(THICK)
    before = volumes.present()
    refused(fleet, "copies need .* MiB, the VG .* has .* MiB free.*vgextend", fleet.clone, source="golden", name="n[1:200]", method="copy")
    refused(fleet, "too little for 200 copy-on-write areas", fleet.clone, source="golden", name="n[1:200]", method="snapshot", storage={"cow_size": "64M"})
    assert volumes.present() == before


def test_a_thin_pool_that_fills_up_in_the_middle_leaves_whole_clones_and_no_residue(base_on, volumes, grows_when_cloned):
    vg = volumes.use("volume_group")
    sh(["lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "96M", "-n", "tight", vg])
    sh(["lvchange", "-q", "--errorwhenfull", "y", f"{vg}/tight"])
    try:
        fleet = base_on({"thinpool": "tight", "size": "64M"})

        def add_room():
            sh(["lvcreate", "-q", "-y", "-V", "96M", "--thinpool", f"{vg}/tight", "-n", "ballast"])
            sh(["dd", "if=/dev/zero", f"of=/dev/{vg}/ballast", "bs=1M", "oflag=direct"], check=False)
            with pytest.raises(FleetError, match=f"the data of the thin pool {vg}/tight is .*% full.*lvextend"):
                fleet.clone(source="golden", name="more")
            sh(["lvremove", "-q", "-f", f"{vg}/ballast"])
            sh(["lvextend", "-q", "-L", "400M", f"{vg}/tight"])

        grows_when_cloned(fleet, add_room)
    finally:
        volumes.remove_all()


@pytest.mark.parametrize("storage", [THIN, THICK], ids=["thin", "thick"])
def test_clones_cut_off_at_random_moments_are_completed_by_the_next_run(base_on, volumes, storage):
    fleet = base_on(storage)
    names = test_crashes.NAMES[:2]
    options = {"source": "golden", "name": names, "method": "snapshot", "storage": {"cow_size": "16M"} if storage is THICK else None}
    bare = volumes.present()
    moments = test_crashes.killed_at_random_moments(lambda: fleet.clone(**options)["summary"], lambda: fleet.clone(name=names, state="absent"))
    assert not fleet.clone(**options)["failures"] and not fleet.clone(**options)["changed"], moments
    test_crashes.nothing_left(fleet)
    made = sorted(set(volumes.present()) - set(bare))
    assert [path.rpartition("/")[2] for path in made] == names, moments
    fleet.clone(name=names, state="absent")
    assert volumes.present() == bare and os.listdir(fleet.lxcpath) == ["golden"], moments


@pytest.mark.parametrize(
    ("storage", "devices"), [(THIN, ["golden", "web--1", "pool-tpool"]), (THICK, ["golden", "golden-real", "web--1"])], ids=["thin", "thick"]
)
def test_what_a_killed_command_left_suspended_is_resumed(base_on, volumes, storage, devices):
    fleet, vg = base_on(storage), volumes.use("volume_group").replace("-", "--")
    options = {"source": "golden", "name": ["web-1", "web-2"], "method": "snapshot", "storage": {"cow_size": "16M"} if storage is THICK else None}
    fleet.clone(**options)
    for device in devices:
        fleet.clone(name="web-2", state="absent")
        # Whoever reads it waits for ever.
        sh(["dmsetup", "suspend", f"{vg}-{device}"])
        fleet.clone(**options)
        for name in ("golden", "web-1", "web-2"):
            assert "etc" in inside(fleet, name, os.listdir)
    sh(["dmsetup", "suspend", f"{vg}-web--1"])
    fleet.clone(name=["web-1", "web-2"], state="absent")


def made_by_hand(volumes, *words):
    """A volume of the operator's own."""
    sh(["lvcreate", "-q", "-y", *words])
    return f"/dev/{volumes.use('volume_group')}/mine"


def test_a_thick_base_that_is_the_external_origin_of_another_volume_stays(base_on, volumes, refused):
    fleet, vg = base_on(THICK, state="sealed"), volumes.use("volume_group")
    sh(["lvchange", "-an", f"{vg}/golden"])
    mine = made_by_hand(volumes, "-s", "-n", "mine", "--thinpool", f"{vg}/pool", f"{vg}/golden")
    sh(["lvchange", "-ay", f"{vg}/golden"])
    for check_mode in (True, False):
        refused(fleet, f"golden: .* is not removed.*{mine}", fleet.base, name="golden", state="absent", check_mode=check_mode)
    assert mine in volumes.present()
    # Taken in as a container, it is a dependent like any other.
    sh(["lxc-create", "-P", fleet.lxcpath, "-n", "theirs", "-t", "none"])
    sh(f"sed -i /rootfs.path/d {fleet.path('theirs', 'config')}; echo 'lxc.rootfs.path = lvm:{mine}' >>{fleet.path('theirs', 'config')}")
    refused(fleet, "golden: is not removed.*theirs", fleet.base, name="golden", state="absent")
    sh(["lvremove", "-q", "-f", mine])
    fleet.base(name="golden", state="absent")
    assert volumes.present() == []


def test_a_thin_base_of_which_someone_made_a_thick_snapshot_is_thin_still(base_on, volumes, refused):
    fleet, vg = base_on(THIN), volumes.use("volume_group")
    mine = made_by_hand(volumes, "-s", "-L", "16M", "-n", "mine", f"{vg}/golden")
    assert fleet.clone(source="golden", name="web")["storage"]["thinpool"] == "pool"
    assert sh(["lvs", "--noheadings", "-o", "pool_lv,lv_attr", f"{vg}/web"]).split()[0] == "pool"
    refused(fleet, f"golden: .* is not removed.*{mine}", fleet.base, name="golden", state="absent")
    assert not fleet.clone(source="golden", name="web")["changed"]
    sh(["lvremove", "-q", "-f", mine])
    mine = made_by_hand(volumes, "-s", "-L", "16M", "-n", "mine", f"{vg}/web")
    refused(fleet, f"web: .* is not removed.*{mine}", fleet.clone, name="web", state="absent")
    sh(["lvremove", "-q", "-f", mine])
    fleet.base(name="golden", state="absent")
    assert starts_alone(fleet, "web")


def starts_alone(fleet, name):
    return sh(["lxc-start", "-P", fleet.lxcpath, "-n", name]) == "" and fleet.up() == [name]


@pytest.fixture
def vg_on_a_file(volumes, tmp_path):
    """A VG in place of the other one, and a function that takes its disk away or brings it back."""
    need_lvm()
    name, image = f"fleet-away-{uuid.uuid4().hex[:6]}", tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(512 << 20)

    def attach(there):
        if there:
            device = sh(["losetup", "--find", "--show", str(image)]).strip()
            sh(["vgchange", "-q", "-ay", name], check=False)
            return device
        sh(["vgchange", "-q", "-an", name])
        return sh(f"losetup --noheadings --output NAME -j {image} | xargs losetup --detach")

    sh(["vgcreate", "-q", "-y", name, attach(True)])
    sh(["lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "300M", "-n", "pool", name])
    with volumes.replaced("volume_group", name):
        yield attach
    sh(["vgremove", "-q", "-f", "-y", name])
    sh(f"losetup --noheadings --output NAME -j {image} | xargs -r losetup --detach")


def test_a_vg_without_its_disk_is_away_and_not_gone(vg_on_a_file, stays_while_away, volumes):
    match = f"the VG {volumes.use('volume_group')} is not there. Bring its disks back"
    stays_while_away(THIN, match, lambda: vg_on_a_file(False), lambda: vg_on_a_file(True))


def test_what_would_be_in_a_bases_way_is_told_by_check_mode_too(fleet, volumes, busybox_archive, refused):
    vg = volumes.use("volume_group")
    options = {"rootfs_archive": busybox_archive, "backing_store": "lvm"}
    ways = {
        "there is no VG none.*storage.vg": {"vg": "none"},
        "has no thin pool none.*storage.thinpool": {"vg": vg, "thinpool": "none"},
        "needs .* MiB, the VG .* has .* MiB free": {"vg": vg, "size": "90G"},
    }
    for match, storage in ways.items():
        for check in (True, False):
            refused(fleet, match, fleet.golden, check_mode=check, storage=storage, **options)
    sh(["lvcreate", "-q", "-y", "-L", "8M", "-n", "golden", vg])
    for check in (True, False):
        refused(fleet, f"golden: there is already a logical volume /dev/{vg}/golden.*lvremove", fleet.golden, check_mode=check, storage={"vg": vg}, **options)
        refused(fleet, "snapshot1 is a name that LVM keeps", fleet.base, check_mode=check, name="snapshot1", storage={"vg": vg}, **options)


def test_an_area_that_fills_up_in_the_middle_of_several_clones_leaves_whole_ones_and_no_residue(base_on, volumes, tmp_path):
    fleet, hook = base_on(THICK), tmp_path / "hook"
    hook.write_text("#!/bin/sh\n[ $LXC_NAME != web-3 ] || exec dd if=/dev/urandom of=$LXC_ROOTFS_MOUNT/grown bs=1M count=24 conv=fsync\n")
    hook.chmod(0o755)
    with open(fleet.path("golden", "config"), "a", encoding="utf-8") as file:
        file.write(f"lxc.hook.clone = {hook}\n")
    bare, names = volumes.present(), [f"web-{number}" for number in range(1, 6)]
    options = {"source": "golden", "name": names, "method": "snapshot", "workers": 1}
    result = fleet.call(**options, storage={"cow_size": "12M"})
    assert list(result["failures"]) == ["web-3"] and "web-3" in str(result["failures"]["web-3"])
    assert fleet.names() == sorted(os.listdir(fleet.lxcpath)) == ["golden", "web-1", "web-2"]
    assert {path.rpartition("/")[2] for path in volumes.present() if path not in bare} == {"web-1", "web-2"}
    assert fleet.clone(**options, storage={"cow_size": "48M"})["summary"]["created"] == 3
    for name in names:
        assert "etc" in inside(fleet, name, os.listdir)


@pytest.mark.parametrize("clones", [1, 2])
def test_a_thin_device_that_a_killed_command_left_to_be_made_is_made(base_on, volumes, clones):
    fleet, vg = base_on(THIN), volumes.use("volume_group")
    taken = [int(number) for number in sh(["lvs", "--noheadings", "-o", "thin_id", vg]).split()]
    pool = f"{vg.replace('-', '--')}-pool-tpool"
    # As the kernel has it then; LVM tells of it by failing.
    numbers = range(max(taken) + 1, max(taken) + 1 + clones)
    for number in numbers:
        sh(["dmsetup", "message", pool, "0", f"create_thin {number}"])
    names = [f"web-{number}" for number in range(1, clones + 1)]
    assert fleet.clone(source="golden", name=names, method="snapshot")["summary"]["created"] == clones
    assert "etc" in inside(fleet, names[-1], os.listdir)
    fleet.clone(name=names, state="absent")
