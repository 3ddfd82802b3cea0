# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands that are awaited many at once, with plain processes in the place of containers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils import readiness
from ansible_collections.fleet.lxc.plugins.module_utils.command import Runner


@pytest.fixture
def init():
    """Stands for a container's init."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def wait(init, commands, seconds):
    """The outcomes of shell commands, {name: command}, and how long that took."""
    begin = time.monotonic()
    outcomes = readiness.await_commands({name: init.pid for name in commands}, lambda name: Runner().start(["sh", "-c", commands[name]]), begin + seconds)
    return outcomes, time.monotonic() - begin


def test_what_fails_is_tried_again_until_it_succeeds(init, tmp_path):
    outcomes, _took = wait(init, {"web": f"echo x >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) -ge 4"}, 10)
    assert (outcomes["web"].state, outcomes["web"].tries, outcomes["web"].rc) == (readiness.READY, 4, 0)


def test_what_blocks_is_awaited_and_tried_once(init):
    outcomes, took = wait(init, {str(number): "sleep 0.5" for number in range(20)}, 10)
    assert {(outcome.state, outcome.tries) for outcome in outcomes.values()} == {(readiness.READY, 1)} and took < 5


def test_at_the_deadline_nothing_is_left_and_the_last_words_are_kept(init, tmp_path):
    pids = tmp_path / "pids"
    commands = {"hangs": f"echo $$ >> {pids}; sleep 50 & echo $! >> {pids}; echo still here; wait", "fails": "echo; echo no port; exit 7"}
    outcomes, took = wait(init, commands, 1)
    assert {outcome.state for outcome in outcomes.values()} == {readiness.TIMED_OUT} and took < 3
    assert (outcomes["hangs"].rc, outcomes["hangs"].said, outcomes["hangs"].tries) == (None, "still here", 1)
    assert (outcomes["fails"].rc, outcomes["fails"].said) == (7, "no port") and outcomes["fails"].tries > 2
    assert all_end(pids)


def test_a_failed_try_leaves_no_process_behind(init, tmp_path):
    wait(init, {"web": f"sleep 50 & echo $! >> {tmp_path}/pids; exit 1"}, 0.5)
    assert all_end(tmp_path / "pids")


def all_end(pids):
    """Whether the processes end, for which a kill needs a moment."""
    deadline = time.monotonic() + 5
    while any(is_alive(int(pid)) for pid in pids.read_text().split()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_alive(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_death_ends_the_wait_at_once(init):
    threading.Timer(0.3, init.kill).start()
    outcomes, took = wait(init, {"hangs": "echo before; sleep 50", "fails": "exit 1"}, 20)
    assert {outcome.state for outcome in outcomes.values()} == {readiness.DIED} and took < 5
    assert outcomes["hangs"].said == "before"


def test_those_that_hang_do_not_keep_others_from_their_turn(init, monkeypatch):
    monkeypatch.setattr(readiness, "_AT_ONCE", 2)
    outcomes, took = wait(init, {"a": "sleep 50", "b": "sleep 50", "c": "exit 1", "d": "true"}, 3)
    assert [outcome.state for outcome in outcomes.values()] == ["timeout", "timeout", "timeout", "ready"]
    assert outcomes["c"].tries > 1


def test_a_command_that_talks_without_end_fills_neither_pipe_nor_memory(init):
    outcomes, took = wait(init, {"web": "yes | head -c 20000000; echo done; printf 'odd \\033[31m\\377\\n' >&2"}, 10)
    assert "done | odd [31m" in outcomes["web"].said and len(outcomes["web"].said) < 100
    assert wait(init, {"web": "yes"}, 0.5)[1] < 2


def test_a_try_that_is_cut_off_without_a_word_does_not_hide_the_one_before(init, tmp_path):
    outcomes, _took = wait(init, {"web": f"test -e {tmp_path}/tried && sleep 50; touch {tmp_path}/tried; echo refused; exit 4"}, 0.7)
    assert (outcomes["web"].tries, outcomes["web"].rc, outcomes["web"].said) == (1, 4, "refused")


def test_what_cannot_be_started_just_now_is_tried_again(init):
    tries = []

    def start(name):
        tries.append(name)
        if len(tries) < 3:
            raise OSError(11, "Resource temporarily unavailable")
        return Runner().start(["true"])

    outcome = readiness.await_commands({"web": init.pid}, start, time.monotonic() + 10)["web"]
    assert (outcome.state, outcome.tries) == (readiness.READY, 3)


def test_nothing_stays_open(init):
    before = len(os.listdir("/proc/self/fd"))
    wait(init, {"fine": "true", "hangs": "sleep 50", "fails": "exit 1", "leaves": "sleep 3 &"}, 0.5)
    assert len(os.listdir("/proc/self/fd")) == before
