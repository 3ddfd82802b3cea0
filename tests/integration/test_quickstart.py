# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""./quickstart and its playbook, on a machine of their own: an empty network, no systemd, and copies of the directories that they change."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time

import pytest
from checkout import ROOT
from conftest import sh

NAMES = [f"web-{number:02}" for number in range(1, 11)]

# /sys shows the network of the namespace that mounted it. A process namespace ends whatever is left over with the machine.
BOOT = """
set -e
mount --make-rprivate /
mkdir lxc misc default cgroup upper work
cp -a /etc/default/. default
mount --rbind /sys/fs/cgroup cgroup && mount -t sysfs sysfs /sys && mount --rbind cgroup /sys/fs/cgroup
mount --bind lxc /var/lib/lxc && mount --bind misc /var/lib/misc && mount --bind default /etc/default
mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=upper,workdir=work /usr/bin
mount -t tmpfs tmpfs /run && mkdir /run/lock
ip link set lo up
echo up >state
sleep infinity & wait # Bash reaps what others leave; by systemd it goes only where systemd runs.
"""


class Machine:
    def __init__(self, directory):
        self.directory = directory
        self.booted = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", BOOT], cwd=directory, stdin=subprocess.DEVNULL
        )
        limit = time.monotonic() + 20
        while not os.path.exists(os.path.join(directory, "state")):
            assert self.booted.poll() is None and time.monotonic() < limit, "the machine does not come up"
            time.sleep(0.05)
        self.init = sh(["pgrep", "--parent", str(self.booted.pid)]).strip()

    def run(self, command, **environment):
        """The exit status and all that was said."""
        done = subprocess.run(
            ["nsenter", "--target", self.init, "--mount", "--net", "--pid", "bash", "-c", f"cd {shlex.quote(str(ROOT))} && {command}"],
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def must(self, command):
        status, said = self.run(command)
        assert status == 0, said
        return said

    def play(self, state="present", network="10.0.3.0/24"):
        """The playbook as ./quickstart runs it, but for the packages, which ./test has installed. What it said, in one line."""
        variables = {"ansible_python_interpreter": sys.executable, "quickstart_state": state, "host_bridge_network": network, "host_packages": []}
        status, said = self.run(f"ansible-playbook --inventory localhost, playbooks/quickstart.yml --extra-vars {shlex.quote(json.dumps(variables))}")
        return status, " ".join(said.split())

    def look(self):
        """What a run may leave behind. Tables without rules are iptables', which makes them when it is asked."""
        return self.must("""
            ip -brief address; ip route; iptables-save | grep '^-'; ! command -v nft >/dev/null || nft list tables | grep lxc
            ls -A /var/lib/lxc /var/lib/misc; cat /etc/default/lxc-net; grep /lxc /proc/mounts; ps -e -o comm=
        """).splitlines()

    def addresses(self):
        """Where the clones run. IPv6 addresses, which LXC 6 brings, come a moment later."""
        return self.must(f"for name in {' '.join(NAMES)}; do lxc-info -n $name -s -iH | grep -v :.*:; done")

    def halt(self):
        self.run("for name in $(lxc-ls -1 --active); do lxc-stop -k -n $name; done")
        self.booted.kill()
        self.booted.wait()
        sh(["rm", "-rf", "--one-file-system", self.directory])


@pytest.fixture
def machine():
    up = Machine(tempfile.mkdtemp(prefix="machine-", dir="/var/tmp"))
    yield up
    up.halt()


def changed(said):
    return int(re.search(r"changed=([0-9]+)", said).group(1))


# The operator's own settings come back, even those that switch the bridge off.
def test_ten_clones_again_unchanged_and_nothing_left(machine):
    machine.must("""printf '%s\\n' 'USE_LXC_BRIDGE="false"' 'LXC_DOMAIN="example"' 'LXC_NETWORK="10.55.0.0/24" # ours' >/etc/default/lxc-net""")
    before = machine.look()
    status, said = machine.play()
    assert status == 0, said
    for name in NAMES:
        assert re.search(rf"{name} +running +10\.0\.3\.[0-9]+ +snapshot \(overlay\) +[0-9.]+K", said), said
    addresses = machine.addresses()
    status, said = machine.play()
    assert (status, changed(said)) == (0, 0), said
    assert machine.addresses() == addresses
    status, said = machine.play("absent")
    assert status == 0, said
    assert machine.look() == before
    assert changed(machine.play("absent")[1]) == 0


def test_what_the_operator_made_beside_it_stays(machine):
    assert machine.play()[0] == 0
    addresses = machine.addresses()
    status, said = machine.play(network="10.99.0.0/24")
    assert status != 0 and "lxcbr0 has 10.0.3.1/24, and 10.99.0.0/24 would cut off 10 running containers" in said
    assert machine.addresses() == addresses

    machine.must("lxc-copy -n golden -N extra -s; lxc-create -n mine -t busybox && lxc-start -n mine")
    status, said = machine.play("absent")
    assert status != 0 and "depend on its storage: extra" in said
    assert machine.must("lxc-ls -1").split() == ["extra", "golden", "mine"]
    machine.must("lxc-destroy -n extra")
    status, said = machine.play("absent")
    assert status == 0 and "lxcbr0 and its settings stay, for running containers are attached to it" in said
    assert machine.must("lxc-ls -1").split() == ["mine"]
    machine.must("lxc-stop -k -n mine")
    assert machine.play("absent")[0] == 0
    assert "lxcbr0" not in " ".join(machine.look()) and os.path.isdir(os.path.join(machine.directory, "lxc/mine/rootfs"))


LXC_NET = "$(ls /usr/libexec/lxc/lxc-net /usr/lib/*/lxc/lxc-net 2>/dev/null | head -1)"


@pytest.mark.parametrize(
    "taken,message",
    [
        (
            "ip link add office type bridge && ip address add 10.0.3.9/25 dev office && ip link set office up",
            r"10\.0\.3\.0/24 is in use by office \(10\.0\.3\.0/25\)",
        ),
        (
            "printf '%s\\n' LXC_BRIDGE=office LXC_ADDR=10.66.0.1 LXC_NETWORK=10.66.0.0/24 LXC_DHCP_RANGE=10.66.0.2,10.66.0.9 >>/etc/default/lxc-net;"
            f" {LXC_NET} start",
            "lxc-net keeps the bridge office already",
        ),
        ("ip link add lxcbr0 type bridge", "lxcbr0 has no address. This role did not make it"),
    ],
)
def test_a_network_that_is_taken_is_refused(machine, taken, message):
    machine.must(taken)
    before = machine.look()
    status, said = machine.play()
    assert status != 0 and re.search(message, said), said
    assert machine.look() == before


@pytest.mark.parametrize(
    "change,message",
    [
        (
            "rm /usr/bin/python3 /usr/bin/apt-get",
            "neither Debian nor Ubuntu. Install Python 3.10 or later .* LXC 4.0 or later with lxc-net, a static busybox, dnsmasq",
        ),
        (
            "rm /usr/bin/python3; printf '#!/bin/sh\\necho 3.9\\n' >/usr/bin/python3; chmod +x /usr/bin/python3",
            "Ansible needs Python 3.10 or later, and this machine has 3.9",
        ),
    ],
)
def test_an_unsupported_machine_is_told_what_it_needs(machine, change, message):
    machine.must(change)
    status, said = machine.run("./quickstart", PATH="/usr/bin:/bin:/usr/sbin:/sbin")
    assert status == 1 and re.search(message, " ".join(said.split())), said
