# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guide's quirks of btrfs: subvolumes nested in the base, and an fsync that dpkg waits for."""

from __future__ import annotations

import os
import re

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from conftest import digest, sh
from test_conformance import inside

SETTING = "etc/dpkg/dpkg.cfg.d/fleet-lxc"


def test_nested_subvolumes_are_lost_by_lxc_copy_and_refused_by_us_with_the_commands_that_mend_it(fleet_on):
    fleet = fleet_on("btrfs")
    fleet.golden(state="present", backing_store="btrfs")
    os.mkdir(fleet.path("golden", "rootfs", "srv"))
    for name in ("srv/outer", "srv/outer/it's inner"):
        sh(["btrfs", "subvolume", "create", fleet.path("golden", "rootfs", name)])
        open(fleet.path("golden", "rootfs", name, "file"), "w").close()
    sh(["lxc-copy", "-P", fleet.lxcpath, "-n", "golden", "-N", "by-lxc", "-s", "-B", "btrfs"])
    assert os.listdir(fleet.path("by-lxc", "rootfs", "srv", "outer")) == []
    for _subvolume in range(2):
        with pytest.raises(FleetError, match="nested subvolumes?: .*/srv/outer") as caught:
            fleet.clone(source="golden", name="web")
        assert not os.path.exists(fleet.path("web"))
        sh(re.search(r"mv .*", str(caught.value)).group())
    fleet.clone(source="golden", name="web")
    assert os.path.exists(fleet.path("web", "rootfs", "srv", "outer", "it's inner", "file"))


BASES = {
    "dir": ("ext", {}),
    "btrfs": ("btrfs", {"backing_store": "btrfs"}),
    "loop": ("ext", {"backing_store": "loop", "storage": {"size": "96M"}}),
}


@pytest.fixture(params=BASES)
def bases(request, fleet_on, tmp_path):
    """(A fleet, options that make a base whose guest has dpkg.)"""
    filesystem, options = BASES[request.param]
    fleet = fleet_on(filesystem)
    fleet.base(name="maker", template="busybox")
    os.makedirs(fleet.path("maker", "rootfs", os.path.dirname(SETTING)))
    sh(["tar", "--numeric-owner", "-cf", str(tmp_path / "root.tar"), "-C", fleet.path("maker", "rootfs"), "."])
    return fleet, {"name": "golden", "rootfs_archive": str(tmp_path / "root.tar"), **options}


def setting(fleet, name):
    def read(root):
        path = os.path.join(root, SETTING)
        return "force-unsafe-io" in open(path).read().splitlines() if os.path.exists(path) else False

    return inside(fleet, name, read)


def test_dpkgs_setting_is_there_before_the_seal_and_in_the_clones(bases):
    fleet, golden = bases
    assert fleet.base(state="sealed", dpkg_unsafe_io=True, **golden)["actions"] == ["create", "seal"]
    fleet.clone(source="golden", name="web", method="auto" if golden.get("backing_store") != "loop" else "copy")
    assert setting(fleet, "golden") and setting(fleet, "web")
    for wanted in (True, None):
        assert not fleet.base(state="sealed", dpkg_unsafe_io=wanted, **golden)["changed"]


def test_dpkgs_setting_comes_and_goes_and_a_sealed_base_is_sealed_anew(bases):
    fleet, golden = bases
    generations = {fleet.base(state="sealed", **golden)["base"]["generation"]}
    for wanted in (True, False):
        before = digest(fleet.lxcpath)
        check = fleet.base(check_mode=True, state="sealed", dpkg_unsafe_io=wanted, **golden)
        assert digest(fleet.lxcpath) == before
        run = fleet.base(state="sealed", dpkg_unsafe_io=wanted, **golden)
        assert check["actions"] == run["actions"] == ["tune", "seal"] and check["diff"] == run["diff"]
        assert f"dpkg_unsafe_io: {str(wanted).lower()}" in run["diff"]["after"]
        assert setting(fleet, "golden") is wanted and run["base"]["sealed"]
        generations.add(run["base"]["generation"])
        assert not fleet.base(state="sealed", dpkg_unsafe_io=wanted, **golden)["changed"]
    assert len(generations) == 3
    assert fleet.base(state="unsealed", dpkg_unsafe_io=True, **golden)["actions"] == ["tune", "unseal"] and setting(fleet, "golden")
    fleet.clone(source="golden", name="web", method="auto" if golden.get("backing_store") != "loop" else "copy")


def test_dpkgs_setting_reaches_a_base_that_runs(bases):
    fleet, golden = bases
    fleet.base(config={"lxc.net.0.type": "empty", "lxc.net.0.link": None, "lxc.net.0.flags": None}, **golden)
    config = {"lxc.net.0.type": "empty", "lxc.net.0.link": None, "lxc.net.0.flags": None}
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "golden"])
    assert fleet.base(dpkg_unsafe_io=True, config=config, **golden)["actions"] == ["tune"]
    assert sh(["lxc-attach", "-P", fleet.lxcpath, "-n", "golden", "--", "tail", "-n1", f"/{SETTING}"]) == "force-unsafe-io\n"
    assert not fleet.base(dpkg_unsafe_io=True, config=config, **golden)["changed"]
    sealed = fleet.base(dpkg_unsafe_io=False, config=config, state="sealed", stop=True, **golden)
    assert sealed["actions"] == ["stop", "tune", "seal"] and not setting(fleet, "golden")


def test_a_sealed_base_with_dependents_keeps_its_files(fleet, refused):
    fleet.golden(state="present")
    os.makedirs(fleet.path("golden", "rootfs", os.path.dirname(SETTING)))
    fleet.golden()
    fleet.clone(source="golden", name="web")
    refused(fleet, "is sealed and its files are not changed while 1 .*web", fleet.golden, dpkg_unsafe_io=True)
    assert not fleet.golden(dpkg_unsafe_io=False)["changed"]


def test_a_guest_without_dpkg_is_left_as_it_is_with_a_warning(fleet):
    for _run in range(2):
        (warning,) = fleet.golden(state="sealed", dpkg_unsafe_io=True)["warnings"]
        assert "golden has no dpkg" in warning
    assert not fleet.golden(state="sealed", dpkg_unsafe_io=True)["changed"]


def test_dpkgs_setting_is_not_written_through_a_symlink_of_the_guest(fleet, tmp_path):
    fleet.golden(state="present")
    os.makedirs(fleet.path("golden", "rootfs", os.path.dirname(SETTING)))
    (tmp_path / "victim").write_text("x")
    os.symlink(tmp_path / "victim", fleet.path("golden", "rootfs", SETTING))
    for wanted in (True, False):
        with pytest.raises(FleetError, match="no regular file"):
            fleet.golden(state="present", dpkg_unsafe_io=wanted)
    assert (tmp_path / "victim").read_text() == "x"
