# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A throwaway bridge with DHCP, as lxc-net makes one, in a network of its own."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import subprocess
import uuid
from pathlib import Path

from checkout import run

# Addresses for benchmarks (RFC 2544), which no real network has: 32 networks with room for thousands of leases each.
NETWORKS = list(ipaddress.ip_network("198.18.0.0/15").subnets(new_prefix=20))


@contextlib.contextmanager
def bridge(outward=False):
    """The name of a bridge on which a DHCP server answers; both go at the end.

    :param outward: whether what is on it reaches what this machine reaches, and asks the same name servers.
    """
    name = f"fl{uuid.uuid4().hex[:6]}"
    run("ip", "link", "add", name, "type", "bridge")
    try:
        network = _take_a_network(name)
        run("ip", "link", "set", name, "up")
        addresses = list(network.hosts())
        dnsmasq = ["dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--pid-file=", "--port=0", "--leasefile-ro"]
        dnsmasq += ["--bind-interfaces", f"--interface={name}", "--except-interface=lo", "--no-ping", "--dhcp-no-override", "--dhcp-authoritative"]
        dnsmasq += [f"--dhcp-range={addresses[1]},{addresses[-1]}", f"--dhcp-lease-max={len(addresses)}"]
        with contextlib.ExitStack() as stack:
            if outward:
                stack.enter_context(_outward(network))
                dnsmasq += [f"--dhcp-option=option:dns-server,{','.join(_name_servers())}"]
            server = subprocess.Popen(dnsmasq, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(server.wait)
            stack.callback(server.terminate)
            yield name
    finally:
        run("ip", "link", "del", name)


@contextlib.contextmanager
def _outward(network):
    """Let a network out under this machine's address."""
    rule = ["POSTROUTING", "--source", network, "!", "--destination", network, "--jump", "MASQUERADE"]
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    run("iptables", "--wait", "--table", "nat", "--append", *rule)
    try:
        yield
    finally:
        run("iptables", "--wait", "--table", "nat", "--delete", *rule)


def _name_servers():
    lines = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    return [words[1] for words in lines if words[:1] == ["nameserver"] and ":" not in words[1]]


def _take_a_network(name):
    """Give a bridge the first address of a network that nobody else has.

    Taken first and looked at then: of two runs that take the same one at least one sees it, and goes on to the next.
    """
    for network in random.sample(NETWORKS, len(NETWORKS)):
        address = f"{next(network.hosts())}/{network.prefixlen}"
        run("ip", "addr", "add", address, "dev", name)
        if not any(network.overlaps(other) for other in _networks_of_others(name)):
            return network
        run("ip", "addr", "del", address, "dev", name)
    raise AssertionError("no network of 198.18.0.0/15 is free")


def _networks_of_others(name):
    for link in json.loads(run("ip", "-json", "-4", "addr", "show")):
        for address in link.get("addr_info", ()):
            if link.get("ifname") != name and "local" in address:
                yield ipaddress.ip_interface(f"{address['local']}/{address['prefixlen']}").network
