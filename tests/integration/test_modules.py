# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""lxc_clone and lxc_base as an operator meets them, on overlay clones of a busybox base."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import checkout
import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.fleet import CloneCall
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import CLONE_ARGUMENTS
from conftest import sh


def test_a_deleted_delta_a_killed_clone_and_an_edited_config_are_noticed(golden):
    options = {"source": "golden", "name": "web-[1:3]", "state": "started", "config": {"lxc.environment": "N={name}"}}
    golden.clone(**options)
    sh(["lxc-stop", "-P", golden.lxcpath, "-n", "web-2", "-k"])
    sh(["sed", "-i", "s/N=web-3/N=other/", golden.path("web-3", "config")])
    again = golden.clone(**options)
    assert {c["name"]: c["actions"] for c in again["clones"]} == {"web-1": [], "web-2": ["start"], "web-3": ["configure"]}
    assert again["clones"][2]["restart_required"] is True
    sh(["lxc-stop", "-P", golden.lxcpath, "-n", "web-1", "-k"])
    shutil.rmtree(golden.path("web-1", "overlay", "delta"))
    with pytest.raises(FleetError, match="web-1: is broken.*delta is missing"):
        golden.clone(**options)


def test_config_drift_is_shown_written_and_taken_back(golden):
    golden.clone(source="golden", name="web-7", config={"lxc.start.order": 7}, autostart={"enabled": True})

    def read():
        return open(golden.path("web-7", "config")).read()

    assert "lxc.start.order = 7" in read() and "lxc.start.auto = 1" in read()
    changed = golden.clone(source="golden", name="web-7", config={"lxc.start.order": 8}, autostart={})
    assert "lxc.start.order = 8" in changed["diff"]["after"] and "lxc.start.order = 7" in changed["diff"]["before"]
    assert "lxc.start.order = 8" in read() and "lxc.start.auto" not in read()
    assert not golden.clone(source="golden", name="web-7", config={"lxc.start.order": 8})["changed"]


def test_index_name_and_overrides_reach_the_config(golden):
    golden.clone(
        source="golden",
        name="web-[08:09]",
        config={"lxc.environment": ["I={index}", "N={name}", "B={{x}"]},
        overrides={"web-09": {"config": {"lxc.environment": "O=1"}}},
    )

    def config(name):
        return [line for line in open(golden.path(name, "config")).read().splitlines() if "environment" in line]

    assert config("web-08") == ["lxc.environment = I=8", "lxc.environment = N=web-08", "lxc.environment = B={x}"]
    assert config("web-09") == ["lxc.environment = O=1"]


@pytest.mark.parametrize(
    "steps",
    [
        ["started", "frozen", "restarted", "stopped", "absent"],
        ["frozen", "stopped", "restarted", "present", "absent"],
        ["frozen", "started", "frozen", "absent"],
    ],
)
def test_states_follow_each_other_and_each_holds(golden, steps):
    state = {"present": None, "started": "RUNNING", "restarted": "RUNNING", "frozen": "FROZEN", "stopped": "STOPPED"}
    for step in steps:
        golden.clone(source="golden", name="web", state=step)
        if step == "absent":
            assert not os.path.exists(golden.path("web"))
        elif state[step]:
            assert sh(["lxc-info", "-P", golden.lxcpath, "-n", "web", "-sH"]).strip() == state[step]
        if step != "restarted":
            assert not golden.clone(source="golden", name="web", state=step)["changed"]


