#!/usr/bin/python
# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_base
short_description: Make, adopt, seal, unseal and remove the canonical base of a fleet of LXC clones
version_added: 0.1.0
description:
  - A base is the one container that a fleet is cloned from. It is made from a template or an archive, or an existing container is adopted.
  - A sealed base has a generation and a fingerprint, and a guard that keeps it from being started.
  - A base with clones that depend on its storage is never changed in place; an upgrade is another base of the same O(family).
extends_documentation_fragment:
  - fleet.lxc.common
options:
  name:
    description:
      - The base's name.
    type: str
    required: true
  template:
    description:
      - Make it with this template of C(lxc-create), such as V(busybox), V(debian), V(download) or V(local).
    type: str
  template_options:
    description:
      - "Options of the template. V({release: bookworm}) becomes C(--release bookworm); a value of true makes a flag."
    type: dict
  rootfs_archive:
    description:
      - Make it from this tar archive of a root filesystem on the host; extended attributes and numeric owners are kept.
    type: path
  adopt:
    description:
      - Make an existing container the base. With O(state=sealed) it is scrubbed, unless O(scrub=false).
    type: bool
    default: false
  family:
    description:
      - The family that the base and its clones belong to. Default is O(name).
    type: str
  backing_store:
    description:
      - Where a new base's root filesystem is kept.
    type: str
    choices: [dir, btrfs, loop, lvm, zfs]
    default: dir
  storage:
    description:
      - Where and how large a new root filesystem is made.
    type: dict
    suboptions:
      size:
        description:
          - The size of each root filesystem, such as V(2G). Default is LXC's, 1 GiB. For loop and LVM.
        type: str
      fstype:
        description: The filesystem in it. Default is V(ext4).
        type: str
        choices: [ext4, xfs, btrfs]
      vg:
        description: The LVM volume group. Default is LXC's own (C(lxc.bdev.lvm.vg)).
        type: str
      thinpool:
        description: The thin pool in it. Default is LXC's own (C(lxc.bdev.lvm.thin_pool)) where it exists; without one volumes are thick.
        type: str
      zfs_dataset:
        description: The ZFS dataset below which root filesystems are made. Default is LXC's own (C(lxc.bdev.zfs.root)).
        type: str
  config:
    description:
      - LXC configuration keys with a string or a list of strings each, as in M(fleet.lxc.lxc_clone), checked likewise against the host's cgroups.
      - Left out, the keys that earlier tasks set stay as they are; V({}) gives all of them their old lines back.
    type: dict
  state:
    description:
      - V(present) sees that it exists, V(sealed) that it exists and is sealed, V(unsealed) that it exists and may be changed.
      - V(started) sees that it exists and runs, to be changed from within. A sealed base is not started; unseal it first.
      - V(absent) removes it. That is refused while other containers depend on its storage.
    type: str
    choices: [present, started, sealed, unsealed, absent]
    default: present
  version:
    description:
      - What you call the content that is sealed with O(state=sealed), such as V(2026-11-25). It is kept until the base is unsealed.
      - A base that is sealed with another one is sealed anew, which is refused while other containers depend on its storage.
    type: str
  scrub:
    description:
      - When the base is sealed, take out of it what no two machines must share. Each clone makes its own when it first boots.
      - "That is: the machine-id (emptied), D-Bus's copy of it, the ssh host keys, the saved random seed, DHCP leases and identifiers,
        and what cloud-init remembers of an instance."
      - A guest with systemd that would not make ssh host keys by itself gets a unit that does. Where none can be put, the keys stay,
        with a warning.
      - With V(false) the same is done to each clone, as the O(fleet.lxc.lxc_clone#module:identity) of M(fleet.lxc.lxc_clone) says.
    type: bool
    default: true
  wait_for:
    description:
      - What O(state=started) waits for, V(network) being an address, and V(command) the success of O(wait_command).
    type: list
    elements: str
    choices: [running, network, command]
    default: [running]
  wait_command:
    description:
      - A command line for the guest's C(/bin/sh), as in M(fleet.lxc.lxc_clone).
    type: str
  wait_timeout:
    description:
      - Seconds to wait at most.
    type: int
    default: 60
  dpkg_unsafe_io:
    description:
      - Whether C(dpkg) in the base, and in the clones that are made of it from then on, works without waiting for the disk after each
        file (C(force-unsafe-io)). That makes installations much faster where C(fsync) is slow, as on btrfs.
        If the power fails in the middle of one, files of that package may be left empty.
      - V(true) writes C(/etc/dpkg/dpkg.cfg.d/fleet-lxc) in the guest, V(false) removes it. By default it is left as it is.
      - A sealed base is sealed anew for that, which is refused while other containers depend on its storage.
        A guest without dpkg is left as it is, with a warning.
    type: bool
  stop:
    description:
      - Stop a running base, in good order, before it is sealed or removed. Otherwise that is an error.
    type: bool
    default: false
  delete_adopted:
    description:
      - With O(state=absent), remove an adopted container itself. Otherwise it only ceases to be a base.
    type: bool
    default: false
  cascade:
    description:
      - With O(state=absent), first remove the stopped clones whose storage depends on the base.
    type: bool
    default: false
seealso:
  - module: fleet.lxc.lxc_clone
"""

EXAMPLES = r"""
- name: A sealed base that needs no download
  fleet.lxc.lxc_base:
    name: golden
    template: busybox
    state: sealed

- name: A Debian base
  fleet.lxc.lxc_base:
    name: bookworm
    template: debian
    template_options:
      release: bookworm
    dpkg_unsafe_io: true

- name: A base from an archive, on a loop device of 2 GiB
  fleet.lxc.lxc_base:
    name: golden-loop
    rootfs_archive: /srv/images/golden.tar
    backing_store: loop
    storage:
      size: 2G

- name: A base that runs, to be provisioned
  fleet.lxc.lxc_base:
    name: bookworm
    state: started
    wait_for: network

- name: The provisioned base, shut down, scrubbed and sealed
  fleet.lxc.lxc_base:
    name: bookworm
    state: sealed
    stop: true
    version: "2026-11-25"

- name: An existing container becomes the base
  fleet.lxc.lxc_base:
    name: C1
    adopt: true
    state: sealed
    stop: true
"""

RETURN = r"""
actions:
  description: The steps taken, of sweep, create, adopt, stop, configure, tune, seal, unseal, start, forget, remove.
  returned: success
  type: list
  elements: str
  sample: [create, seal]
base:
  description: The base as it is after the call.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: golden
    lxcpath:
      description: The directory that holds it.
      type: str
      sample: /var/lib/lxc
    state:
      description: V(stopped), V(running), V(frozen) or V(absent).
      type: str
      sample: stopped
    origin:
      description: V(created) or V(adopted).
      type: str
      sample: created
    sealed:
      description: Whether it is sealed.
      type: bool
      sample: true
    family:
      description: Its family.
      type: str
      sample: golden
    generation:
      description: The id of the sealed state; null while it is unsealed.
      type: str
      sample: 3f2a90c1b7de
    version:
      description: What the task that sealed it called its content.
      type: str
      sample: "2026-11-25"
    ipv4:
      description: Its IPv4 addresses after O(state=started).
      type: list
      elements: str
      sample: [10.0.3.17]
    ipv6:
      description: Its IPv6 addresses after O(state=started), link-local ones left out.
      type: list
      elements: str
      sample: []
    fingerprint:
      description: What shows that it changed after it was sealed.
      type: str
      sample: 9be1f2f76f0d4c1a8c0e6f3b2a7d5e41
    backing_store:
      description: Where its root filesystem is kept.
      type: str
      sample: dir
    rootfs:
      description: Its C(lxc.rootfs.path).
      type: str
      sample: dir:/var/lib/lxc/golden/rootfs
    dependents:
      description: The containers whose storage depends on it.
      type: list
      elements: str
      sample: [/var/lib/lxc/web-01]
scrubbed:
  description: What was found in the base and taken out when it was sealed, of machine_id, ssh_host_keys, random_seed, dhcp, cloud_init.
  returned: success
  type: list
  elements: str
  sample: [machine_id, ssh_host_keys]
diff:
  description: What the base is and what it will be.
  returned: in diff mode
  type: dict
  sample: {before: "golden: absent\n", after: "golden: sealed (create, seal)\n"}
kind:
  description: The kind of the error, as in M(fleet.lxc.lxc_clone).
  returned: failure
  type: str
  sample: busy
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.lxc.plugins.module_utils.bases import BaseCall
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import BASE_ARGUMENTS


def main() -> None:
    module = AnsibleModule(argument_spec=BASE_ARGUMENTS, supports_check_mode=True)
    try:
        result = BaseCall(module.params).run(module.check_mode)
    except FleetError as error:
        module.fail_json(msg=str(error), kind=error.kind)
    for warning in result.pop("warnings"):
        module.warn(warning)
    if not module._diff:  # pylint: disable=protected-access
        del result["diff"]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
