# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults that a review found: each test says what an operator may rely on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import records
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner
from ansible_collections.fleet.lxc.plugins.module_utils.container import PROVENANCE
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.fleet import CloneCall
from ansible_collections.fleet.lxc.plugins.module_utils.host import LxcHost
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import CLONE_ARGUMENTS
from conftest import Fleet, sh


def raw(fleet, check_mode=False, **options):
    options["name"] = [options["name"]] if isinstance(options["name"], str) else options["name"]
    return CloneCall(fleet.options(CLONE_ARGUMENTS, options)).run(check_mode)


@pytest.fixture
def aside(tmp_path):
    """A directory beside the lxcpath on the same filesystem."""
    path = f"/var/tmp/aside-{uuid.uuid4().hex[:8]}"
    os.mkdir(path)
    yield path
    sh(["rm", "-rf", "--one-file-system", path])


def test_a_container_behind_a_directory_symlink_keeps_its_base(golden, aside):
    golden.clone(source="golden", name="web")
    os.rename(golden.path("web"), f"{aside}/web")
    os.symlink(f"{aside}/web", golden.path("web"))
    assert "web" in golden.names()
    try:
        with pytest.raises(FleetError, match="web"):
            golden.base(name="golden", state="absent")
    finally:
        os.unlink(golden.path("web"))


def test_a_clone_behind_a_directory_symlink_is_not_reported_absent(golden, aside):
    golden.clone(source="golden", name="web")
    os.rename(golden.path("web"), f"{aside}/web")
    os.symlink(f"{aside}/web", golden.path("web"))
    try:
        with pytest.raises(FleetError, match="web"):
            golden.clone(name="web", state="absent")
    finally:
        os.unlink(golden.path("web"))


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_check_mode_refuses_a_name_that_is_taken_by_no_directory(golden, aside, kind):
    if kind == "symlink":
        os.symlink(aside, golden.path("web"))
    else:
        open(golden.path("web"), "w").close()
    try:
        with pytest.raises(FleetError, match="web") as run:
            golden.clone(source="golden", name="web")
        print(run.value)
        with pytest.raises(FleetError, match="web"):
            golden.clone(check_mode=True, source="golden", name="web")
    finally:
        os.unlink(golden.path("web"))


def test_a_sealed_base_is_the_same_after_its_disk_got_another_device_number(tmp_path, fleet_on):
    image, point = tmp_path / "a.img", tmp_path / "a"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(200 << 20)
    sh(["mkfs.ext4", "-q", str(image)])
    loops = [sh(["losetup", "--find", "--show", str(image)]).strip()]
    try:
        sh(["mount", loops[0], str(point)])
        fleet = Fleet(point / "lxc")
        os.mkdir(fleet.lxcpath)
        fleet.golden()
        fleet.clone(source="golden", name="web-1")
        first = os.stat(point).st_dev
        sh(["umount", str(point)])
        loops.append(sh(["losetup", "--find", "--show", str(image)]).strip())
        sh(["mount", loops[1], str(point)])
        assert os.stat(point).st_dev != first
        assert not fleet.golden()["changed"]
        fleet.clone(source="golden", name="web-[1:2]")
    finally:
        sh(["umount", str(point)], check=False)
        for loop in loops:
            sh(["losetup", "-d", loop])


def test_source_lxcpath_may_be_the_same_directory_under_another_name(golden, aside):
    alias = f"{aside}/alias"
    os.symlink(golden.lxcpath, alias)
    try:
        golden.clone(source="golden", source_lxcpath=alias, name="web", lock_timeout=2)
    except FleetError as error:
        print(error)
        assert "in use by another run" not in str(error)


def test_a_clone_that_runs_through_another_name_of_the_lxcpath_is_not_removed_beneath_itself(golden, aside):
    golden.clone(source="golden", name="web")
    alias = f"{aside}/alias"
    os.symlink(golden.lxcpath, alias)
    sh(["lxc-start", "-P", alias, "-n", "web"])
    try:
        with pytest.raises(FleetError, match="web"):
            golden.clone(name="web", state="absent")
        assert os.path.exists(golden.path("web", "overlay", "delta"))
    finally:
        sh(["lxc-stop", "-P", alias, "-n", "web", "-k"], check=False)


