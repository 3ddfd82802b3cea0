# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for containers: all at once, woken by the kernel when an address appears, a command ends or an init does.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import heapq
import os
import resource
import select
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Callable, Mapping

from ansible_collections.fleet.lxc.plugins.module_utils.command import Running
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError

_NOT_REACHABLE = ("127.", "169.254.")  # loopback, link-local
READY, DIED, TIMED_OUT = "ready", "died", "timeout"
_CLONE_NEWNET = 0x40000000
_IPV4_ADDRESSES, _IPV6_ADDRESSES = 0x10, 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR of rtnetlink(7)
# Commands at once. One that has run for a second waits for something, and no longer keeps others from their turn.
_AT_ONCE, _AT_MOST, _IS_NEW = 64, 1000, 1.0
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.05, 1.0, 1.5
_LINK_LOCAL, _HOST, _TENTATIVE = 0x20, 0x10, 0x40


@dataclass(frozen=True)
class Outcome:
    state: str
    ipv4: list[str] = field(default_factory=list)
    ipv6: list[str] = field(default_factory=list)
    tries: int = 0  # of a command
    rc: int | None = None  # its last exit status; None where it was ended
    said: str = ""


def addresses(pid: int) -> tuple[list[str], list[str]]:
    """The IPv4 and IPv6 addresses in the network namespace of a process, loopback and link-local left out.

    Read from /proc, which shows each process its own namespace: no command is run and none entered.
    """
    return _ipv4(pid), _ipv6(pid)


def _ipv4(pid: int) -> list[str]:
    found, candidate = [], ""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/net/fib_trie", encoding="ascii") as file:
            for line in file:
                text = line.strip()
                if text.startswith("|--"):
                    candidate = text[4:]
                elif text == "/32 host LOCAL" and not candidate.startswith(_NOT_REACHABLE) and candidate not in found:
                    found.append(candidate)
    return found


def _ipv6(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/net/if_inet6", encoding="ascii") as file:
            for line in file:
                address, _index, _prefix, scope, flags, _device = line.split()
                if not int(scope, 16) & (_LINK_LOCAL | _HOST) and not int(flags, 16) & _TENTATIVE:
                    found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address)))
    return found


def await_network(waiting: Mapping[str, int], deadline: float) -> dict[str, Outcome]:
    """Wait until each container has an IPv4 or global IPv6 address.

    A container that shares the host's network is ready at once.

    :param waiting: {name: pid of its init}.
    :param deadline: on the clock of time.monotonic().
    """
    _raise_file_limit(3 * len(waiting) + 64)
    outcomes: dict[str, Outcome] = {}
    poll, owner = select.poll(), {}
    with contextlib.ExitStack() as stack:
        sockets = _subscribe(waiting)
        for name, subscription in sockets.items():
            stack.callback(subscription.close)
            owner[subscription.fileno()] = name
            poll.register(subscription.fileno(), select.POLLIN)
        ends = {}
        for name, pid in waiting.items():
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                outcomes[name] = Outcome(DIED)
                continue
            stack.callback(os.close, descriptor)
            owner[descriptor], ends[descriptor] = name, name
            poll.register(descriptor, select.POLLIN)
        # Addresses that came before the subscription are found here, later ones wake the poll.
        for name, pid in waiting.items():
            _check(name, pid, outcomes)
        blind = set(waiting) - set(sockets)
        while len(outcomes) < len(waiting):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            # Where the kernel does not let us subscribe, look again every 50 ms.
            limit = min(remaining, 0.05) if blind - set(outcomes) else remaining
            for descriptor, _events in poll.poll(limit * 1000 + 1):
                name = owner[descriptor]
                if descriptor in ends:
                    poll.unregister(descriptor)
                    outcomes.setdefault(name, Outcome(DIED))
                    continue
                with contextlib.suppress(OSError):
                    sockets[name].recv(65536)
                _check(name, waiting[name], outcomes)
            for name in blind - set(outcomes):
                _check(name, waiting[name], outcomes)
    return {name: outcomes.get(name, Outcome(TIMED_OUT)) for name in waiting}


def await_commands(waiting: Mapping[str, int], start: Callable[[str], Running], deadline: float) -> dict[str, Outcome]:
    """Run a command for each container until it succeeds. What still runs at the deadline is ended.

    A command that fails is tried again, behind the others and after a pause that grows, as nothing tells when it would not.

    :param waiting: {name: pid of its init}.
    :param start: begins a container's command.
    """
    _raise_file_limit(len(waiting) + 3 * min(len(waiting), _AT_MOST) + 64)
    with contextlib.ExitStack() as stack:
        return _Commands(waiting, start, stack).run(deadline)


