#!/usr/bin/python
# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_clone
short_description: Make, start, stop and remove any number of clones of one LXC container
version_added: 0.1.0
description:
  - One call makes 1 to 10,000 clones of a source container, or brings them to another state.
  - A clone is complete or it does not exist. What a cut-off run left behind, the next run sweeps and makes anew.
  - An existing container that is not a clone of the source's family is never adopted, replaced or removed.
extends_documentation_fragment:
  - fleet.lxc.common
options:
  source:
    description:
      - The name of the base. Required unless O(state=absent).
      - A base is best made and sealed with M(fleet.lxc.lxc_base); an unsealed container can be cloned too, with a warning.
    type: str
  name:
    description:
      - The clones' names, one or many, with Ansible host ranges such as V(web-[001:300]).
      - A name has 1 to 63 letters, digits, dashes and dots and begins with a letter or digit.
    type: list
    elements: str
    required: true
    aliases: [names]
  method:
    description:
      - V(snapshot) shares the base's blocks by the backing store's copy-on-write.
      - V(copy) makes independent root filesystems; blocks are shared where the filesystem has reflinks.
      - V(auto) takes a snapshot where it can be, else a reflink copy, else it fails. It never makes full copies.
      - An existing clone stays as it was made; a warning says so where that was another way. The same goes for O(backing_store).
    type: str
    choices: [auto, snapshot, copy]
    default: auto
  backing_store:
    description:
      - Where the clones' root filesystems are kept. Default is what fits the source and O(method).
    type: str
    choices: [dir, overlay, btrfs, loop, lvm, zfs]
  storage:
    description:
      - Where and how large root filesystems are made, for the stores that ask for it.
    type: dict
    suboptions:
      size:
        description:
          - The size of each root filesystem, such as V(2G). Default is the source's.
          - An existing clone grows to it, whether it runs or not (a loop file when it does not); nothing is ever made smaller.
        type: str
      fstype:
        description: The filesystem in it. Default is the source's, or V(ext4). Another than the source's is for full copies.
        type: str
        choices: [ext4, xfs, btrfs]
      vg:
        description: The LVM volume group. Default is the source's, or LXC's own.
        type: str
      thinpool:
        description: The thin pool in it. Default is the source's, or LXC's own where there is one.
        type: str
      zfs_dataset:
        description: The ZFS dataset below which root filesystems are made. Default is where the source is, or LXC's own.
        type: str
      cow_size:
        description:
          - The copy-on-write area of a snapshot on thick LVM, which loses the clone when it is full.
          - Default is a fifth of the origin and at least 64 MiB, more by the log where the origin is XFS, within what the volume group has free.
        type: str
  state:
    description:
      - V(present) makes what is missing and leaves what runs or does not run as it is.
      - V(started), V(stopped), V(frozen) and V(restarted) make what is missing, too, and then see to the state.
      - V(absent) removes the named clones with their storage, stopping them first.
    type: str
    choices: [present, started, stopped, frozen, restarted, absent]
    default: present
  source_lxcpath:
    description:
      - The directory that holds the source, where it is not O(lxcpath).
    type: path
  config:
    description:
      - LXC configuration keys with a string or a list of strings each. They replace all inherited lines of that key, those of
        included files too; null removes them. An empty line of the key does so, where an include sets it.
      - V({name}) and V({index}) (the number of the name's last range) are replaced; V({{) is a brace.
      - A changed value on an existing clone is written in place; RV(clones[].restart_required) tells that it runs with the old one.
      - A key that is dropped from the task gets the lines back that it had before. V({}) drops all of them.
      - Left out, the keys that earlier tasks set stay as they are.
      - LXC itself reads the new configuration before anything is touched. A key or value that it does not know is refused.
      - C(lxc.rootfs.*), C(lxc.uts.name), C(lxc.idmap) and C(lxc.include) cannot be set.
      - LXC passes over cgroup limits that are not of the host's cgroup version, C(lxc.cgroup2.*) where version 1 or a hybrid is mounted and
        C(lxc.cgroup.*) where version 2 is. They are refused, as are limits of a controller that the host does not have. A task for hosts of
        both kinds sets a limit of both versions for the same controller.
    type: dict
  overrides:
    description:
      - Per clone, a dict with the keys C(config), which goes over O(config), and C(cloud_init), which takes the place of O(cloud_init).
        For clones whose C(config) is given here, O(config) counts as given.
    type: dict
  identity:
    description:
      - What of a new clone is its own. What does not apply to a guest is skipped; RV(clones[].identity) tells what was done.
      - All but the name and the MAC addresses is taken out of a base once, when it is sealed (O(fleet.lxc.lxc_base#module:scrub)).
        To keep it in clones, turn it off there.
      - Nothing is written or removed through a symlink of the guest; what is none of the expected files is left alone, with a warning.
    type: dict
    suboptions:
      hostname:
        description: C(/etc/hostname), and C(/etc/hosts) where the base's name stands beside a loopback address. C(lxc.uts.name) is always set.
        type: bool
        default: true
      machine_id:
        description: C(/etc/machine-id) is emptied (removed in a guest without systemd), D-Bus's copy removed. The first boot makes a new one.
        type: bool
        default: true
      ssh_host_keys:
        description:
          - C(/etc/ssh/ssh_host_*) is removed. The first boot makes new ones, through a unit that is put into a guest with systemd that
            would not do so by itself. Where nothing would make them, they stay, with a warning.
        type: bool
        default: true
      random_seed:
        description: The saved seed of the random number generator is removed.
        type: bool
        default: true
      dhcp:
        description: Leases and identifiers of DHCP clients are removed.
        type: bool
        default: true
      cloud_init:
        description: What cloud-init remembers of an instance is removed, so that it takes the clone for a new one. Its seed stays.
        type: bool
        default: true
      hwaddr:
        description:
          - V(stable) derives each MAC address from this host, the lxcpath, the clone's name and the number of the interface. A clone that
            is removed and made again has the same, and so the same address by DHCP. An interface that has none in the base gets one.
          - V(random) gives new random ones where the base has some. V(keep) leaves those of the base.
          - No address is given that another container of the lxcpath has.
        type: str
        choices: [stable, random, keep]
        default: stable
  cloud_init:
    description:
      - A NoCloud seed for cloud-init in each new clone, in C(/var/lib/cloud/seed/nocloud). It gets a new instance-id and the clone's name.
      - Written once, when a clone is made. O(overrides) give a clone a seed of its own.
    type: dict
    suboptions:
      user_data:
        description: A text, or a dictionary, which becomes C(#cloud-config).
        type: raw
      network_config:
        description: A text or a dictionary.
        type: raw
      meta_data:
        description: What goes into C(meta-data) beside C(instance-id) and C(local-hostname).
        type: dict
  autostart:
    description:
      - Whether and when the clones start with the host.
      - Left out, what earlier tasks set with this option stays. V({}) means as the base has it.
    type: dict
    suboptions:
      enabled:
        description: Sets C(lxc.start.auto). Taken as true where one of the others is given.
        type: bool
      order:
        description: Sets C(lxc.start.order).
        type: int
      delay:
        description: Sets C(lxc.start.delay), in seconds.
        type: int
      groups:
        description: Sets C(lxc.group).
        type: list
        elements: str
  ipv4:
    description:
      - A range of IPv4 addresses with the prefix length of their network, both ends included, such as V(10.0.2.11-10.0.3.54/23), or one
        address such as V(10.0.3.7/24). Each clone gets one.
      - Sets C(lxc.net.N.ipv4.address) of the first interface that has a device. A clone without one is refused.
      - A clone keeps the address that it got, whoever joins or leaves, as long as it is within the range. A new one gets the lowest that
        is free; one that already has an address of the range, by its configuration or while it runs, keeps that.
      - An address that O(config) or O(overrides) set wins over this, and is given to nobody else.
      - A range is refused that has fewer addresses than there are clones, or that holds an address of this host or of a container that is
        not of the family. The containers of O(lxcpath), of O(source_lxcpath) and of LXC's own lxcpath are known, and all that run. What a
        DHCP server hands out is not; leave its range out.
      - Left out, the addresses that earlier tasks gave stay. An empty string takes them back.
    type: str
  ipv4_gateway:
    description:
      - Sets C(lxc.net.N.ipv4.gateway) of the same interface. An address of the network of O(ipv4) outside of its range, or V(auto) (the
        address of the bridge) or V(dev) (the interface itself).
      - Dropped from a task that has O(ipv4), the gateway is as the base has it.
    type: str
  wait_for:
    description:
      - What to wait for in clones that run at the end. With several, each clone must have them all.
      - V(network) waits until each has an address other than loopback.
      - V(command) waits until O(wait_command) succeeds in each.
    type: list
    elements: str
    choices: [none, running, network, command]
    default: [running]
  wait_command:
    description:
      - A command line for the guest's C(/bin/sh), run through C(lxc-attach) with a clean environment until it exits with 0. It gets no input.
      - It is run in all clones at once. One that waits by itself, such as C(systemctl is-system-running --wait), is awaited. One that
        fails is run again, after a pause that grows to a second.
      - What runs still when the time is over is killed.
    type: str
  wait_timeout:
    description:
      - How many seconds to wait for all clones together, for their addresses and O(wait_command) alike.
    type: int
    default: 60
  workers:
    description:
      - How many clones are worked on at once. Default is twice the processors, 8 at most.
    type: int
  on_error:
    description:
      - V(stop) refuses the whole call, before anything is touched, because of one clone that is broken or not this family's,
        and begins nothing new after a clone has failed. V(continue) goes on with the others.
      - Either way each clone is whole or absent, and the task fails with all results.
    type: str
    choices: [stop, continue]
    default: stop
  cascade:
    description:
      - With O(state=absent), remove the stopped clones, too, whose storage depends on the removed one.
    type: bool
    default: false
  foreign:
    description:
      - With O(state=absent) and one literal name, remove a container that this collection did not make.
    type: bool
    default: false
  detail:
    description:
      - Which clones are returned in RV(clones), all, those that changed or failed, or none.
    type: str
    choices: [full, changed, summary]
    default: full
seealso:
  - module: fleet.lxc.lxc_base
"""

EXAMPLES = r"""
- name: A snapshot of one container (lxc-clone -s -o C1 -n C2)
  fleet.lxc.lxc_clone:
    source: C1
    name: C2
    method: snapshot

- name: A full copy (lxc-clone -o C1 -n C3)
  fleet.lxc.lxc_clone:
    source: C1
    name: C3
    method: copy

- name: Ten web servers, started, each with an address
  fleet.lxc.lxc_clone:
    source: golden
    name: web-[01:10]
    state: started
    wait_for: network
    config:
      lxc.environment: "NODE={name}"
      lxc.cgroup2.memory.max: 256M
      lxc.cgroup.memory.limit_in_bytes: 256M # the same where cgroups are of version 1
    overrides:
      web-01:
        config:
          lxc.cgroup2.memory.max: 1G
          lxc.cgroup.memory.limit_in_bytes: 1G

- name: Three databases with addresses of their own, ready when systemd says so
  fleet.lxc.lxc_clone:
    source: golden
    name: db-[1:3]
    state: started
    ipv4: 10.0.3.101-10.0.3.110/24
    ipv4_gateway: 10.0.3.1
    wait_for: [network, command]
    wait_command: systemctl is-system-running --wait
    wait_timeout: 120

- name: Remove them
  fleet.lxc.lxc_clone:
    name: ["web-[01:10]", "db-[1:3]"]
    state: absent
"""

RETURN = r"""
clones:
  description: One record for each clone, in the order of their names in the task. O(detail) chooses which.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The container's name.
      type: str
      sample: web-01
    changed:
      description: Whether this clone was changed.
      type: bool
    actions:
      description: The steps taken, of sweep, remove, create, grow, configure, unfreeze, stop, start, freeze.
      type: list
      elements: str
      sample: [create, start]
    state:
      description: V(running), V(stopped), V(frozen), V(absent), or V(failed).
      type: str
      sample: running
    source:
      description: The container that it was cloned from.
      type: str
      sample: golden
    family:
      description: The base's family.
      type: str
      sample: golden
    generation:
      description: The generation of the base it was made from; null for an unsealed source.
      type: str
      sample: 3f2a90c1b7de
    stale:
      description: Whether the base has a newer generation.
      type: bool
    method:
      description: V(snapshot) or V(copy).
      type: str
      sample: snapshot
    backing_store:
      description: Where its root filesystem is kept.
      type: str
      sample: overlay
    rootfs:
      description: Its C(lxc.rootfs.path).
      type: str
      sample: overlay:/var/lib/lxc/golden/rootfs:/var/lib/lxc/web-01/overlay/delta
    lxcpath:
      description: The directory that holds it.
      type: str
      sample: /var/lib/lxc
    ipv4:
      description: Its IPv4 addresses while it runs.
      type: list
      elements: str
      sample: [10.0.3.17]
    ipv6:
      description: Its IPv6 addresses while it runs, link-local ones left out.
      type: list
      elements: str
      sample: []
    hwaddr:
      description: The MAC address of its first interface, where the configuration has one.
      type: str
      sample: 00:16:3e:4a:11:07
    identity:
      description:
        - Present for a clone that this call made where anything was made its own. V(hostname), V(cloud_init_seed), and of a source that was not scrubbed
          V(machine_id), V(ssh_host_keys), V(random_seed), V(dhcp), V(cloud_init).
      type: list
      elements: str
      sample: [hostname]
    assigned:
      description: Present where O(ipv4) gave it an address, with the prefix length, whether it runs or not.
      type: str
      sample: 10.0.2.17/23
    restart_required:
      description: Present and true from a change of the configuration on until the clone is restarted, as long as it runs with the old one.
      type: bool
summary:
  description: How many clones were C(created), C(started), C(stopped), C(removed), C(unchanged), C(failed).
  returned: always
  type: dict
  sample: {created: 10, started: 10, stopped: 0, removed: 0, unchanged: 0, failed: 0}
storage:
  description:
    - How much room is left where the clones are. C(store) and C(available) (bytes) are always there; LVM adds C(vg), and for thin
      volumes C(thinpool), C(data_percent) and C(metadata_percent); ZFS adds C(pool).
  returned: always
  type: dict
  sample: {store: lvm, vg: lxc, thinpool: pool, available: 8589934592, data_percent: 12.5, metadata_percent: 3.1}
diff:
  description: What the containers that change are, and what they will be.
  returned: in diff mode
  type: dict
  sample: {before: "web-01: absent\n", after: "web-01: running, snapshot of golden\n"}
kind:
  description:
    - The kind of the first error, one of C(invalid), C(missing), C(conflict), C(busy), C(unsupported), C(resources), C(broken),
      C(failed), C(timeout).
  returned: failure
  type: str
  sample: busy
errors:
  description: What failed, a sentence for each clone. Not returned where a refusal came before anything was touched.
  returned: failure
  type: list
  elements: str
  sample: ["web-07: runs, but had no address within 60 s"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.lxc.plugins.module_utils.errors import FleetError
from ansible_collections.fleet.lxc.plugins.module_utils.fleet import CloneCall
from ansible_collections.fleet.lxc.plugins.module_utils.wanted import CLONE_ARGUMENTS


def main() -> None:
    module = AnsibleModule(argument_spec=CLONE_ARGUMENTS, supports_check_mode=True)
    try:
        result = CloneCall(module.params).run(module.check_mode, module._diff)  # pylint: disable=protected-access
    except FleetError as error:
        module.fail_json(msg=str(error), kind=error.kind)
    for warning in result.pop("warnings"):
        module.warn(warning)
    failures, left_out = list(result.pop("failures").values()), result.pop("left_out")
    if failures:
        more = f" ({len(failures) - 1} more failed: {', '.join(str(f.container) for f in failures[1:11])})" if len(failures) > 1 else ""
        if left_out:
            more += f" With on_error: stop, {len(left_out)} others were not finished; run again to go on."
        module.fail_json(msg=f"{failures[0]}{more}", kind=failures[0].kind, errors=[str(f) for f in failures], **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
