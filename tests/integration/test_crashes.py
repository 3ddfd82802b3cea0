# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs that end in the middle, and runs that meet: what the next one finds is whole or absent, and nothing else stays."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time

import pytest
from conftest import sh

KILLS = int(os.environ.get("FLEET_LXC_KILLS", "5"))
NAMES = [f"web-{i}" for i in range(1, 5)]


@contextlib.contextmanager
def running(work):
    """A run in a process of its own; what it returns comes out of ``result()``, and what it raises, too."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def body():
        os.setsid()
        try:
            queue.put((work(), None))
        except BaseException as error:  # pylint: disable=broad-exception-caught
            queue.put((None, repr(error)))

    process = context.Process(target=body)
    process.start()

    def result():
        value, error = queue.get()
        process.join()
        return value, error

    process.result = result
    try:
        yield process
    finally:
        if process.is_alive():
            kill_tree(process.pid)
        process.join()


def children(pid):
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                yield from map(int, file.read().split())


def kill_tree(pid):
    """SIGKILL a process and everything that it started, all at one moment: they are stopped first, so none escapes."""
    found, new = [], [pid]
    while new:
        for one in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGSTOP)
        found += new
        new = [child for one in found for child in children(one) if child not in found]
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def left_over(fleet):
    """What works on an lxcpath, is mounted in it, or is a loop device of it."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        found = [line for line in file if fleet.lxcpath in line]
    found += [line for line in sh(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"]).splitlines() if fleet.lxcpath in line]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                command = file.read().replace("\0", " ")
            if fleet.lxcpath in command + os.readlink(f"/proc/{pid}/cwd") + os.readlink(f"/proc/{pid}/root"):
                found.append(f"{pid} {command}")
    return found


def nothing_left(fleet):
    deadline = time.monotonic() + 10  # the kernel frees a loop device when the last mount namespace that had it is gone
    while (found := left_over(fleet)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == []


def subvolumes(fleet):
    listed = sh(["btrfs", "subvolume", "list", "-o", os.path.dirname(fleet.lxcpath)])
    return sorted(path for path in (line.split()[-1] for line in listed.splitlines()) if os.path.basename(fleet.lxcpath) in path)


def content(root):
    """Every file with type, mode, owner, size and link target, but for the one that names the container."""
    return sh(f"cd {root} && find . ! -path ./etc ! -path ./etc/hostname -printf '%p %y %m %U %G %s %l\\n' | sort")


def killed_at_random_moments(work, undo):
    """Time one whole run, undo it, and cut off others at random moments of that time, each upon what the last one left; says at which."""
    begin = time.monotonic()
    with running(work) as process:
        assert process.result()[1] is None
    whole = time.monotonic() - begin
    undo()
    moments = []
    for _kill in range(KILLS):
        with running(work) as process:
            moments.append(random.uniform(0, whole))
            time.sleep(moments[-1])
            finished = not process.is_alive()
        if finished:
            undo()
    return [f"{moment:.3f} of {whole:.3f} s" for moment in moments]


@pytest.mark.parametrize(
    ("filesystem", "store", "method", "backing_store"),
    [("ext", "dir", "copy", "dir"), ("btrfs", "btrfs", "snapshot", "btrfs"), ("ext", "loop", "copy", "loop")],
    ids=["rsync", "btrfs", "loop"],
)
def test_clones_cut_off_at_random_moments_are_completed_by_the_next_run(fleet_on, filesystem, store, method, backing_store):
    fleet = fleet_on(filesystem)
    fleet.golden(backing_store=store, storage={"size": "32M"} if store == "loop" else None)
    options = {"source": "golden", "name": NAMES, "method": method, "backing_store": backing_store}
    moments = killed_at_random_moments(lambda: fleet.clone(**options)["summary"], lambda: fleet.clone(name=NAMES, state="absent"))
    try:
        result = fleet.clone(**options)
        assert not result["failures"] and not fleet.clone(**options)["changed"]
        nothing_left(fleet)
        assert fleet.names() == ["golden", *NAMES]
        for name in NAMES:
            assert set(os.listdir(fleet.path(name))) <= {"config", "fleet.lxc.json", "rootfs", "rootdev"}
            if store == "loop":
                assert os.path.getsize(fleet.rootfs(name).path) == os.path.getsize(fleet.rootfs("golden").path)
                sh(["e2fsck", "-fn", fleet.rootfs(name).path])
            else:
                assert content(fleet.rootfs(name).path) == content(fleet.rootfs("golden").path)
        if filesystem == "btrfs":
            assert len(subvolumes(fleet)) == 1 + len(NAMES)
        fleet.clone(name=NAMES, state="absent")
        nothing_left(fleet)
        assert os.listdir(fleet.lxcpath) == ["golden"]
        if filesystem == "btrfs":
            assert len(subvolumes(fleet)) == 1
    except BaseException:
        print("killed after", moments)
        raise


@pytest.mark.parametrize(("maker", "store"), [("template", "dir"), ("archive", "dir"), ("archive", "loop")])
def test_a_base_cut_off_at_random_moments_is_completed_by_the_next_run(fleet_on, tmp_path, maker, store):
    fleet, model = fleet_on(), fleet_on()
    model.golden(state="present")
    made = {"template": "busybox"}
    if maker == "archive":
        made = {"rootfs_archive": str(tmp_path / "root.tar")}
        sh(["tar", "--numeric-owner", "-cf", made["rootfs_archive"], "-C", model.path("golden", "rootfs"), "."])
    options = {"name": "golden", "state": "sealed", "backing_store": store, "storage": {"size": "32M"} if store == "loop" else None, **made}
    moments = killed_at_random_moments(lambda: fleet.base(**options)["actions"], lambda: fleet.base(name="golden", state="absent"))
    try:
        fleet.base(**options)
        assert not fleet.base(**options)["changed"]
        nothing_left(fleet)
        assert fleet.names() == ["golden"]
        if store == "loop":
            sh(["e2fsck", "-fn", fleet.rootfs("golden").path])
        else:
            assert content(fleet.path("golden", "rootfs")) == content(model.path("golden", "rootfs"))
        fleet.base(name="golden", state="absent")
        nothing_left(fleet)
        assert os.listdir(fleet.lxcpath) == []
    except BaseException:
        print("killed after", moments)
        raise


def whole(fleet):
    """The clones that are there, each of them complete and LXC's bookkeeping of them exact."""
    names = sorted(name for name in os.listdir(fleet.lxcpath) if name != "golden")
    for name in names:
        assert {"config", "fleet.lxc.json", "lxc_rdepends", "overlay", "rootfs"} <= set(os.listdir(fleet.path(name)))
        assert not os.path.exists(fleet.path(name, "fleet.lxc.intent"))
    try:
        with open(fleet.path("golden", "lxc_snapshots"), encoding="utf-8") as file:
            counted = sorted(file.read().splitlines()[1::2])
    except FileNotFoundError:
        counted = []
    assert counted == names
    return names


def test_two_overlapping_runs_that_start_make_and_start_each_clone_once(golden):
    both = [
        lambda: golden.clone(source="golden", name="web-[01:14]", state="started"),
        lambda: golden.clone(source="golden", name="web-[07:20]", state="started"),
    ]
    with running(both[0]) as one, running(both[1]) as two:
        results = [one.result(), two.result()]
    assert [error for _value, error in results] == [None, None]
    assert sum(value["summary"]["created"] for value, _error in results) == 20
    assert sum(value["summary"]["started"] for value, _error in results) == 20
    names = [f"web-{i:02}" for i in range(1, 21)]
    assert whole(golden) == golden.up() == names
    assert {clone["state"] for value, _error in results for clone in value["clones"]} == {"running"}


def test_a_run_that_removes_while_another_makes_leaves_each_clone_whole_or_absent(golden):
    seen = set()
    for _round in range(6):
        with (
            running(lambda: golden.clone(source="golden", name="web-[01:20]")) as makes,
            running(lambda: golden.clone(name="web-[11:30]", state="absent")) as removes,
        ):
            results = [makes.result(), removes.result()]
        assert [error for _value, error in results] == [None, None]
        names = whole(golden)
        made, removed = (value["summary"] for value, _error in results)
        assert set(f"web-{i:02}" for i in range(1, 11)) <= set(names) and made["failed"] == removed["failed"] == 0
        seen.add(len(names))
    assert seen <= {10, 20}  # the locks let one come after the other


def test_a_run_that_removes_while_another_starts_leaves_nothing_running_of_what_is_absent(golden):
    with (
        running(lambda: golden.clone(source="golden", name="web-[01:10]", state="started")) as starts,
        running(lambda: golden.clone(name="web-[06:15]", state="absent", stop_timeout=1, force_stop=True)) as removes,
    ):
        results = [starts.result(), removes.result()]
    assert [error for _value, error in results] == [None, None]
    assert golden.up() == whole(golden)
    assert golden.up() in ([f"web-{i:02}" for i in range(1, last + 1)] for last in (5, 10))


def test_a_removal_that_is_cut_off_leaves_nothing_that_is_nobodys(golden, monkeypatch):
    golden.clone(source="golden", name=NAMES)
    child = os.fork()
    if child == 0:
        # Cut off within the removal of each clone's directory, whatever order its files are removed in.
        unlink = os.unlink
        monkeypatch.setattr(os, "unlink", lambda path, **more: (unlink(path, **more), os.kill(os.getpid(), signal.SIGKILL)))
        golden.clone(name=NAMES, state="absent")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    result = golden.clone(name=NAMES, state="absent")
    assert "sweep" in result["clones"][0]["actions"] and os.listdir(golden.lxcpath) == ["golden"]


def test_clones_that_were_made_before_another_failed_stay_and_the_error_names_that_one(fleet, tmp_path):
    fleet.golden(state="present")
    hook = tmp_path / "hook"
    hook.write_text('#!/bin/sh\n[ "$LXC_NAME" != web-3 ]\n')
    hook.chmod(0o755)
    with open(fleet.path("golden", "config"), "a", encoding="utf-8") as file:
        file.write(f"lxc.hook.clone = {hook}\n")
    failures = fleet.call(source="golden", name=NAMES, workers=1)["failures"]
    assert list(failures) == ["web-3"] and str(failures["web-3"]).startswith("web-3: ")
    assert whole(fleet) == NAMES[:2]
    hook.write_text("#!/bin/sh\n")
    assert fleet.clone(source="golden", name=NAMES)["summary"]["created"] == 2
