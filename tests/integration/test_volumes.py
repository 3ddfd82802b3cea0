# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""LVM and ZFS where LXC goes wrong, each trap shown first as LXC falls into it; full pools; runs cut off at random moments.

They skip where the kernel has no device-mapper or ZFS: ./test storage runs them in a machine that has both.
"""

from __future__ import annotations

import os
import subprocess

import pytest
import test_crashes
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.fleet import CloneCall
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import CLONE_ARGUMENTS
from conftest import sh
from test_conformance import inside

THIN = {"thinpool": "pool", "size": "64M"}
THICK = {"size": "64M"}


@pytest.fixture
def base_on(fleet_on, volumes, busybox_archive):
    """Makes a fleet whose base is on LVM (with these options of storage) or, without any, on ZFS."""

    def make(storage=None, state="present"):
        fleet = fleet_on()
        where = {"vg": volumes.use("volume_group"), **storage} if storage else {"zfs_dataset": volumes.use("zfs_dataset")}
        fleet.golden(state=state, rootfs_archive=busybox_archive, backing_store="lvm" if storage else "zfs", storage=where)
        return fleet

    return make


def lxc(command, fleet, name, *arguments):
    return subprocess.run([command, "-P", fleet.lxcpath, "-n", name, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def attempt(fleet, **options):
    """A call with what failed in it, which is not raised."""
    options["name"] = [options["name"]] if isinstance(options["name"], str) else options["name"]
    return CloneCall(fleet.options(CLONE_ARGUMENTS, options)).run(False)


def starts(fleet, name):
    fleet.clone(source="golden", name=name, state="started")
    fleet.clone(source="golden", name=name, state="stopped", force_stop=True, stop_timeout=5)
    return True


# LVM


def test_thin_lxc_copy_fails_without_a_word_and_ours_starts(base_on):
    fleet = base_on(THIN)
    theirs = lxc("lxc-copy", fleet, "golden", "-N", "theirs", "-s", "-B", "lvm")
    assert theirs.returncode != 0 and theirs.stdout + theirs.stderr == ""
    fleet.clone(source="golden", name="ours", method="snapshot")
    assert starts(fleet, "ours")
    fleet.clone(source="ours", name="of-ours", method="snapshot")
    assert starts(fleet, "of-ours")


def test_a_thin_base_goes_and_its_clones_live_on(base_on):
    fleet = base_on(THIN)
    fleet.clone(source="golden", name="web")
    fleet.base(name="golden", state="absent")
    assert sh(["lxc-start", "-P", fleet.lxcpath, "-n", "web"]) == "" and fleet.up() == ["web"]


def test_lxc_destroy_of_a_thick_base_takes_the_clones_disks_along_and_ours_refuses(base_on, volumes):
    fleet = base_on(THICK)
    assert lxc("lxc-copy", fleet, "golden", "-N", "theirs", "-s", "-B", "lvm", "-L", "16M").returncode == 0
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


def test_a_base_that_is_named_by_its_mapper_path_is_the_same_volume(base_on):
    fleet = base_on(THIN)
    volume = fleet.rootfs("golden").path
    _empty, _dev, vg, name = volume.split("/")
    mapper = f"/dev/mapper/{vg.replace('-', '--')}-{name.replace('-', '--')}"
    assert os.path.realpath(mapper) == os.path.realpath(volume) and "-" in vg
    sh(["sed", "-i", f"s|^lxc.rootfs.path = .*|lxc.rootfs.path = {mapper}|", fleet.path("golden", "config")])
    theirs = lxc("lxc-copy", fleet, "golden", "-N", "theirs", "-s")
    assert theirs.returncode != 0
    assert not fleet.golden(state="present")["changed"]
    fleet.clone(source="golden", name="web", method="snapshot")
    assert str(fleet.rootfs("web")) == f"lvm:/dev/{vg}/web" and starts(fleet, "web")


def test_a_stale_volume_of_a_clones_name_is_neither_taken_nor_removed(base_on, volumes, refused):
    fleet = base_on(THIN)
    vg = volumes.use("volume_group")
    sh(["lvcreate", "-q", "-y", "-L", "8M", "-n", "web", vg])
    refused(fleet, f"already a logical volume /dev/{vg}/web.*lvremove", fleet.clone, source="golden", name="web")
    assert f"/dev/{vg}/web" in volumes.present()


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
    (warning,) = attempt(fleet, source="golden", name="web")["warnings"]
    assert "web: the copy-on-write area of " in warning and "lvextend -L" in warning and "snapshot_autoextend_threshold" in warning


def test_too_little_room_for_all_is_told_before_the_first(base_on, refused, volumes):
    fleet = base_on(THICK)
    before = volumes.present()
    refused(fleet, "copies need .* MiB, the VG .* has .* MiB free.*vgextend", fleet.clone, source="golden", name="n[1:200]", method="copy")
    refused(fleet, "too little for 200 copy-on-write areas", fleet.clone, source="golden", name="n[1:200]", method="snapshot", storage={"cow_size": "64M"})
    assert volumes.present() == before


def test_a_thin_pool_that_fills_up_between_clones_leaves_whole_ones_and_no_residue(base_on, volumes):
    fleet = base_on({"thinpool": "pool", "size": "64M"})
    vg = volumes.use("volume_group")
    sh(["lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "96M", "--errorwhenfull", "y", "-n", "tight", vg])
    try:

        def fill(path):
            with open(f"{path}/filler", "wb") as file:
                file.write(os.urandom(20 << 20))

        inside(fleet, "golden", fill, writable=True)
        size = {"thinpool": "tight", "size": "64M"}
        # Each takes more than its files: the filesystem's own tables and journal. So the last ones find the pool full.
        names = [f"web-{number}" for number in range(1, 5)]
        result = attempt(fleet, source="golden", name=names, method="copy", backing_store="lvm", storage=size, workers=1)
        failed = sorted(result["failures"])
        assert failed and len(failed) < 4, result["summary"]
        assert all("did not reach" in str(error) or "cannot write" in str(error) or "failed" in str(error) for error in result["failures"].values())
        whole = [name for name in names if name not in failed and os.path.exists(fleet.path(name))]
        assert sorted(os.listdir(fleet.lxcpath)) == sorted(["golden", *whole])
        assert [path.rpartition("/")[2] for path in volumes.present() if "web-" in path] == whole
        for name in whole:
            assert inside(fleet, name, lambda path: os.path.getsize(f"{path}/filler")) == 20 << 20
        sh(["lvextend", "-q", "-L", "400M", f"{vg}/tight"])
        assert not fleet.clone(source="golden", name=names, method="copy", backing_store="lvm", storage=size)["failures"]
        assert fleet.names() == ["golden", *names]
    finally:
        fleet.empty()
        volumes.remove_all()


# ZFS


def test_lxc_copy_takes_a_stale_dataset_for_its_clone_and_ours_refuses(base_on, volumes, refused):
    fleet = base_on()
    root = volumes.use("zfs_dataset")
    sh(["zfs", "create", "-o", "mountpoint=none", f"{root}/web"])
    theirs = lxc("lxc-copy", fleet, "golden", "-N", "web", "-s", "-B", "zfs")
    assert theirs.returncode == 0 and sh(["zfs", "get", "-H", "-o", "value", "origin", f"{root}/web"]).strip() == "-"  # no clone of anything
    sh(["rm", "-rf", fleet.path("web")])
    sh(["zfs", "destroy", f"{root}/golden@web"], check=False)
    before = volumes.present()
    refused(fleet, f"already a dataset {root}/web.*zfs destroy", fleet.clone, source="golden", name="web")
    assert volumes.present() == before


def test_a_legacy_zfs_path_is_not_touched(base_on, refused):
    fleet = base_on()
    path = fleet.path("golden", "rootfs")
    sh(["sed", "-i", f"s|^lxc.rootfs.path = .*|lxc.rootfs.path = zfs:{path}|", fleet.path("golden", "config")])
    refused(fleet, "of the old kind and is not touched.*zfs:POOL/DATASET", fleet.clone, source="golden", name="web")


def test_a_zfs_base_is_released_when_its_clones_are_gone_by_ours_or_by_lxc_destroy(base_on, volumes):
    fleet = base_on(state="sealed")
    fleet.clone(source="golden", name="web-[1:3]")
    assert lxc("lxc-destroy", fleet, "golden").returncode != 0
    with pytest.raises(FleetError, match="golden: is not removed while 3"):
        fleet.base(name="golden", state="absent")
    assert lxc("lxc-destroy", fleet, "web-1").returncode == 0
    fleet.clone(name="web-[1:2]", state="absent")
    fleet.base(name="golden", state="absent", cascade=True)
    assert volumes.present() == [] and os.listdir(fleet.lxcpath) == []


def test_a_clone_of_a_zfs_clone_holds_it_and_a_new_generation_leaves_the_clones_of_the_old_alone(base_on, volumes):
    fleet = base_on(state="sealed")
    fleet.clone(source="golden", name="web")
    fleet.clone(source="web", name="of-web")
    with pytest.raises(FleetError, match="web: is not removed.*of-web"):
        fleet.clone(name="web", state="absent")
    assert [one["name"] for one in fleet.clone(name="web", state="absent", cascade=True)["clones"]] == ["of-web", "web"]
    fleet.base(name="golden", state="absent")
    assert volumes.present() == []


def test_a_full_pool_in_the_middle_of_copies_leaves_whole_ones_and_no_residue(base_on, volumes):
    fleet = base_on()
    root = volumes.use("zfs_dataset")
    sh(["zfs", "set", f"quota={60 << 20}", root])
    try:

        def fill(path):
            with open(f"{path}/filler", "wb") as file:
                file.write(os.urandom(16 << 20))

        inside(fleet, "golden", fill, writable=True)
        sh(["zpool", "sync"])
        names = [f"web-{number}" for number in range(1, 4)]
        # A file that grows while the copies are made is what no check before can know of.
        grower = subprocess.Popen(
            ["sh", "-c", f"zfs create -o mountpoint={fleet.lxcpath}-grower {root}/grower && head -c 30M /dev/urandom >{fleet.lxcpath}-grower/file"]
        )
        grower.wait()
        result = attempt(fleet, source="golden", name=names, method="copy", workers=1)
        assert result["failures"] or result["summary"]["created"] < 3
    except FleetError as error:
        # The room was known to be too little.
        assert "MiB free" in str(error)
    finally:
        sh(["zfs", "destroy", f"{root}/grower"], check=False)
        sh(["rm", "-rf", f"{fleet.lxcpath}-grower"], check=False)
        sh(["zfs", "set", "quota=none", root])
    whole = [name for name in names if os.path.exists(fleet.path(name))]
    assert sorted(os.listdir(fleet.lxcpath)) == sorted(["golden", *whole])
    assert not fleet.clone(source="golden", name=names, method="copy")["failures"]
    for name in names:
        assert inside(fleet, name, lambda path: os.path.getsize(f"{path}/filler")) == 16 << 20


# Runs that are cut off


@pytest.mark.parametrize("storage", [THIN, THICK, None], ids=["lvm-thin", "lvm-thick", "zfs"])
def test_clones_on_volumes_cut_off_at_random_moments_are_completed_by_the_next_run(base_on, volumes, storage):
    fleet = base_on(storage)
    names = test_crashes.NAMES[:3]
    options = {"source": "golden", "name": names, "method": "snapshot"}
    if storage is THICK:
        options["storage"] = {"cow_size": "16M"}
    bare = volumes.present()
    moments = test_crashes.killed_at_random_moments(lambda: fleet.clone(**options)["summary"], lambda: fleet.clone(name=names, state="absent"))
    assert not fleet.clone(**options)["failures"] and not fleet.clone(**options)["changed"], moments
    test_crashes.nothing_left(fleet)
    made = [path for path in volumes.present() if path not in bare]
    assert sorted({path.partition("@")[0].rpartition("/")[2] for path in made} - {"golden"}) == names, moments
    assert len(made) == (6 if storage is None else 3), (made, moments)
    fleet.clone(name=names, state="absent")
    assert volumes.present() == bare and os.listdir(fleet.lxcpath) == ["golden"], moments
