# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""lxc_base where things are odd: interrupted, half done, adopted, running, known under two names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.fleet import CloneCall
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import CLONE_ARGUMENTS
from conftest import NETWORKLESS, Fleet, sh


def values(fleet, name, key):
    return Config.read(fleet.path(name, "config")).get_all(key)


@pytest.mark.parametrize("state", ["present", "sealed"])
def test_check_mode_tells_of_the_base_that_would_be(fleet, state):
    foreseen = fleet.golden(state=state, check_mode=True)
    made = fleet.golden(state=state)
    assert foreseen["actions"] == made["actions"]
    unknown_yet = ("generation", "fingerprint")
    assert {k: v for k, v in foreseen["base"].items() if k not in unknown_yet} == {k: v for k, v in made["base"].items() if k not in unknown_yet}


def test_a_forgotten_base_has_the_configuration_that_it_was_adopted_with(fleet):
    sh(["lxc-create", "-P", fleet.lxcpath, "-n", "golden", "-t", "busybox"])
    before = Config.read(fleet.path("golden", "config"))
    fleet.base(name="golden", adopt=True, state="sealed", config={"lxc.start.order": "7", **NETWORKLESS})
    assert values(fleet, "golden", "lxc.start.order") == ["7"]
    fleet.base(name="golden", state="absent")
    after = Config.read(fleet.path("golden", "config"))
    assert sorted(after.lines) == sorted(before.lines)
    assert not [name for name in os.listdir(fleet.path("golden")) if "fleet.lxc" in name]


def test_an_adopted_base_whose_rootfs_lies_elsewhere_is_not_half_deleted(fleet, tmp_path, refused):
    sh(["lxc-create", "-P", fleet.lxcpath, "-n", "golden", "-t", "busybox"])
    shutil.move(fleet.path("golden", "rootfs"), tmp_path / "rootfs")
    os.mkdir(fleet.path("golden", "rootfs"))
    sh(["sed", "-i", f"s|^lxc.rootfs.path = .*|lxc.rootfs.path = dir:{tmp_path}/rootfs|", fleet.path("golden", "config")])
    fleet.base(name="golden", adopt=True)
    refused(fleet, "root filesystem lies elsewhere", fleet.base, name="golden", state="absent", delete_adopted=True)
    fleet.base(name="golden", state="absent")
    assert (tmp_path / "rootfs" / "bin").is_dir() and fleet.names() == ["golden"]


def test_a_base_is_not_adopted_through_another_name_of_its_lxcpath(golden, tmp_path, refused):
    other = Fleet(tmp_path / "link")
    os.symlink(golden.lxcpath, other.lxcpath)
    refused(golden, f"known already, below {golden.lxcpath}", other.base, name="golden", adopt=True)


def test_a_clone_below_another_name_of_the_lxcpath_is_one_dependent(golden, tmp_path):
    golden.clone(source="golden", name="web")
    link = tmp_path / "link"
    os.symlink(golden.lxcpath, link)
    with open(golden.path("golden", "lxc_snapshots"), "a") as file:
        file.write(f"{link}\nweb\n")
    with pytest.raises(FleetError, match="while 1 containers depend"):
        golden.base(name="golden", state="absent")


def test_an_unfinished_base_that_runs_is_not_swept_beneath_itself(fleet, refused):
    fleet.golden(state="present")
    os.rename(fleet.path("golden", "fleet.lxc.json"), fleet.path("golden", "fleet.lxc.intent"))
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "golden"])
    for state in ("present", "absent"):
        with pytest.raises(FleetError, match="golden: is unfinished and is not swept while it is running.*stop: true"):
            fleet.golden(state=state)
    assert fleet.up() == ["golden"]
    assert fleet.golden(state="present", stop=True)["actions"] == ["stop", "sweep", "create"]
    assert fleet.up() == []


def test_a_base_that_ignores_the_halt_signal_is_stopped_as_the_options_say(fleet):
    fleet.golden(state="present")
    sh(["sed", "-i", "$a lxc.signal.halt = SIGWINCH", fleet.path("golden", "config")])
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "golden"])
    begin = time.monotonic()
    with pytest.raises(FleetError, match="golden: did not shut down within 1 s.*force_stop: true"):
        fleet.golden(stop=True, stop_timeout=1)
    assert time.monotonic() - begin < 10 and fleet.up() == ["golden"]
    fleet.golden(stop=True, stop_timeout=1, force_stop=True)
    assert fleet.up() == []


def test_a_pipe_in_place_of_a_configuration_holds_nobody_up(golden):
    os.mkdir(golden.path("odd"))
    os.mkfifo(golden.path("odd", "config"))
    os.mkfifo(golden.path("odd", "fleet.lxc.json"))
    golden.clone(source="golden", name="web")
    with pytest.raises(FleetError, match="odd"):
        golden.clone(source="golden", name="odd")


def test_a_base_that_cannot_be_written_to_is_an_error_for_the_operator(golden):
    sh(["chattr", "+i", golden.path("golden")])
    try:
        result = CloneCall(golden.options(CLONE_ARGUMENTS, {"source": "golden", "name": ["web-[1:3]"]})).run(False)
        assert {str(failure.kind) for failure in result["failures"].values()} == {"failed"} and set(result["failures"]) == {"web-1", "web-2", "web-3"}
        assert all("golden" in str(failure) for failure in result["failures"].values())
        assert os.listdir(golden.lxcpath) == ["golden"]
        with pytest.raises(FleetError, match="golden: failed: .*not permitted"):
            golden.base(name="golden", state="unsealed")
    finally:
        sh(["chattr", "-i", golden.path("golden")])
    golden.clone(source="golden", name="web-[1:3]")


def test_a_start_that_hangs_in_a_hook_is_ended(golden, tmp_path):
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\nexec sleep 600\n")
    hook.chmod(0o755)
    options = {"source": "golden", "name": ["web"], "state": "started", "timeout": 2, "config": {"lxc.hook.pre-start": str(hook)}}
    result = CloneCall(golden.options(CLONE_ARGUMENTS, options)).run(False)
    assert str(result["failures"]["web"]).startswith("web: did not start in time")
    assert sh(["lxc-info", "-P", golden.lxcpath, "-n", "web", "-sH"]).strip() == "STOPPED"
    assert golden.lxcpath not in sh("ps -eo args | grep 'lxc monito[r]' || true")
    golden.clone(name="web", state="absent")


def test_an_interrupted_copy_leaves_neither_processes_nor_clones(fleet):
    fleet.golden(state="present")
    with open(fleet.path("golden", "rootfs", "large"), "wb") as file:
        for _part in range(64):
            file.write(os.urandom(4 << 20))
    code = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\nfrom conftest import Fleet\n"
    code += f"Fleet({fleet.lxcpath!r}).clone(source='golden', name='web', method='copy')"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    while not os.path.isdir(fleet.path("web", "rootfs")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    # What rsync forked dies a moment after it.
    deadline = time.monotonic() + 5
    while fleet.lxcpath in sh("ps -eo args | grep rsyn[c] || true"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert os.listdir(fleet.lxcpath) == ["golden"]
