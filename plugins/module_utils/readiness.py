# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for containers: all at once, woken by the kernel when an address appears or an init ends.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Mapping

_NOT_REACHABLE = ("127.", "169.254.")  # loopback, link-local
READY, DIED, TIMED_OUT = "ready", "died", "timeout"
_CLONE_NEWNET = 0x40000000
_IPV4_ADDRESSES, _IPV6_ADDRESSES = 0x10, 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR of rtnetlink(7)
_LINK_LOCAL, _HOST, _TENTATIVE = 0x20, 0x10, 0x40


@dataclass(frozen=True)
class Outcome:
    state: str
    ipv4: list[str] = field(default_factory=list)
    ipv6: list[str] = field(default_factory=list)


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
