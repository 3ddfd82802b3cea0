# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Addresses and MACs in use on this host, by the containers of every lxcpath that is known or in use, and by the host itself.

Read only when an address or a MAC is to be chosen.
Private to the collection fleet.lxc.
"""

from __future__ import annotations

import contextlib
import os
from typing import Collection, Iterable, Iterator

from ansible_collections.fleet.lxc.plugins.module_utils import readiness
from ansible_collections.fleet.lxc.plugins.module_utils.addresses import Holder, address_of, addresses_in
from ansible_collections.fleet.lxc.plugins.module_utils.config import Config, Includes, hwaddrs
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.host import Observed

_MONITOR = b"[lxc monitor] "
_COMMAND = "/command"  # what the abstract socket of a running container is called: @LXCPATH/NAME/command


class Neighbours:
    """Everybody on this host.

    :param observed: our own lxcpath as it was observed, which is not read again.
    :param lxcpaths: others that are known. Those of running containers are found here.
    """

    def __init__(self, observed: Observed, lxcpaths: Iterable[str] = ()):
        self.observed, self.lxcpaths = observed, list(lxcpaths)
        self.includes = Includes()

    def addresses(self) -> list[Holder]:
        """The IPv4 addresses of this host, and of each container: by its configuration, and while it runs by its interfaces."""
        found = [Holder(address) for address in map(address_of, readiness.addresses(os.getpid())[0]) if address]
        running = _running()
        ours = set(found)
        for lxcpath, name, config in self._configurations(running):
            for address in addresses_in(config):
                found.append(Holder(address, lxcpath, name))
        for (lxcpath, name), pid in self._inits(running).items():
            for address in map(address_of, readiness.addresses(pid)[0]):
                # Who shares the host's network has no address of his own.
                if address and Holder(address) not in ours:
                    found.append(Holder(address, lxcpath, name))
        return found

    def macs(self, made_anew: Collection[str] = ()) -> set[str]:
        """The MAC addresses of this host's interfaces and in the configurations of its containers, in lower case.

        :param made_anew: containers of our own lxcpath whose addresses are to be theirs again.
        """
        here = self.observed.lxcpath
        found = {
            mac.lower()
            for lxcpath, name, config in self._configurations(_running())
            if not (lxcpath == here and name in made_anew)
            for mac in hwaddrs(config)
        }
        for interface in os.listdir("/sys/class/net"):
            with contextlib.suppress(OSError):
                with open(f"/sys/class/net/{interface}/address", encoding="ascii") as file:
                    found.add(file.read().strip().lower())
        return {mac for mac in found if "x" not in mac}

    def _configurations(self, running: dict[tuple[str, str], int | None]) -> Iterator[tuple[str, str, Config]]:
        """(lxcpath, name, configuration with its includes) of each container."""
        for name, container in self.observed.containers.items():
            if container.config:
                yield self.observed.lxcpath, name, self._expanded(container.config)
        seen = [os.stat(self.observed.lxcpath)]
        for lxcpath in dict.fromkeys([*self.lxcpaths, *(lxcpath for lxcpath, _name in running)]):
            try:
                directory = os.stat(lxcpath)
                names = [] if any(os.path.samestat(directory, one) for one in seen) else sorted(os.listdir(lxcpath))
            except OSError:
                continue
            seen.append(directory)
            for name in names:
                with contextlib.suppress(OSError):
                    yield lxcpath, name, self._expanded(Config.read(f"{lxcpath}/{name}/config"))

    def _expanded(self, config: Config) -> Config:
        try:
            return self.includes.expanded(config)
        except FleetError:
            return config  # which LXC does not load, and so does not start

    def _inits(self, running: dict[tuple[str, str], int | None]) -> dict[tuple[str, str], int]:
        """The inits of running containers, ours under the name of our own lxcpath."""
        found = {(self.observed.lxcpath, name): container.pid for name, container in self.observed.containers.items() if container.pid}
        known = set(found.values())
        found.update((key, pid) for key, pid in running.items() if pid and pid not in known)
        return found


def _running() -> dict[tuple[str, str], int | None]:
    """{(lxcpath, name): pid of its init} of the containers that run on this host, whatever their lxcpath.

    Their command sockets tell that there are any, and the process titles of their monitors whose they are: liblxc hashes the
    name of a socket that would be too long.
    """
    found: dict[tuple[str, str], int | None] = {}
    anything = False
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            path = line.rstrip("\n").split(None, 7)[-1]
            if path.startswith("@") and path.endswith(_COMMAND):
                anything = True
                lxcpath, _slash, name = path[1 : -len(_COMMAND)].rpartition("/")
                if lxcpath.startswith("/"):
                    found[lxcpath, name] = None
    if anything:
        found.update(_monitored())
    return found


def _monitored() -> Iterator[tuple[tuple[str, str], int]]:
    own = os.readlink("/proc/self/ns/pid")
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                title = file.read(4096).rstrip(b"\0 ")
            if not title.startswith(_MONITOR) or os.readlink(f"/proc/{entry}/ns/pid") != own:
                continue
            lxcpath, _space, name = os.fsdecode(title[len(_MONITOR) :]).rpartition(" ")
            with open(f"/proc/{entry}/task/{entry}/children", encoding="ascii") as file:
                children = file.read().split()
            if children:
                yield (lxcpath, name), int(children[0])