@pytest.mark.parametrize("state", ["started", "absent"])
def test_an_unfinished_clone_that_runs_is_stopped_before_it_is_swept(golden, state):
    golden.clone(source="golden", name="web", state="started")
    os.rename(golden.path("web", "fleet.lxc.json"), golden.path("web", "fleet.lxc.intent"))
    pid = sh(["lxc-info", "-P", golden.lxcpath, "-n", "web", "-pH"]).strip()
    result = golden.clone(source="golden", name="web", state=state, force_stop=True, stop_timeout=1)
    print(result["clones"])
    alive = os.path.exists(f"/proc/{pid}")
    if alive:
        os.kill(int(pid), signal.SIGKILL)
    assert not alive


def test_clones_on_a_disk_that_was_away_for_a_while_still_hold_their_base(golden, fleet_on):
    other = fleet_on()
    other.clone(source="golden", source_lxcpath=golden.lxcpath, name="far")
    os.rename(other.path("far"), other.lxcpath + ".away")  # as when its disk is not mounted
    golden.clone(source="golden", name="near")
    os.rename(other.lxcpath + ".away", other.path("far"))
    golden.clone(name="near", state="absent")
    with pytest.raises(FleetError, match="far"):
        golden.base(name="golden", state="absent")


def effective(fleet, name, key):
    return sh(["lxc-info", "-P", fleet.lxcpath, "-n", name, "-c", key]).split("=", 1)[-1].split()


@pytest.mark.parametrize("value", ["", "'quoted'", ["a", "", "b"], '"x"', "  x  ", None, True, 1.0, "ü", "a#b"])
def test_any_value_is_written_once(golden, value):
    config = {"lxc.hook.post-stop": value}
    golden.clone(source="golden", name="web", config=config)
    again = golden.clone(source="golden", name="web", config=config)
    assert again["clones"][0]["actions"] == []


@pytest.fixture
def including(fleet):
    """A fleet whose base gets its capabilities from an include, as the Debian and download templates have it."""
    fleet.golden(state="present")
    config = fleet.path("golden", "config")
    with open(config) as file:
        lines = [line for line in file if "cap.drop" not in line]
    with open(config, "w") as file:
        file.write("lxc.include = /usr/share/lxc/config/common.conf\n" + "".join(lines))
    assert effective(fleet, "golden", "lxc.cap.drop")
    return fleet


def test_null_removes_what_an_include_set(including):
    golden = including
    golden.clone(source="golden", name="web", config={"lxc.cap.drop": None})
    assert effective(golden, "web", "lxc.cap.drop") == []


def test_a_value_replaces_what_an_include_set(including):
    golden = including
    golden.clone(source="golden", name="web", config={"lxc.cap.drop": "sys_admin"})
    assert effective(golden, "web", "lxc.cap.drop") == ["sys_admin"]


INCLUDED = {
    "lxc.cap.drop": "sys_time",
    "lxc.environment": "A=1",
    "lxc.mount.entry": "/x x none bind,optional 0 0",
    "lxc.mount.auto": "proc:mixed",
    "lxc.hook.post-stop": "/bin/true",
    "lxc.cgroup2.devices.allow": "c 1:3 rwm",
    "lxc.group": "web",
    "lxc.tty.max": "3",
    "lxc.signal.halt": "SIGINT",
    "lxc.prlimit.nofile": "12",
    "lxc.seccomp.profile": "/usr/share/lxc/config/common.seccomp",
}


