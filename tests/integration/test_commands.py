# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole commands and plays: check mode with its diff, serial, async, module defaults, and what a task may register."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import yaml
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from checkout import run
from conftest import NETWORKLESS, digest, sh

PYTHON = "ansible_python_interpreter=/usr/bin/python3"
RECORD = {
    "name", "changed", "actions", "state", "source", "family", "generation", "stale", "method", "backing_store", "rootfs", "lxcpath", "ipv4", "ipv6", "hwaddr",
}  # fmt: skip
SUMMARY = {"created", "started", "stopped", "removed", "unchanged", "failed"}
# What Ansible itself reads in a result: these would end an async task, fail a task, or be taken for a loop.
RESERVED = {"started", "finished", "skipped", "results", "unreachable", "rc", "exception", "ansible_job_id", "ansible_facts", "msg", "stdout", "stderr"}


def ad_hoc(fleet, *flags, fails=False, **options):
    """One ``ansible`` command; returns what it calls it, the result, and the diff as it was shown."""
    command = ["ansible", "localhost", "-m", "lxc_clone", "-e", PYTHON, "-a", json.dumps({"lxcpath": fleet.lxcpath, **options}), *flags]
    try:
        said = run(*command)
        assert not fails, said
    except AssertionError as error:
        if not fails:
            raise
        said = str(error)
    diff, _arrow, result = said.partition(" => ")
    status = diff.splitlines()[-1].split(" | ")[1].rstrip("!")
    return status, json.loads(result), diff


def play(tmp_path, *plays):
    """Run a playbook; returns {host: {name: what the task registered as that}}."""
    inventory = {"all": {"hosts": {host: {"ansible_connection": "local"} for host in ("east", "west")}, "vars": dict([PYTHON.split("=")])}}
    keep = {
        "name": "Keep what was registered",
        "ansible.builtin.copy": {
            "content": "{{ dict(kept | zip(kept | map('extract', vars))) | to_json }}",
            "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}.json",
            "mode": "0600",
        },
        "vars": {"kept": [task["register"] for one in plays for task in one["tasks"]]},
    }
    plays = [{"hosts": "all", "gather_facts": False, **one} for one in plays]
    plays[-1]["tasks"] = [*plays[-1]["tasks"], keep]
    for name, what in (("hosts.yml", inventory), ("play.yml", plays)):
        (tmp_path / name).write_text(yaml.safe_dump(what, sort_keys=False))
    run("ansible-playbook", "-i", tmp_path / "hosts.yml", tmp_path / "play.yml")
    return {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}


def clone(register, **options):
    task = {key: options.pop(key) for key in ("async", "poll") if key in options}
    return {"name": "Clone", "fleet.lxc.lxc_clone": options, "register": register, **task}


def changed_lines(diff, sign):
    return [line[1:] for line in diff.splitlines() if line.startswith(sign) and not line.startswith(sign * 3)]


def actions(result):
    return {clone["name"]: clone["actions"] for clone in result["clones"] if clone["changed"]}


def test_three_hundred_are_planned_made_found_unchanged_and_each_damage_among_them_is_noticed(golden):
    names = [f"web-{i:03}" for i in range(1, 301)]
    options = {"source": "golden", "name": "web-[001:300]", "config": {"lxc.environment": "N={name}"}}
    before = digest(golden.lxcpath)

    status, check, diff = ad_hoc(golden, "--check", "--diff", **options)
    assert status == "CHANGED" and digest(golden.lxcpath) == before
    assert changed_lines(diff, "-") == [f"{name}: absent" for name in names]
    assert [line.split(":")[0] for line in changed_lines(diff, "+") if not line.startswith(("  ", "each of "))] == names
    assert actions(check) == dict.fromkeys(names, ["create"])

    status, made, shown = ad_hoc(golden, "--diff", **options)
    assert status == "CHANGED" and shown == diff and actions(made) == actions(check) and made["summary"] == check["summary"]
    assert golden.names() == ["golden", *names] and sorted(os.listdir(golden.lxcpath)) == golden.names()

    before = digest(golden.lxcpath)
    for flags in (), ("--check",):
        status, again, diff = ad_hoc(golden, "--diff", *flags, **options)
        assert (status, again["changed"], again["summary"]["unchanged"], diff.strip()) == ("SUCCESS", False, 300, "localhost | SUCCESS")
    assert digest(golden.lxcpath) == before

    # One that runs is killed, the delta of another is deleted, the config of a third is edited.
    golden.clone(source="golden", name="web-[101:103]", state="started", config=options["config"])
    sh(["lxc-stop", "-P", golden.lxcpath, "-n", "web-102", "-k"])
    shutil.rmtree(golden.path("web-200", "overlay", "delta"))
    sh(["sed", "-i", "s/N=web-300/N=other/", golden.path("web-300", "config")])
    before = digest(golden.lxcpath)
    status, refused, _diff = ad_hoc(golden, fails=True, **options)
    assert status == "FAILED" and refused["kind"] == "broken" and refused["msg"].startswith("web-200: is broken: ") and "delta" in refused["msg"]
    with pytest.raises(FleetError, match="web-200: is broken: .*delta"):
        golden.clone(check_mode=True, **options)
    assert digest(golden.lxcpath) == before
    golden.clone(name="web-200", state="absent")  # the mend

    noticed = {"web-200": ["create"], "web-300": ["configure"]}
    started = {"source": "golden", "name": "web-[101:103]", "state": "started", "config": options["config"]}
    assert [actions(golden.clone(check_mode=True, **given)) for given in (options, started)] == [noticed, {"web-102": ["start"]}]
    status, mended, diff = ad_hoc(golden, "--diff", **options)
    assert (status, actions(mended), mended["summary"]["unchanged"]) == ("CHANGED", noticed, 298)
    assert "-  lxc.environment = N=other" in diff and "+  lxc.environment = N=web-300" in diff
    assert actions(golden.clone(**started)) == {"web-102": ["start"]} and golden.up() == ["web-101", "web-102", "web-103"]
    assert golden.clone(**options)["summary"]["unchanged"] == 300