def test_a_sealed_base_does_not_start_and_its_clones_do(golden):
    done = subprocess.run(["lxc-start", "-P", golden.lxcpath, "-n", "golden"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "sealed base" in open(golden.path("golden", "fleet.lxc.guard.refused")).read()
    golden.clone(source="golden", name="web", state="started")
    sh(["lxc-copy", "-P", golden.lxcpath, "-n", "golden", "-N", "by-hand", "-s"])
    sh(["lxc-start", "-P", golden.lxcpath, "-n", "by-hand"])
    assert golden.up() == ["by-hand", "web"]


def test_a_base_that_changed_since_it_was_sealed_is_not_cloned(golden, refused):
    open(golden.path("golden", "rootfs", "etc", "new"), "w").close()
    refused(golden, "changed since it was sealed", golden.clone, source="golden", name="web")
    golden.base(name="golden", state="sealed")
    golden.clone(source="golden", name="web")
    open(golden.path("golden", "rootfs", "etc", "newer"), "w").close()
    refused(golden, "changed since.*web", golden.base, name="golden", state="sealed")


def test_seal_and_unseal_hold_and_repeat_without_change(golden, refused):
    config = {"lxc.net.0.type": "empty", "lxc.net.0.link": None, "lxc.net.0.flags": None}
    assert not golden.base(name="golden", state="sealed", config=config)["changed"]
    golden.clone(source="golden", name="web")
    refused(golden, "not unsealed.*web", golden.base, name="golden", state="unsealed", config=config)
    golden.clone(name="web", state="absent")
    assert golden.base(name="golden", state="unsealed", config=config)["base"]["sealed"] is False
    assert not golden.base(name="golden", state="unsealed", config=config)["changed"]
    assert "guard" not in open(golden.path("golden", "config")).read()


def test_what_runs_on_the_bases_rootfs_under_another_name_is_found(fleet, refused):
    fleet.golden(state="present")
    shutil.copy(fleet.path("golden", "config"), fleet.path("golden", "other.conf"))
    sh(f"sed -i 's/^lxc.uts.name.*/lxc.uts.name = other/' {fleet.path('golden', 'other.conf')}")
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "other", "-f", fleet.path("golden", "other.conf")])
    try:
        with pytest.raises(FleetError, match="in use"):
            fleet.clone(source="golden", name="web")
        assert not os.path.exists(fleet.path("web"))
    finally:
        sh(["lxc-stop", "-P", fleet.lxcpath, "-n", "other", "-k"])


def test_an_adopted_container_is_left_when_it_ceases_to_be_a_base(fleet):
    sh(["lxc-create", "-P", fleet.lxcpath, "-n", "C1", "-t", "busybox"])
    before = open(fleet.path("C1", "config")).read()
    assert fleet.base(name="C1", adopt=True, state="sealed")["base"]["origin"] == "adopted"
    assert not fleet.base(name="C1", adopt=True, state="sealed")["changed"]
    fleet.base(name="C1", state="absent")
    assert open(fleet.path("C1", "config")).read() == before and sorted(os.listdir(fleet.path("C1"))) == ["config", "rootfs"]
    fleet.base(name="C1", adopt=True)
    fleet.base(name="C1", state="absent", delete_adopted=True)
    assert os.listdir(fleet.lxcpath) == []


def test_a_base_is_made_of_an_archive_with_owners_and_xattrs(fleet, tmp_path):
    fleet.golden(state="present")
    rootfs, archive = fleet.path("golden", "rootfs"), str(tmp_path / "root.tar")
    os.chown(f"{rootfs}/etc/passwd", 1234, 4321)
    os.setxattr(f"{rootfs}/etc/passwd", "user.mark", b"x")
    sh(["tar", "--numeric-owner", "--xattrs", "-cf", archive, "-C", rootfs, "."])
    fleet.base(name="second", rootfs_archive=archive, state="sealed")
    copy = fleet.path("second", "rootfs", "etc", "passwd")
    assert (os.stat(copy).st_uid, os.stat(copy).st_gid, os.getxattr(copy, "user.mark")) == (1234, 4321, b"x")
    assert not fleet.base(name="second", rootfs_archive=archive, state="sealed")["changed"]


