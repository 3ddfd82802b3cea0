# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host role where a bridge is there already, which is how it can be met without touching this machine's own."""

from __future__ import annotations

import os
import re

import yaml
from checkout import run
from conftest import sh


def test_a_bridge_that_is_not_from_the_role_is_used_and_left_as_it_is(fleet, bridge, tmp_path):
    settings = tmp_path / "lxc-net"
    common = {"host_packages": [], "host_bridge_name": bridge, "host_lxcpath": fleet.lxcpath}

    def role(**variables):
        return {"name": "Host", "ansible.builtin.include_role": {"name": "fleet.lxc.host"}, "vars": {**common, **variables}}

    def refused(says, **variables):
        told = {"name": "Told", "ansible.builtin.assert": {"that": "said is search(wanted)", "fail_msg": "{{ said }}"}}
        told["vars"] = {"wanted": says, "said": "{{ ansible_failed_result.msg | default('') ~ ansible_failed_result.results | default('') }}"}
        return [{"name": "Refused", "block": [role(**variables), {"name": "Not refused", "ansible.builtin.meta": "end_host"}], "rescue": [told]}]

    tasks = [role(), role(host_state="absent")]
    tasks += refused("255[.]0/24: give a network", host_bridge_network="10.0.256.255.0/24")
    tasks += refused("/nowhere is not a directory that can be written to", host_lxcpath="/nowhere")
    tasks.append({"name": "Reached the end", "ansible.builtin.debug": {"msg": "all was refused"}})
    playbook = tmp_path / "host.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], sort_keys=False))
    before = sh(["ip", "-4", "addr", "show", bridge])
    # Whatever this machine's own settings are, they are not looked at.
    arguments = ["-i", "localhost,", "-c", "local", "-e", "ansible_python_interpreter=/usr/bin/python3", "-e", f"host_settings_file={settings}"]
    said = run("ansible-playbook", *arguments, playbook)
    assert re.search(r"changed=0 .* rescued=2 ", said) and "all was refused" in said, said
    assert f"bridge {bridge} 198." in said and "was there before and is left as it is" in said and f"{bridge} stays: this role did not make it" in said
    assert sh(["ip", "-4", "addr", "show", bridge]) == before and not settings.exists() and os.listdir(fleet.lxcpath) == []