@pytest.mark.parametrize("direct", ["before", "after", "nowhere"])
def test_what_an_include_set_is_removed_replaced_and_given_back_whatever_the_key(fleet, aside, direct):
    fleet.golden(state="present")
    lines = "".join(f"{key} = {value}\n" for key, value in INCLUDED.items())
    with open(f"{aside}/more.conf", "w") as file:
        file.write(lines)
    # The busybox template writes some of these keys itself.
    with open(fleet.path("golden", "config")) as file:
        kept = "".join(line for line in file if line.split("=")[0].strip() not in INCLUDED)
    include = f"lxc.include = {aside}/more.conf\n"
    with open(fleet.path("golden", "config"), "w") as file:
        file.write(kept + {"before": lines + include, "after": include + lines, "nowhere": include}[direct])

    def values():
        return {key: effective(fleet, "web", key) for key in INCLUDED}

    fleet.clone(source="golden", name="web")
    first = values()
    fleet.clone(source="golden", name="web", config=dict.fromkeys(INCLUDED))
    assert set(map(tuple, values().values())) <= {(), ("0",)}
    other = {"lxc.cap.drop": "sys_boot", "lxc.environment": ["B=2", "C=3"], "lxc.tty.max": 5, "lxc.group": "db", "lxc.prlimit.nofile": 7}
    fleet.clone(source="golden", name="web", config=other)
    assert [values()[key] for key in other] == [["sys_boot"], ["B=2", "C=3"], ["5"], ["db"], ["7"]]
    assert not fleet.clone(source="golden", name="web", config=other)["changed"]
    fleet.clone(source="golden", name="web", config={})
    assert values() == first


def test_a_base_replaces_what_an_include_set_too(including, aside):
    drop = {"lxc.cap.drop": "sys_admin"}
    including.base(name="golden", config=drop)
    assert effective(including, "golden", "lxc.cap.drop") == ["sys_admin"]
    assert not including.base(name="golden", config=drop)["changed"] and not including.base(name="golden")["changed"]
    including.base(name="golden", config={})
    assert "sys_time" in effective(including, "golden", "lxc.cap.drop")


def test_a_key_that_stands_twice_is_readable_in_the_diff(including):
    golden = including
    golden.clone(source="golden", name="web-[1:2]", config={"lxc.start.order": 1})
    change = {"lxc.cap.drop": None, "lxc.environment": ["A=1", "B={name}"]}
    assert golden.clone(source="golden", name="web-[1:2]", config=change)["diff"] == {
        "before_header": "containers",
        "after_header": "containers",
        "before": "web-1: stopped\nweb-2: stopped\neach of web-1, web-2:\n  lxc.start.order = 1\n",
        "after": "web-1: stopped\nweb-2: stopped\neach of web-1, web-2:\n  lxc.cap.drop =\n  lxc.environment = A=1\n  lxc.environment = B={name}\n",
    }


@pytest.mark.parametrize("key", ["lxc.no.such", "lxc.aa_profile", "lxc.network.type"])
@pytest.mark.parametrize("check_mode", [True, False])
def test_an_unknown_key_is_refused(golden, refused, key, check_mode):
    refused(golden, key.replace(".", r"\."), golden.clone, check_mode=check_mode, source="golden", name="web", config={key: "1"})


@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_base_with_a_bad_key_is_refused(fleet, refused, state):
    if state == "present":
        fleet.golden(state="present")
    refused(fleet, "lxc.start.auto = maybe", fleet.base, name="golden", template="busybox", config={"lxc.start.auto": "maybe"})


def test_a_bad_value_of_one_clone_is_refused_with_its_name(golden, refused, monkeypatch):
    asked = []
    complaint = LxcHost.complaint
    monkeypatch.setattr(LxcHost, "complaint", lambda host, config: (asked.append(config), complaint(host, config))[1])
    options = {"source": "golden", "name": "web-[1:300]", "config": {"lxc.environment": "N={name}", "lxc.start.order": "{index}"}}
    bad = {"overrides": {"web-222": {"config": {"lxc.start.order": "later"}}}}
    refused(golden, "web-222: .*lxc.start.order = later", golden.clone, **options, **bad)
    assert len(asked) < 20
    for processes in (1, 0):
        asked.clear()
        golden.clone(**options)
        assert len(asked) == processes


def test_clones_whose_configurations_cannot_be_one_are_made(golden):
    overrides = {"one": {"config": {"lxc.namespace.keep": "ipc"}}, "two": {"config": {"lxc.namespace.clone": "ipc"}}}
    assert golden.clone(source="golden", name=["one", "two"], overrides=overrides)["summary"]["created"] == 2
    assert [effective(golden, name, f"lxc.namespace.{key}") for name, key in (("one", "keep"), ("two", "clone"))] == [["ipc"], ["ipc"]]