def test_plays_in_batches_asynchronous_tasks_and_defaults_of_the_group_work(golden, fleet_on, tmp_path):
    paths = {"east": golden.lxcpath, "west": fleet_on().lxcpath}
    defaults = {"group/fleet.lxc.lxc": {"lxcpath": "{{ paths[inventory_hostname] }}", "lock_timeout": 60}, "fleet.lxc.lxc_clone": {"source": "golden"}}
    tasks = [
        {"name": "Base", "fleet.lxc.lxc_base": {"name": "golden", "template": "busybox", "state": "sealed", "config": NETWORKLESS}, "register": "base"},
        clone("awaited", name="web-[1:3]", state="started", **{"async": 60, "poll": 1}),
        clone("gone", name="web-[1:3]", state="absent", force_stop=True, stop_timeout=0),
    ]
    both = play(tmp_path, {"serial": 1, "vars": {"paths": paths}, "module_defaults": defaults, "tasks": tasks})
    assert sorted(both) == ["east", "west"]
    for host, seen in both.items():
        assert seen["base"]["base"]["lxcpath"] == paths[host] and seen["base"]["changed"] == (host == "west")
        assert [(one["name"], one["state"]) for one in seen["awaited"]["clones"]] == [(f"web-{i}", "running") for i in (1, 2, 3)]
        assert {one["lxcpath"] for one in seen["awaited"]["clones"]} == {paths[host]}
        assert (seen["awaited"]["summary"]["started"], seen["gone"]["summary"]["removed"]) == (3, 3)
        assert os.listdir(paths[host]) == ["golden"]


def test_a_result_has_one_shape_for_one_clone_or_many_and_for_the_first_run_or_the_tenth(fleet, tmp_path):
    def base(number, state):
        options = {"lxcpath": fleet.lxcpath, "name": "golden", "template": "busybox", "state": state, "config": NETWORKLESS}
        return {"name": "Base", "fleet.lxc.lxc_base": options, "register": f"base_{number}"}

    common = {"lxcpath": fleet.lxcpath, "stop_timeout": 0, "force_stop": True}
    calls = [("golden", name, state) for name in ("one", "web-[1:3]") for state in ("present", "started", "started")]
    calls += [(None, ["one", "web-[1:3]"], "absent")] * 2
    tasks = [base(number, state) for number, state in enumerate(("present", "sealed", "sealed"))]
    tasks += [clone(f"clone_{number}", source=source, name=name, state=state, **common) for number, (source, name, state) in enumerate(calls)]
    tasks += [base(number, "absent") for number in (3, 4)]
    registered = play(tmp_path, {"hosts": "east", "tasks": tasks})["east"]
    bases, clones = ([registered[name] for name in sorted(registered) if name.startswith(kind)] for kind in ("base", "clone"))

    assert [result["changed"] for result in bases] == [True, True, False, True, False]
    assert [result["changed"] for result in clones] == [True, True, False] * 2 + [True, False]
    assert [len(result["clones"]) for result in clones] == [1] * 3 + [3] * 3 + [4] * 2
    for results in bases, clones:
        assert len({frozenset(result) for result in results}) == 1 and not set(results[0]) & RESERVED and not any(result["failed"] for result in results)
    assert len({frozenset(result["base"]) for result in bases}) == 1
    kinds = {"changed": bool, "actions": list, "stale": bool, "ipv4": list, "ipv6": list, "name": str, "state": str, "lxcpath": str}
    for result in clones:
        assert set(result["summary"]) == SUMMARY and all(isinstance(count, int) for count in result["summary"].values())
        assert all(set(one) == RECORD and isinstance(one[key], kind) for one in result["clones"] for key, kind in kinds.items())


def test_a_failure_returns_the_records_too(golden):
    overrides = {"web-2": {"config": {"lxc.init.cmd": "/no/such/init"}}}
    options = {"source": "golden", "name": "web-[1:3]", "state": "started", "overrides": overrides, "on_error": "continue"}
    status, result, _diff = ad_hoc(golden, fails=True, **options)
    assert status == "FAILED" and result["msg"].startswith("web-2: ") and [error.split(":")[0] for error in result["errors"]] == ["web-2"]
    assert {clone["name"]: clone["state"] for clone in result["clones"]} == {"web-1": "running", "web-2": "failed", "web-3": "running"}
    assert set(result["summary"]) == SUMMARY and all(set(clone) == RECORD for clone in result["clones"])


def test_a_refusal_is_a_failure_of_the_task_and_no_traceback(golden):
    status, result, said = ad_hoc(golden, fails=True, source="nothing", name="web")
    assert status == "FAILED" and result["kind"] == "missing" and "nothing" in result["msg"] and "Traceback" not in said + str(result)
    assert golden.names() == ["golden"]
