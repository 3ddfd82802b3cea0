# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""ZFS where LXC goes wrong, each trap shown first as LXC falls into it; full pools; runs cut off at random moments.

They skip where the kernel has no ZFS: ./test storage runs them in a machine that has it.
"""

from __future__ import annotations

import os
import uuid

import pytest
import test_crashes
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import lxc, sh


@pytest.fixture
def tight_zfs_pool(volumes, tmp_path):
    """A pool that holds a base and two clones of 24 MiB, in place of the other one; calling it adds room."""
    pool = f"tight{uuid.uuid4().hex[:6]}"

    def disk(name, size):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
        return str(tmp_path / name)

    sh(["zpool", "create", "-m", "none", "-O", "recordsize=1M", pool, disk("small", 160 << 20)])
    sh(["zfs", "create", f"{pool}/lxc"])
    before = dict(volumes.used)
    volumes.instead["zfs_dataset"] = f"{pool}/lxc"
    yield lambda: sh(["zpool", "add", pool, disk("more", 512 << 20)])
    volumes.remove_all()
    volumes.used.clear()
    volumes.used.update(before)
    sh(["zpool", "destroy", "-f", pool])


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


def test_a_pool_that_fills_up_in_the_middle_leaves_whole_clones_and_no_residue(tight_zfs_pool, base_on, grows_when_cloned):
    grows_when_cloned(base_on(), tight_zfs_pool)


def test_a_quota_that_is_reached_in_the_middle_leaves_whole_clones_and_no_residue(base_on, volumes, grows_when_cloned):
    root = volumes.use("zfs_dataset")
    # Near its limit ZFS waits for the disk after each record.
    sh(["zfs", "set", "recordsize=1M", f"quota={80 << 20}", root])
    fleet = base_on()
    try:
        grows_when_cloned(fleet, lambda: sh(["zfs", "set", "quota=none", root]))
    finally:
        sh(["zfs", "inherit", "recordsize", root])
        sh(["zfs", "set", "quota=none", root])


def test_clones_cut_off_at_random_moments_are_completed_by_the_next_run(base_on, volumes):
    fleet = base_on()
    names = test_crashes.NAMES[:2]
    options = {"source": "golden", "name": names, "method": "snapshot"}
    bare = volumes.present()
    moments = test_crashes.killed_at_random_moments(lambda: fleet.clone(**options)["summary"], lambda: fleet.clone(name=names, state="absent"))
    assert not fleet.clone(**options)["failures"] and not fleet.clone(**options)["changed"], moments
    test_crashes.nothing_left(fleet)
    made = sorted(set(volumes.present()) - set(bare))
    assert [path.rpartition("/")[2] for path in made] == [*(f"golden@{name}" for name in names), *names], moments
    fleet.clone(name=names, state="absent")
    assert volumes.present() == bare and os.listdir(fleet.lxcpath) == ["golden"], moments