def test_a_log_file_is_not_made_by_asking_lxc(golden, aside):
    golden.clone(check_mode=True, source="golden", name="web", config={"lxc.log.file": f"{aside}/log"})
    assert os.listdir(aside) == []


def test_a_bad_value_is_refused_before_anything_is_made(golden):
    with pytest.raises(FleetError):
        golden.clone(source="golden", name="web", config={"lxc.net.0.type": "no-such-type"})


def test_a_configuration_that_was_cut_off_between_its_two_files_gives_back_what_the_base_had(golden, monkeypatch):
    golden.clone(source="golden", name="web")
    child = os.fork()
    if child == 0:
        write = records.write_atomically

        def write_and_end(path, text, mode=None):
            write(path, text, mode)
            if path.endswith("/config"):
                os._exit(0)

        monkeypatch.setattr(records, "write_atomically", write_and_end)
        try:
            golden.clone(source="golden", name="web", config={"lxc.net.0.type": "none"})
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0 and effective(golden, "web", "lxc.net.0.type") == ["none"]
    golden.clone(source="golden", name="web", config={"lxc.net.0.type": "none"})
    golden.clone(source="golden", name="web", config={})
    assert effective(golden, "web", "lxc.net.0.type") == ["empty"]


def test_an_edit_stays_noticed_when_another_key_is_written(golden):
    golden.clone(source="golden", name="web")
    with open(golden.path("web", "config"), "a") as file:
        file.write("lxc.start.order = 99\n")
    assert raw(golden, source="golden", name="web")["warnings"]
    first = raw(golden, source="golden", name="web", config={"lxc.start.delay": "1"})
    second = raw(golden, source="golden", name="web", config={"lxc.start.delay": "1"})
    assert first["warnings"] or second["warnings"]


def test_a_power_step_without_config_leaves_the_config(golden):
    golden.clone(source="golden", name="web", config={"lxc.environment": "A=64M"})
    golden.clone(source="golden", name="web", state="restarted")
    assert "A=64M" in open(golden.path("web", "config")).read()


def lines_of(fleet, name):
    with open(fleet.path(name, "config")) as file:
        return {line.strip() for line in file}


def test_config_and_autostart_are_managed_one_without_the_other(golden):
    start, auto = "lxc.start.order = 3", "lxc.start.auto = 1"

    def run(**options):
        golden.clone(source="golden", name=["web", "db"], **options)
        return [sorted({start, auto, "lxc.start.delay = 9"} & lines_of(golden, name)) for name in ("web", "db")]

    assert run(config={"lxc.start.order": 3}, autostart={"enabled": True}) == [[auto, start]] * 2
    assert run() == run(state="present", overrides={}) == [[auto, start]] * 2
    assert run(config={}) == [[auto]] * 2
    assert run(config={"lxc.start.order": 3}) == [[auto, start]] * 2
    assert run(autostart={}) == [[start]] * 2
    assert run(overrides={"db": {"config": {"lxc.start.delay": 9}}}) == [[start], ["lxc.start.delay = 9"]]
    assert run(autostart={"order": 3}) == [[auto, start], [auto, "lxc.start.delay = 9", start]]
    # The option that named a key last answers for it.
    assert run(config={}) == [[auto, start]] * 2
    assert run(config={}, autostart={}) == [[], []]


def test_a_base_keeps_its_config_when_the_task_does_not_speak_of_it(fleet):
    fleet.golden()
    assert not fleet.base(name="golden", state="sealed")["changed"] and "lxc.net.0.type = empty" in lines_of(fleet, "golden")
    assert fleet.base(name="golden", state="sealed", config={})["changed"] and "lxc.net.0.type = empty" not in lines_of(fleet, "golden")


