# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules' EXAMPLES are run, task by task, as one play over a throwaway lxcpath."""

from __future__ import annotations

import re

import yaml
from ansible_collections.fleet.lxc.plugins.modules import lxc_base, lxc_clone
from checkout import run
from conftest import sh

# An address to be waited for, and no bridge. Busybox would ask an eth0 for DHCP, and not shut down before it has an answer.
NETWORK = {
    "lxc.net.0.type": "veth",
    "lxc.net.0.name": "lan0",
    "lxc.net.0.link": None,
    "lxc.net.0.flags": "up",
    "lxc.net.0.ipv4.address": "192.0.2.2/24",
}

# Debian's template downloads a whole Debian. This one insists on the same options and makes a busybox container.
DEBIAN = """\
#!/bin/sh
case " $* " in *" --release bookworm "*) ;; *) echo "no --release bookworm in: $*" >&2; exit 1 ;; esac
for argument; do
  shift
  case $argument in --release|bookworm) ;; *) set -- "$@" "$argument" ;; esac
done
exec /usr/share/lxc/templates/lxc-busybox "$@"
"""


def test_every_example_runs_and_changes_something(fleet, tmp_path):
    default = tmp_path / "default.conf"
    default.write_text("".join(f"{key} = {value}\n" for key, value in NETWORK.items() if value))
    sh(["lxc-create", "-P", fleet.lxcpath, "-n", "C1", "-f", str(default), "-t", "busybox"])
    sh(["tar", "--numeric-owner", "--one-file-system", "-cf", str(tmp_path / "golden.tar"), "-C", fleet.path("C1", "rootfs"), "."])
    sh(["lxc-start", "-P", fleet.lxcpath, "-n", "C1"])
    template = tmp_path / "lxc-debian"
    template.write_text(DEBIAN)
    template.chmod(0o755)
    stand_ins = {
        "template: debian": f"template: {template}",
        "/srv/images": str(tmp_path),
        "systemctl is-system-running --wait": "test -d /",
        "10.0.3.": "198.51.100.",  # which no bridge of this machine has
    }
    examples = lxc_base.EXAMPLES + lxc_clone.EXAMPLES
    for theirs, ours in stand_ins.items():
        assert theirs in examples
        examples = examples.replace(theirs, ours)
    tasks = yaml.safe_load(examples)
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "module_defaults": {"group/fleet.lxc.lxc": {"lxcpath": fleet.lxcpath}, "fleet.lxc.lxc_base": {"config": NETWORK}},
        "tasks": tasks,
    }
    playbook = tmp_path / "examples.yml"
    playbook.write_text(yaml.safe_dump([play], sort_keys=False))
    said = run("ansible-playbook", "--inventory", "localhost,", "--connection", "local", playbook)
    assert re.search(rf"ok={len(tasks)} +changed={len(tasks)} ", said), said
    assert fleet.names() == ["C1", "C2", "C3", "bookworm", "golden", "golden-loop"]
