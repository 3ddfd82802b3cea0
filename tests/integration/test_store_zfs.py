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
from ansible_collections.fleet.lxc.plugins.module_utils.container import INTENT, PROVENANCE
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import inside, lxc, need_zfs, sh


@pytest.fixture
def tight_zfs_pool(volumes, tmp_path):
    """A pool that holds a base and two clones of 24 MiB, in place of the other one; calling it adds room."""
    need_zfs()
    pool = f"tight{uuid.uuid4().hex[:6]}"

    def disk(name, size):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
        return str(tmp_path / name)

    sh(["zpool", "create", "-m", "none", "-O", "recordsize=1M", pool, disk("small", 160 << 20)])
    sh(["zfs", "create", f"{pool}/lxc"])
    with volumes.replaced("zfs_dataset", f"{pool}/lxc"):
        yield lambda: sh(["zpool", "add", pool, disk("more", 512 << 20)])
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


def test_a_removal_that_zfs_would_refuse_is_refused_before_anything_is_stopped_or_forgotten(base_on, volumes):
    fleet = base_on()
    fleet.clone(source="golden", name="web", state="started")
    dataset = fleet.rootfs("web").path
    sh(["zfs", "snapshot", f"{dataset}@autosnap"])
    for check in (True, False):
        with pytest.raises(FleetError, match=f"web: the dataset {dataset} is not removed: {dataset}@autosnap are snapshots that were not made by"):
            fleet.clone(check_mode=check, name="web", state="absent")
    result = fleet.call(name="web", state="absent", on_error="continue")
    assert list(result["failures"]) == ["web"] and not result["changed"]
    assert fleet.up() == ["web"]
    sh(["zfs", "destroy", f"{dataset}@autosnap"])
    assert not fleet.clone(source="golden", name="web", state="started")["changed"]
    assert fleet.clone(name="web", state="absent", force_stop=True)["changed"]


def test_a_base_with_clones_below_another_lxcpath_stays_what_it_is(base_on, fleet_on, volumes):
    fleet, other, dataset = base_on(), fleet_on(), f"{volumes.use('zfs_dataset')}/other"
    sh(["zfs", "create", dataset])
    other.clone(source="golden", source_lxcpath=fleet.lxcpath, name="web", storage={"zfs_dataset": dataset})
    before = volumes.present()
    for options in ({}, {"cascade": True}):
        with pytest.raises(FleetError, match="golden.* is not removed.*/web stand on its snapshots"):
            fleet.base(name="golden", state="absent", **options)
    assert volumes.present() == before and not fleet.base(name="golden")["changed"]
    with pytest.raises(FleetError, match="already a snapshot .*golden@web: .*/web stands on it. Choose another name[.]$"):
        fleet.clone(source="golden", name="web")
    other.clone(name="web", state="absent")
    fleet.base(name="golden", state="absent")
    assert volumes.present() == [dataset]


def test_replicas_of_a_base_keep_their_snapshots_when_a_clone_goes(base_on, volumes):
    fleet, root = base_on(), volumes.use("zfs_dataset")
    fleet.clone(source="golden", name="web")
    sh(f"zfs send -R {root}/golden@web | zfs receive -u {root}/replica")
    # The second run finds nothing but the snapshot.
    for cut in (False, True):
        if cut:
            sh(["zfs", "destroy", f"{root}/web"])
            os.rename(fleet.path("web", PROVENANCE), fleet.path("web", INTENT))
        assert fleet.clone(name="web", state="absent")["changed"]
        assert f"{root}/replica@web" in volumes.present() and f"{root}/golden@web" not in volumes.present()
        fleet.clone(source="golden", name="web")
    fleet.clone(name="web", state="absent")


def test_a_pool_that_is_not_imported_is_away_and_not_gone(tight_zfs_pool, stays_while_away, volumes, tmp_path):
    pool = volumes.use("zfs_dataset").partition("/")[0]
    match = f"the pool {pool} is not imported. Import it [(]zpool import {pool}[)]"
    stays_while_away(None, match, lambda: sh(["zpool", "export", pool]), lambda: sh(["zpool", "import", "-d", str(tmp_path), pool]))


def test_an_adopted_dataset_is_forgotten_without_a_trace(base_on):
    fleet = base_on()
    dataset = fleet.rootfs("golden").path
    os.unlink(fleet.path("golden", PROVENANCE))
    sh(["zfs", "inherit", "fleet.lxc:id", dataset])
    sh(["zfs", "set", "mountpoint=legacy", dataset])
    fleet.base(name="golden", adopt=True, state="sealed")
    assert not fleet.base(name="golden", state="sealed")["changed"]
    fleet.clone(source="golden", name="web")
    fleet.clone(name="web", state="absent")
    fleet.base(name="golden", state="absent")
    assert sh(["zfs", "get", "-H", "-o", "value", "fleet.lxc:id", dataset]).strip() == "-" and fleet.names() == ["golden"]


def test_what_would_be_in_a_bases_way_is_told_by_check_mode_too(fleet, volumes, busybox_archive, refused):
    root = volumes.use("zfs_dataset")
    sh(["zfs", "create", "-o", "mountpoint=none", f"{root}/golden"])
    options = {"rootfs_archive": busybox_archive, "backing_store": "zfs"}
    for match, dataset in (
        (f"golden: there is already a dataset {root}/golden.*zfs destroy", root),
        ("there is no dataset .*/none.*storage.zfs_dataset", f"{root}/none"),
    ):
        for check in (True, False):
            refused(fleet, match, fleet.golden, check_mode=check, storage={"zfs_dataset": dataset}, **options)


@pytest.mark.parametrize(("readonly", "match"), [(True, "is read-only.*readonly=off"), (False, "key is not loaded.*zfs load-key")], ids=["read-only", "locked"])
def test_a_dataset_that_cannot_be_written_is_refused_with_what_mends_it(base_on, volumes, refused, busybox_archive, tmp_path, readonly, match):
    fleet, dataset, key = base_on(), f"{volumes.use('zfs_dataset')}/other", tmp_path / "key"
    key.write_text("secret phrase")
    options = ["-o", "readonly=on"] if readonly else ["-o", "encryption=on", "-o", "keyformat=passphrase", "-o", f"keylocation=file://{key}"]
    sh(["zfs", "create", "-o", "mountpoint=none", *options, dataset])
    if not readonly:
        sh(["zfs", "unload-key", dataset])
    for check in (True, False):
        refused(fleet, match, fleet.clone, check_mode=check, source="golden", name="web", storage={"zfs_dataset": dataset})
        makes = {"rootfs_archive": busybox_archive, "backing_store": "zfs", "storage": {"zfs_dataset": dataset}}
        refused(fleet, match, fleet.base, check_mode=check, name="more", **makes)


def test_a_sealed_base_that_changed_is_not_cloned(base_on, refused):
    fleet = base_on(state="sealed")
    # Who looks into it changes nothing.
    assert "etc" in inside(fleet, "golden", os.listdir)
    assert not fleet.base(name="golden", state="sealed")["changed"]
    fleet.clone(source="golden", name="web")
    inside(fleet, "golden", lambda path: os.unlink(f"{path}/etc/passwd"), writable=True)
    refused(fleet, "golden: has changed since it was sealed", fleet.clone, source="golden", name="more")


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