def test_a_base_that_an_include_names_as_root_filesystem_is_kept(golden, aside):
    golden.clone(source="golden", name="web")
    os.rename(golden.path("web", "fleet.lxc.json"), f"{aside}/record")
    with open(golden.path("web", "config")) as file:
        lines = file.readlines()
    with open(f"{aside}/rootfs.conf", "w") as file:
        file.writelines(line for line in lines if line.startswith("lxc.rootfs.path"))
    with open(golden.path("web", "config"), "w") as file:
        file.write(f"lxc.include = {aside}/rootfs.conf\n" + "".join(line for line in lines if not line.startswith("lxc.rootfs.path")))
    with pytest.raises(FleetError, match="web"):
        golden.base(name="golden", state="absent")


def test_what_is_included_and_missing_stops_nobody_else(golden):
    golden.clone(source="golden", name="web")
    os.mkdir(golden.path("old"))
    with open(golden.path("old", "config"), "w") as file:
        file.write("lxc.include = /nowhere/x.conf\n")
    assert golden.clone(source="golden", name="web", config={"lxc.start.order": 1})["changed"]
    with pytest.raises(FleetError, match="old: .*includes /nowhere/x.conf"):
        golden.clone(source="old", name="new")


@pytest.mark.parametrize("state", ["present", "absent"])
def test_one_that_is_refused_stops_the_others_or_does_not(golden, refused, state):
    golden.clone(source="golden", name="web-[1:3]")
    if state == "present":
        shutil.rmtree(golden.path("web-2", "overlay", "delta"))
    else:
        os.unlink(golden.path("web-2", "fleet.lxc.json"))
    options = {"source": "golden", "name": "web-[1:4]", "state": state}
    for check_mode in (True, False):
        refused(golden, "web-2", golden.clone, check_mode=check_mode, **options)
    check, run = (raw(golden, check_mode=check_mode, **options, on_error="continue") for check_mode in (True, False))
    for result in (check, run):
        assert list(result["failures"]) == ["web-2"] and result["summary"]["failed"] == 1
        by_name = {clone["name"]: (clone["state"], clone["actions"]) for clone in result["clones"]}
        assert by_name["web-2"] == ("failed", [])
        assert by_name["web-3"] == (("stopped", []) if state == "present" else ("absent", ["remove"]))
        assert by_name["web-4"] == (("stopped", ["create"]) if state == "present" else ("absent", []))
    assert set(golden.names()) == {"golden", "web-2"} | ({"web-1", "web-3", "web-4"} if state == "present" else set())


def test_what_a_refused_clone_stands_on_stays(golden):
    golden.clone(source="golden", name=["web", "db"], method="copy")
    golden.clone(source="web", name="child", method="snapshot")
    os.unlink(golden.path("child", "fleet.lxc.json"))
    result = raw(golden, name=["db", "child", "web"], state="absent", on_error="continue")
    assert set(result["failures"]) == {"child", "web"} and golden.names() == ["child", "golden", "web"]


def size(result):
    """Characters of what AWX gets of a result, beside the task's own arguments."""
    return len(json.dumps({**result, "failures": {}, "left_out": []}))


CONFIG = {"lxc.cgroup2.memory.max": "1G", "lxc.cgroup.memory.limit_in_bytes": "1G", "lxc.start.auto": 1, "lxc.environment": "NODE={name}"}


@pytest.mark.parametrize("config", [None, CONFIG], ids=["bare", "config"])
def test_a_thousand_new_clones_with_long_names_fit_into_one_event_of_awx(golden, config):
    name = "a-web-server-of-our-second-site-abroad-"  # and a number make 42 characters
    result = golden.clone(check_mode=True, source="golden", name=f"{name}[001:999]", state="started", config=config)
    assert len(result["clones"]) == 999 and {len(clone["name"]) for clone in result["clones"]} == {42}
    assert result["diff"]["after"].count("lxc.cgroup2.memory.max = 1G") == (1 if config else 0)
    print(size(result), size({**result, "diff": {}}))
    assert size(result) < 690_000


def test_a_thousand_edited_configurations_with_long_names_fit_into_one_event_of_awx(golden):
    options = {"source": "golden", "name": "a-web-server-of-our-second-site-abroad-[001:999]"}
    golden.clone(**options, config=CONFIG)
    for name in os.listdir(golden.lxcpath):
        if name != "golden":
            with open(golden.path(name, "config"), "a") as file:
                file.write("# an edit\n")
    result = raw(golden, check_mode=True, **options, method="copy", config={**CONFIG, "lxc.cgroup2.memory.max": "2G", "lxc.environment": "N={name}"})
    assert len(result["warnings"]) == 2 and all("(998 more likewise: a-web" in warning and len(warning) < 700 for warning in result["warnings"])
    print(size(result), size({**result, "diff": {}}))
    assert size(result) < 690_000