REFUSALS = [
    ("no such source", {"source": "nothing", "name": "web"}),
    ("needs a source", {"name": "web"}),
    ("name of its source", {"source": "golden", "name": "golden"}),
    *[("is not a container name", {"source": "golden", "name": bad}) for bad in ("a/b", "..", "a b", "a\nb", "-a", "a" * 64, "")],
    ("named twice", {"source": "golden", "name": ["a", "a"]}),
    ("ends before it begins", {"source": "golden", "name": "a[5:1]"}),
    ("more than 10,000", {"source": "golden", "name": "a[1:10001]"}),
    ("not a clone of the family", {"source": "golden", "name": ["fine", "foreign"]}),
    ("not a clone of the family", {"source": "golden", "name": "copied"}),
    *[
        (f"must not set {key}", {"source": "golden", "name": "a", "config": {key: "x"}})
        for key in ("lxc.rootfs.path", "lxc.rootfs.options", "lxc.uts.name", "lxc.idmap", "lxc.include")
    ],
    ("guard of a sealed base", {"source": "golden", "name": "a", "config": {"lxc.hook.pre-start": "/x/fleet.lxc.guard"}}),
    ("no LXC configuration key", {"source": "golden", "name": "a", "config": {"memory": "1G"}}),
    ("line break", {"source": "golden", "name": "a", "config": {"lxc.environment": "a\nlxc.include=x"}}),
    ("cannot be on btrfs", {"source": "golden", "name": "a", "method": "snapshot", "backing_store": "btrfs"}),
    ("not made by fleet.lxc", {"name": "foreign", "state": "absent"}),
    ("not made by fleet.lxc", {"name": "f[o:p]reign", "state": "absent"}),
    ("named literally", {"name": "f[o:p]reign", "state": "absent", "foreign": True}),
    ("is a base", {"name": "golden", "state": "absent"}),
    ("overrides name", {"source": "golden", "name": "a", "overrides": {"b": {}}}),
]


@pytest.mark.parametrize(("match", "options"), REFUSALS, ids=[f"{match}-{index}" for index, (match, _options) in enumerate(REFUSALS)])
def test_bad_input_is_refused_before_anything_is_touched(golden, refused, match, options):
    sh(["lxc-copy", "-P", golden.lxcpath, "-n", "golden", "-N", "foreign"])
    if options.get("name") == "f[o:p]reign":
        os.rename(golden.path("foreign"), golden.path("foreign_"))
        shutil.copytree(golden.path("foreign_"), golden.path("foreign"), symlinks=True)
        shutil.rmtree(golden.path("foreign_"))
    golden.clone(source="golden", name="ours")
    sh(["cp", "-a", golden.path("ours"), golden.path("copied")])
    refused(golden, match, golden.clone, **options)


def test_a_foreign_container_goes_when_it_is_named_alone(golden):
    sh(["lxc-copy", "-P", golden.lxcpath, "-n", "golden", "-N", "foreign"])
    golden.clone(name="foreign", state="absent", foreign=True)
    assert golden.names() == ["golden"]


def test_a_running_source_is_refused(fleet, refused):
    fleet.golden(state="present")
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "golden"])
    with pytest.raises(FleetError, match="golden: is running"):
        fleet.clone(source="golden", name="web", method="copy")
    assert not os.path.exists(fleet.path("web"))


def test_a_source_without_rootfs_is_refused(golden, refused):
    os.mkdir(golden.path("bare"))
    with open(golden.path("bare", "config"), "w") as file:
        file.write("lxc.uts.name = bare\n")
    refused(golden, "no lxc.rootfs.path", golden.clone, source="bare", name="web")


def test_a_read_only_lxcpath_is_refused(golden, refused):
    sh(["mount", "--bind", golden.lxcpath, golden.lxcpath])
    sh(["mount", "-o", "remount,bind,ro", golden.lxcpath])
    try:
        refused(golden, "read-only filesystem", golden.clone, source="golden", name="web")
    finally:
        sh(["umount", golden.lxcpath])


@pytest.mark.parametrize("call", ["clone", "base"])
def test_nobody_but_root_is_served(golden, call):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            getattr(golden, call)(name="golden", state="absent")
        except FleetError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        assert "made by root" in (said := file.read()) and "become: true" in said
    assert golden.names() == ["golden"]


