# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: container_names
short_description: The containers that names and host ranges stand for
version_added: 0.1.0
description:
  - Expands names and host ranges exactly as M(fleet.lxc.lxc_clone) does, in its order.
author:
  - fleet.lxc contributors (@fleet-lxc)
options:
  _input:
    description: Names and host ranges.
    type: list
    elements: str
    required: true
seealso:
  - module: fleet.lxc.lxc_clone
"""

EXAMPLES = r"""
- name: The names of a fleet
  ansible.builtin.debug:
    msg: "{{ ['db', 'web-[01:10]'] | fleet.lxc.container_names | map(attribute='name') }}"
"""

RETURN = r"""
_value:
  description:
    - One dictionary per container, with its C(name) and C(index), the number that the name's last range gave it, or null.
  type: list
  elements: dict
  sample: [{name: web-01, index: 1}, {name: web-02, index: 2}]
"""

from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.names import expand


def container_names(patterns):
    """Names and ranges as a list of names with their numbers."""
    try:
        return [{"name": name.name, "index": name.index} for name in expand([patterns] if isinstance(patterns, str) else patterns)]
    except FleetError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The collection's filters."""

    def filters(self):
        return {"container_names": container_names}