def test_a_forgotten_base_on_btrfs_is_writable_again(fleet_on):
    fleet = fleet_on("btrfs")
    sh(["lxc-create", "-P", fleet.lxcpath, "-n", "C1", "-t", "busybox", "-B", "btrfs"])
    fleet.base(name="C1", adopt=True, state="sealed")
    fleet.base(name="C1", state="absent")
    open(fleet.path("C1", "rootfs", "etc", "x"), "w").close()


def test_a_seal_cut_off_before_its_record_can_be_undone(fleet):
    fleet.golden(state="present")
    record = open(fleet.path("golden", "fleet.lxc.json")).read()
    fleet.golden(state="sealed")
    with open(fleet.path("golden", "fleet.lxc.json"), "w") as file:
        file.write(record)  # killed just before the record
    fleet.golden(state="unsealed")
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "golden"])


def test_a_clone_of_a_clone_heeds_the_base_below(golden):
    golden.clone(source="golden", name="one")
    open(golden.path("golden", "rootfs", "etc", "new"), "w").close()
    with pytest.raises(FleetError, match="changed since"):
        golden.clone(source="one", name="two")


def test_a_clone_of_a_clone_heeds_a_base_that_runs(fleet):
    fleet.golden(state="present")
    fleet.clone(source="golden", name="one")
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "golden"])
    with pytest.raises(FleetError, match="golden"):
        fleet.clone(source="one", name="two")


def test_a_copy_of_a_clone_heeds_a_base_that_runs(fleet):
    fleet.golden(state="present")
    fleet.clone(source="golden", name="one")
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "golden"])
    with pytest.raises(FleetError, match="one: is not cloned while golden is running"):
        fleet.clone(source="one", name="two", method="copy")


def test_a_mistyped_source_does_not_lift_the_family(golden):
    golden.clone(source="golden", name="web")
    with pytest.raises(FleetError):
        golden.clone(source="goldne", name="web", state="absent")
    assert os.path.exists(golden.path("web"))


def test_a_base_made_under_a_strict_umask_is_like_any_other(fleet):
    old = os.umask(0o077)
    try:
        fleet.golden()
        fleet.clone(source="golden", name="web")
    finally:
        os.umask(old)
    modes = {p: oct(os.stat(fleet.path("golden", "rootfs", p)).st_mode & 0o7777) for p in (".", "etc", "bin", "etc/passwd")}
    print(modes)
    assert modes["."] == modes["etc"] == "0o755"


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 1, "id": "x", "name": "bad", "lxcpath": "%s", "origin": "cloned", "rootfs": null, "family": "golden"}',
        '{"format": 1, "id": "x", "name": "bad", "lxcpath": "%s", "origin": "cloned", "rootfs": "dir:/x", "family": "golden", "inherited": null}',
        "\xff\xfe",
        "\0" * 700,
        "{",
        "",
    ],
    ids=["null-rootfs", "null-inherited", "latin", "nul", "cut", "empty"],
)
@pytest.mark.parametrize("file", ["fleet.lxc.json", "fleet.lxc.intent"])
def test_one_bad_record_stops_nobody_else(golden, text, file):
    sh(["cp", "-a", golden.path("golden"), golden.path("bad")])
    os.unlink(golden.path("bad", "fleet.lxc.json"))
    with open(golden.path("bad", file), "w", encoding="latin-1") as out:
        out.write(text % golden.lxcpath if "%s" in text else text)
    golden.clone(source="golden", name="web")


@pytest.mark.parametrize("text", ["\0" * 700, '{"format": 1', ""], ids=["nul", "cut", "empty"])
def test_an_intent_that_a_power_cut_left_is_swept(golden, text):
    golden.clone(source="golden", name="web")
    os.unlink(golden.path("web", "fleet.lxc.json"))
    with open(golden.path("web", "fleet.lxc.intent"), "w") as file:
        file.write(text)
    assert golden.clone(source="golden", name="web")["clones"][0]["actions"] == ["sweep", "create"]