def test_after_a_failure_the_report_says_what_is_there(golden):
    golden.clone(source="golden", name="web-[1:3]")
    for name in ("web-2", "web-3"):
        sh(["sed", "-i", "$a lxc.net.0.type = no-such-type", golden.path(name, "config")])
    options = {"source": "golden", "name": "web-[1:4]", "state": "started", "workers": 1}
    for on_error, begun in (
        ("stop", {"web-1": "running", "web-2": "failed", "web-3": "stopped", "web-4": "stopped"}),
        ("continue", {"web-1": "running", "web-2": "failed", "web-3": "failed", "web-4": "running"}),
    ):
        result = CloneCall(golden.options(CLONE_ARGUMENTS, {**options, "name": ["web-[1:4]"], "on_error": on_error})).run(False)
        assert {clone["name"]: clone["state"] for clone in result["clones"]} == begun
        assert result["summary"]["failed"] == len(result["failures"]) == list(begun.values()).count("failed")
        assert result["left_out"] == [name for name, state in begun.items() if state == "stopped"]
    assert result["summary"]["unchanged"] == 1


def test_a_bad_lxcpath_is_refused(golden, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for lxcpath, match in (("/nowhere", "does not exist"), (str(file), "not a directory"), ("relative", "absolute"), ("/proc/sys", "read-only|no such")):
        golden.lxcpath, kept = lxcpath, golden.lxcpath
        try:
            with pytest.raises(FleetError, match=match):
                golden.clone(source="golden", name="web")
        finally:
            golden.lxcpath = kept


def test_an_lxcpath_on_overlay_takes_no_overlay_clones(golden, tmp_path):
    parts = [tmp_path / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir()
    sh(["mount", "-t", "overlay", "-o", f"lowerdir={parts[0]},upperdir={parts[1]},workdir={parts[2]}", "overlay", str(parts[3])])
    try:
        kept, golden.lxcpath = golden.lxcpath, str(parts[3])
        with pytest.raises(FleetError, match="writable layer.*method: copy"):
            golden.clone(source="golden", source_lxcpath=kept, name="web", method="snapshot")
        golden.lxcpath = kept
    finally:
        sh(["umount", str(parts[3])])


@pytest.mark.parametrize(
    ("tool", "options", "package"), [("rsync", {"method": "copy"}, "rsync"), ("btrfs", {"method": "copy", "backing_store": "btrfs"}, "btrfs-progs")]
)
def test_a_missing_tool_is_named_with_its_package(golden, refused, monkeypatch, tool, options, package):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name == tool else which(name, **more))
    refused(golden, f"{tool} is missing.*{package}", golden.clone, source="golden", name="web", **options)


def test_too_little_space_for_full_copies_is_told_before_the_first(fleet_on, refused):
    fleet = fleet_on("xfs")
    fleet.golden(state="present", backing_store="loop", storage={"size": "700M", "fstype": None})
    with open(fleet.path("golden", "rootfs", "filler"), "wb") as file:
        file.write(os.urandom(1 << 20))
    refused(fleet, "full copies need", fleet.clone, source="golden", name="n[1:2000]", method="copy", backing_store="dir")


def test_a_failed_hook_leaves_no_clone(fleet):
    fleet.golden(state="present")
    with open(fleet.path("golden", "hook"), "w") as file:
        file.write('#!/bin/sh\necho $LXC_SRC_NAME $LXC_NAME "$@" >$LXC_ROOTFS_MOUNT/etc/hooked\n[ $LXC_NAME != bad ]\n')
    os.chmod(fleet.path("golden", "hook"), 0o755)
    with open(fleet.path("golden", "config"), "a") as file:
        file.write(f"lxc.hook.clone = {fleet.path('golden', 'hook')}\n")
    fleet.clone(source="golden", name="good")
    assert open(fleet.path("good", "overlay", "delta", "etc", "hooked")).read() == "golden good good lxc clone\n"
    with pytest.raises(FleetError, match="bad"):
        fleet.clone(source="golden", name="bad")
    assert sorted(os.listdir(fleet.lxcpath)) == ["golden", "good"]


WORKER = """
import json, sys
sys.path[:0] = {paths!r}
from conftest import Fleet
print(json.dumps(Fleet({lxcpath!r}).clone(source="golden", name={name!r}, state={state!r})["summary"]))
"""


def run(fleet, name, state="present"):
    code = WORKER.format(paths=[p for p in sys.path if p], lxcpath=fleet.lxcpath, name=name, state=state)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)


