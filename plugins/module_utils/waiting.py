# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What running clones are waited for, and what the operator is told of those that are not ready in time.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Collection, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils import readiness
from ansible_collections.fleet.lxc.plugins.module_utils.command import one_line
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FAILED, TIMEOUT, FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.host import START_LOG, LxcHost

_READ = 65536
_COLUMNS = re.compile(r"^.* ERROR\s+\S+ - \S+ - ")
# The container's monitor writes this with each lxc-attach to a container without a seccomp profile.
_NOISE = 'Unsupported config key "lxc.seccomp"'
NETWORK, COMMAND = "network", "command"


@dataclass(frozen=True)
class Wait:
    """What is waited for, of NETWORK and COMMAND, and for how many seconds together."""

    what: Collection[str]
    command: str | None
    timeout: float


def await_ready(host: LxcHost, wait: Wait, pids: Mapping[str, int], configs: Mapping[str, Config | None]) -> dict[str, FleetError]:
    """Wait until containers are ready, all at once. Returns why which of them are not.

    :param pids: {name: pid of its init}.
    :param configs: theirs, which tell where a console is logged.
    """
    deadline = time.monotonic() + wait.timeout
    addressed, answered = {}, {}

    def start(name: str):
        argv = ["lxc-attach", "-P", host.lxcpath, "-n", name, "--clear-env", "--", "/bin/sh", "-c", wait.command]
        return host.runner.start(argv, container=name)

    with ThreadPoolExecutor(1) as other:
        network = other.submit(readiness.await_network, pids, deadline) if NETWORK in wait.what else None
        if COMMAND in wait.what:
            answered = readiness.await_commands(pids, start, deadline)
        if network:
            addressed = network.result()
    failures = {}
    for name in pids:
        on_network, command = addressed.get(name), answered.get(name)
        states = {outcome.state for outcome in (on_network, command) if outcome}
        if states <= {readiness.READY}:
            continue
        what, said, mend, kind = "stopped while it was awaited", _said(command), "", FAILED
        if readiness.DIED not in states:
            kind = TIMEOUT
            if on_network and on_network.state == readiness.TIMED_OUT:
                what, said = f"runs, but had no address within {wait.timeout:g} s", ""
                mend = "Look at its DHCP client and at the bridge (role fleet.lxc.host), or raise wait_timeout."
            else:
                what = f"runs, but its wait_command did not succeed within {wait.timeout:g} s"
                mend = f"Try it by hand (lxc-attach -P {host.lxcpath} -n {name}), or raise wait_timeout."
        why = "; ".join(filter(None, [said, log_of(host.lxcpath, name, configs.get(name))]))
        failures[name] = FleetError(what, container=name, why=why, mend=mend, kind=kind)
    return failures


def _said(outcome: readiness.Outcome | None) -> str:
    """How the last try of a command went."""
    if outcome is None or outcome.state == readiness.READY:
        return ""
    if not outcome.tries:
        return "it had no turn" if outcome.state == readiness.TIMED_OUT else ""
    ended = "it was still under way" if outcome.rc is None else f"it exited with {outcome.rc}"
    tries = f" in the last of {outcome.tries} tries" if outcome.tries > 1 else ""
    return f"{ended}{tries} and said {outcome.said!r}" if outcome.said else f"{ended}{tries} and said nothing"


def log_of(lxcpath: str, name: str, config: Config | None) -> str:
    """The last lines of a container's logs: LXC's own, and its console's where the configuration names one."""
    log = _tail(f"{lxcpath}/{name}/{START_LOG}").splitlines()
    console = config.get("lxc.console.logfile") if config else None
    ends = {
        "its log": "\n".join(_COLUMNS.sub("", line) for line in log if _NOISE not in line),
        "its console": _tail(console) if console else "",
    }
    return "; ".join(f"{what} ends with {said}" for what, text in ends.items() if (said := one_line(text, 3)))


def _tail(path: str) -> str:
    """The end of a file, which may be a guest's work: a pipe is not waited for."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                return os.pread(descriptor, _READ, max(0, status.st_size - _READ)).decode("utf-8", "replace")
        finally:
            os.close(descriptor)
    return ""