def test_a_hostile_record_takes_no_other_subvolume_along(fleet_on):
    fleet = fleet_on("btrfs")
    fleet.golden(backing_store="btrfs", state="present")
    fleet.clone(source="golden", name="web")
    path = fleet.path("web", "fleet.lxc.json")
    record = json.load(open(path))
    record["rootfs"] = f"btrfs:{fleet.path('golden', 'rootfs')}"
    json.dump(record, open(path, "w"))
    try:
        fleet.clone(name="web", state="absent")
    except FleetError as error:
        print(error)
    assert os.path.exists(fleet.path("golden", "rootfs", "etc"))


SLOW_TEMPLATE = """#!/bin/sh
for a in "$@"; do case $a in --path=*) path=${a#--path=};; --rootfs=*) rootfs=${a#--rootfs=};; esac; done
mkdir -p $rootfs/etc
sleep 2
echo made >>$rootfs/etc/made
"""


def test_what_a_killed_run_started_writes_nothing_into_what_the_next_run_makes(fleet, tmp_path):
    template = tmp_path / "slow"
    template.write_text(SLOW_TEMPLATE)
    template.chmod(0o755)
    code = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\nfrom conftest import Fleet\n"
    code += f"Fleet({fleet.lxcpath!r}).base(name='golden', template={str(template)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not os.path.isdir(fleet.path("golden", "rootfs", "etc")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    fleet.base(name="golden", template=str(template))
    with open(fleet.path("golden", "rootfs", "etc", "made")) as file:
        assert file.read() == "made\n"


def test_a_start_that_takes_too_long_names_the_container(golden, tmp_path):
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\nsleep 15\n")
    hook.chmod(0o755)
    result = raw(golden, source="golden", name="web", state="started", timeout=2, config={"lxc.hook.pre-start": str(hook)})
    assert str(result["failures"]["web"]).startswith("web: did not start in time")


def test_a_base_is_kept_while_a_copy_of_its_directory_lies_beside_it(golden):
    golden.clone(source="golden", name="web")
    sh(["cp", "-a", golden.path("golden"), golden.path("golden-backup")])
    with pytest.raises(FleetError, match="web"):
        golden.base(name="golden", state="absent")


@pytest.mark.parametrize("damage", ["truncated", "deleted", "edited"])
def test_a_broken_base_is_kept_while_clones_stand_on_it(golden, damage):
    golden.clone(source="golden", name="web")
    config = golden.path("golden", "config")
    if damage == "truncated":
        open(config, "w").close()
    elif damage == "deleted":
        os.unlink(config)
    else:
        sh(["sed", "-i", "s#^lxc.rootfs.path.*#lxc.rootfs.path = dir:/nowhere#", config])
    with pytest.raises(FleetError, match="web"):
        golden.base(name="golden", state="absent")


def test_an_adopted_copy_of_a_directory_takes_no_other_subvolume_along(fleet_on):
    fleet = fleet_on("btrfs")
    fleet.golden(backing_store="btrfs", state="present")
    os.mkdir(fleet.path("copy"))
    shutil.copy(fleet.path("golden", "config"), fleet.path("copy", "config"))
    try:
        fleet.base(name="copy", adopt=True)
        fleet.base(name="copy", state="absent", delete_adopted=True)
    except FleetError as error:
        print(error)
    assert os.path.exists(fleet.path("golden", "rootfs", "etc"))


def test_what_is_mounted_in_a_base_is_not_copied(fleet, aside):
    fleet.golden(state="present")
    point = fleet.path("golden", "rootfs", "mnt")
    os.makedirs(point, exist_ok=True)
    open(f"{aside}/secret", "w").close()
    sh(["mount", "--bind", aside, point])
    try:
        fleet.clone(source="golden", name="web", method="copy")
    finally:
        sh(["umount", point])
    assert os.listdir(fleet.path("web", "rootfs", "mnt")) == []