def whole(fleet, names):
    bookkeeping = open(fleet.path("golden", "lxc_snapshots")).read().splitlines()[1::2]
    assert sorted(bookkeeping) == sorted(set(bookkeeping)) == sorted(names)
    assert sorted(os.listdir(fleet.lxcpath)) == sorted(["golden", *names])
    for name in names:
        assert sorted(os.listdir(fleet.path(name))) == ["config", "fleet.lxc.json", "lxc_rdepends", "overlay", "rootfs"]
        assert (
            open(fleet.path(name, "overlay", "delta", "etc", "hostname")).read() == f"{name}\n"
            if os.path.exists(fleet.path("golden", "rootfs", "etc", "hostname"))
            else True
        )


def test_two_runs_over_overlapping_ranges_make_each_clone_once(golden):
    runs = [run(golden, "web-[001:200]"), run(golden, "web-[101:300]")]
    made = [json.loads(process.communicate()[0])["created"] for process in runs]
    assert sum(made) == 300
    whole(golden, [f"web-{i:03}" for i in range(1, 301)])


def test_a_run_killed_at_ten_random_moments_is_completed_by_the_next(golden):
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for _attempt in range(10):
        process = run(golden, "web-[001:300]")
        time.sleep(chance.uniform(0.1, 0.6))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    golden.clone(source="golden", name="web-[001:300]")
    whole(golden, [f"web-{i:03}" for i in range(1, 301)])
    golden.clone(name="web-[001:300]", state="absent")
    assert os.listdir(golden.lxcpath) == ["golden"] and not os.path.exists(golden.path("golden", "lxc_snapshots")), seed


def test_a_removal_that_was_cut_off_is_finished_by_the_next(golden):
    golden.clone(source="golden", name="web-[1:2]")
    os.rename(golden.path("web-1", "fleet.lxc.json"), golden.path("web-1", "fleet.lxc.intent"))
    os.unlink(golden.path("web-1", "config"))
    result = golden.clone(source="golden", name="web-[1:2]")
    assert result["clones"][0]["actions"] == ["sweep", "create"]
    whole(golden, ["web-1", "web-2"])


def test_a_mount_in_a_clone_is_not_emptied_by_its_removal(golden, tmp_path):
    golden.clone(source="golden", name="web")
    (tmp_path / "precious").write_text("x")
    point = golden.path("web", "rootfs")
    sh(["mount", "--bind", str(tmp_path), point])
    try:
        with pytest.raises(FleetError, match="mounted"):
            golden.clone(name="web", state="absent")
        assert (tmp_path / "precious").exists()
    finally:
        sh(["umount", point])
    golden.clone(name="web", state="absent")


def test_a_base_with_clones_below_another_lxcpath_is_kept(golden, fleet_on, refused):
    other = fleet_on()
    other.clone(source="golden", source_lxcpath=golden.lxcpath, name="web")
    refused(golden, "web", golden.base, name="golden", state="absent")
    other.clone(name="web", state="absent")
    golden.base(name="golden", state="absent")


def test_the_locks_holder_is_awaited(golden):
    done = []
    threads = [threading.Thread(target=lambda i=i: done.append(golden.clone(source="golden", name=f"t{i}-[1:20]"))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result["summary"]["created"] for result in done] == [20] * 4


def test_the_guides_two_commands_work_as_ad_hoc(fleet):
    sh(["lxc-create", "-P", fleet.lxcpath, "-n", "C1", "-t", "busybox"])
    for name, method in (("C2", "copy"), ("C3", "snapshot")):
        for module in ("lxc_clone", "fleet.lxc.lxc_clone"):
            said = checkout.run("ansible", "localhost", "-m", module, "-a", f"source=C1 name={name} method={method} lxcpath={fleet.lxcpath}")
            assert ("CHANGED" in said) == (module == "lxc_clone")
    assert fleet.names() == ["C1", "C2", "C3"]