class _Commands:
    def __init__(self, waiting: Mapping[str, int], start: Callable[[str], Running], stack: contextlib.ExitStack):
        self.start, self.outcomes = start, {name: Outcome(TIMED_OUT) for name in waiting}
        self.open = set(waiting)  # whose outcome is not known
        self.turn = collections.deque(waiting)
        self.later: list[tuple[float, str]] = []  # a heap: from when on a failed one has its turn again
        self.under_way: dict[str, tuple[Running, float]] = {}
        self.poll, self.owner = select.poll(), {}
        stack.callback(self._end)
        for name, pid in waiting.items():
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                self._decide(name, DIED)
                continue
            stack.callback(os.close, descriptor)
            self._watch(descriptor, name)

    def run(self, deadline: float) -> dict[str, Outcome]:
        while self.open and time.monotonic() < deadline:
            wake = self._begin()
            for descriptor, _events in self.poll.poll(max(0.0, min(wake, deadline) - time.monotonic()) * 1000 + 1):
                name = self.owner.get(descriptor)
                command = self.under_way[name][0] if name in self.under_way else None
                if command and descriptor == command.output:
                    if not command.read():
                        self._forget(descriptor)
                elif command and descriptor == command.end:
                    self._ended(name, command)
                elif name in self.open:
                    self._forget(descriptor)
                    self._decide(name, DIED)
        return self.outcomes

    def _begin(self) -> float:
        """Start what has its turn. Returns when there may be more to start."""
        now = time.monotonic()
        while self.later and self.later[0][0] <= now:
            self.turn.append(heapq.heappop(self.later)[1])
        new = [began for _command, began in self.under_way.values() if began > now - _IS_NEW]
        while self.turn and len(new) < _AT_ONCE and len(self.under_way) < _AT_MOST:
            name = self.turn.popleft()
            if name in self.open:
                try:
                    command = self.start(name)
                except (FleetError, OSError) as error:  # out of processes or descriptors, say
                    self._failed(name, Outcome(TIMED_OUT, tries=self.outcomes[name].tries + 1, said=str(error)))
                    continue
                self.under_way[name] = command, now
                self._watch(command.output, name)
                self._watch(command.end, name)
                new.append(now)
        wakes = [self.later[0][0]] if self.later else []
        return min(wakes + ([min(new) + _IS_NEW] if self.turn and new else []), default=float("inf"))

    def _ended(self, name: str, command: Running) -> None:
        self._drop(name, command)
        rc = command.finish()
        tries = self.outcomes[name].tries + 1
        if rc:
            self._failed(name, Outcome(TIMED_OUT, tries=tries, rc=rc, said=command.said))
        else:
            self.outcomes[name] = Outcome(READY, tries=tries, rc=rc, said=command.said)
            self.open.discard(name)

    def _failed(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        pause = min(_FIRST_PAUSE * _GROWTH ** min(outcome.tries - 1, 20), _LONGEST_PAUSE)
        heapq.heappush(self.later, (time.monotonic() + pause, name))

    def _decide(self, name: str, state: str) -> None:
        """What becomes of a container whose command is not awaited any longer."""
        self.open.discard(name)
        before = self.outcomes[name]
        if name in self.under_way:
            command = self.under_way[name][0]
            self._drop(name, command)
            command.kill()
            # One that was cut off without a word tells less than the try before it.
            if command.said or not before.tries:
                before = Outcome(state, tries=before.tries + 1, said=command.said)
        self.outcomes[name] = replace(before, state=state)

    def _drop(self, name: str, command: Running) -> None:
        del self.under_way[name]
        for descriptor in (command.output, command.end):
            self._forget(descriptor)

    def _watch(self, descriptor: int, name: str) -> None:
        self.owner[descriptor] = name
        self.poll.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> None:
        if self.owner.pop(descriptor, None) is not None:
            self.poll.unregister(descriptor)

    def _end(self) -> None:
        for name in list(self.under_way):
            self._decide(name, TIMED_OUT)


def _check(name: str, pid: int, outcomes: dict[str, Outcome]) -> None:
    if name in outcomes:
        return
    ipv4, ipv6 = addresses(pid)
    if ipv4 or ipv6:
        outcomes[name] = Outcome(READY, ipv4, ipv6)


def _subscribe(waiting: Mapping[str, int]) -> dict[str, socket.socket]:
    """A netlink socket in the network namespace of each process; it stays there when the thread that opened it ends."""
    sockets: dict[str, socket.socket] = {}

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for name, pid in waiting.items():
            with contextlib.suppress(OSError):
                namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if libc.setns(namespace, _CLONE_NEWNET) != 0:
                        continue
                finally:
                    os.close(namespace)
                subscription = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
                subscription.bind((0, _IPV4_ADDRESSES | _IPV6_ADDRESSES))
                sockets[name] = subscription

    thread = threading.Thread(target=run, name="network-namespaces")
    thread.start()
    thread.join()
    return sockets


def _raise_file_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard != resource.RLIM_INFINITY else needed, hard))