def test_a_clone_that_runs_under_another_name_is_neither_removed_nor_started(golden, tmp_path):
    golden.clone(source="golden", name="web")
    config = tmp_path / "config"
    with open(golden.path("web", "config")) as file:
        config.write_text(file.read().replace("lxc.uts.name = web", "lxc.uts.name = other"))
    sh(["lxc-start", "-P", golden.lxcpath, "-n", "other", "-f", str(config)])
    try:
        for state in ("absent", "started"):
            with pytest.raises(FleetError, match="web.*process"):
                golden.clone(source="golden", name="web", state=state)
    finally:
        sh(["lxc-stop", "-P", golden.lxcpath, "-n", "other", "-k"], check=False)


def test_a_read_only_lxcpath_is_refused_by_check_mode_too(golden):
    sh(["mount", "--bind", golden.lxcpath, golden.lxcpath])
    sh(["mount", "-o", "remount,bind,ro", golden.lxcpath])
    try:
        with pytest.raises(FleetError, match="read-only"):
            golden.clone(check_mode=True, source="golden", name="web")
    finally:
        sh(["umount", golden.lxcpath])


def test_restart_is_required_until_it_is_done(golden):
    options = {"source": "golden", "name": "web", "config": {"lxc.start.order": 5}}
    golden.clone(source="golden", name="web", state="started")
    assert golden.clone(**options)["clones"][0]["restart_required"]
    assert golden.clone(**options)["clones"][0]["restart_required"]
    golden.clone(**options, state="restarted", force_stop=True)
    assert "restart_required" not in golden.clone(**options)["clones"][0]


@pytest.mark.parametrize("options", [{"method": "copy"}, {"backing_store": "dir", "method": "copy"}], ids=["method", "backing-store"])
def test_another_method_for_a_clone_that_exists_is_told(golden, options):
    golden.clone(source="golden", name="web")
    assert raw(golden, source="golden", name="web", **options)["warnings"]


def test_a_full_disk_is_an_error_and_no_traceback(tmp_path):
    image, point = tmp_path / "a.img", tmp_path / "a"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(24 << 20)
    sh(["mkfs.ext4", "-q", "-m0", "-N", "5000", str(image)])
    sh(["mount", "-o", "loop", str(image), str(point)])
    try:
        fleet = Fleet(point / "lxc")
        os.mkdir(fleet.lxcpath)
        fleet.golden()
        with open(point / "filler", "wb") as file:
            try:
                while True:
                    file.write(b"x" * 65536)
            except OSError:
                pass
        print(os.statvfs(point).f_bavail)
        result = raw(fleet, source="golden", name="web-[1:300]")
        print({str(e) for e in list(result["failures"].values())[:3]}, sorted(os.listdir(fleet.lxcpath))[:5])
        assert result["failures"]
        assert not [name for name in os.listdir(fleet.lxcpath) if not os.path.exists(fleet.path(name, "fleet.lxc.json"))]
    finally:
        sh(["umount", str(point)])


@pytest.mark.parametrize("rootfs", ["zfs:tank/lxc/other", "lvm:/dev/vg0/other"])
def test_a_container_on_a_store_that_cannot_be_asked_stops_nobody_else(golden, rootfs, monkeypatch):
    golden.clone(source="golden", name="other")
    config, record = golden.path("other", "config"), golden.path("other", PROVENANCE)
    monkeypatch.setattr(Runner, "which", lambda self, tool: None if tool in ("lvm", "zfs") else shutil.which(tool))
    for recorded in (True, False):
        sh(["sed", "-i", f"s|^lxc.rootfs.path = .*|lxc.rootfs.path = {rootfs}|", config])
        if recorded:
            text = json.dumps({**json.loads(open(record).read()), "rootfs": rootfs})
            with open(record, "w") as file:
                file.write(text)
            for options in ({"source": "golden"}, {"state": "absent"}):
                with pytest.raises(FleetError, match="other: .*out of reach.*is missing"):
                    golden.clone(name="other", **options)
        else:
            os.unlink(record)
        assert golden.clone(source="golden", name="web")["summary"]["created"] == 1
        golden.clone(name="web", state="absent")
