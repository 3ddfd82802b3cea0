# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role fleet on thin LVM and on ZFS, driven as a user drives it."""

from __future__ import annotations

import re
import shutil
import sys

import pytest
import yaml
from checkout import ROOT, run
from conftest import lxc, sh

LOOK = """
! command -v lvs >/dev/null || lvs --noheadings --options lv_full_name,lv_size,lv_tags
! command -v zfs >/dev/null || zfs list -H -t all -o name,origin,mountpoint
losetup --noheadings --list; cat /proc/mounts; ls -A {lxcpath}
"""


@pytest.mark.parametrize("store", ["lvm", "zfs"])
def test_base_and_five_started_clones_again_unchanged_and_nothing_left(fleet, volumes, bridge, busybox_archive, tmp_path, store):
    storage = {"vg": volumes.use("volume_group"), "thinpool": "pool", "size": "64M"} if store == "lvm" else {"zfs_dataset": volumes.use("zfs_dataset")}
    playbook = tmp_path / "site.yml"
    variables = {
        "fleet_lxcpath": fleet.lxcpath,
        "fleet_base_rootfs_archive": busybox_archive,
        "fleet_base_backing_store": store,
        "fleet_base_storage": storage,
        "fleet_base_config": {"lxc.net.0.link": bridge, "lxc.signal.halt": "SIGUSR1", "lxc.signal.reboot": "SIGTERM"},
        "fleet_clones": ["web-[1:5]"],
        "fleet_remove_base": True,
        "ansible_python_interpreter": sys.executable,
    }
    playbook.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "roles": ["fleet.lxc.fleet"], "vars": variables}]))

    def play(*words):
        said = run(shutil.which("ansible-playbook"), "--inventory", "localhost,", "--connection", "local", *words, playbook, cwd=ROOT)
        return int(re.search(r"changed=(\d+)", said).group(1)), said

    def look():
        return sh(LOOK.format(lxcpath=fleet.lxcpath))

    before = look()
    names = [f"web-{number}" for number in range(1, 6)]
    changed, said = play()
    assert changed and fleet.up() == names
    for name in names:
        assert re.search(rf"{name} +running +198\.\d+\.\d+\.\d+ +snapshot \({store}\)", said), said
        assert lxc("lxc-attach", fleet, name, "--", "hostname").stdout.strip() == name
    assert play()[0] == 0 and fleet.up() == names
    assert play("--extra-vars", "fleet_state=absent")[0] and look() == before
