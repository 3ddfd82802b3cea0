# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role fleet from a distribution's root filesystem to hosts of the next play: docs/examples/web.yml as it stands, and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import urllib.request
import uuid
from pathlib import Path

import network
import pytest
import yaml
from checkout import ROOT, run
from conftest import NETWORKLESS, Fleet, lxc, sh
from distribution import debian_with_systemd
from test_connection import through_ssh

EXAMPLE = ROOT / "docs" / "examples" / "web.yml"
WEB = [f"web-{number:02}" for number in range(1, 13)]
FACTS = """
cat /etc/machine-id; hostname; cat /etc/hostname; cat /sys/class/net/eth0/address; systemctl is-system-running --wait
cat /etc/ssh/ssh_host_ed25519_key.pub /etc/ssh/ssh_host_rsa_key.pub; grep web /etc/hosts; cat /var/lib/dbus/machine-id
"""


@pytest.fixture
def lxcpath():
    directory = Path("/var/tmp") / f"fleet-{uuid.uuid4().hex[:8]}"
    directory.mkdir(mode=0o755)
    yield directory
    Fleet(directory).empty()
    directory.rmdir()


@pytest.fixture(scope="module")
def bridge():
    with network.bridge(outward=True) as name:
        yield name


def play(playbook, *arguments, variables, **environment):
    """A playbook's whole output, and what each host's recap says changed."""
    command = ["ansible-playbook", *arguments, playbook, "-e", json.dumps(variables)]
    said = run(*command, **environment)
    return said, {host: int(changed) for host, changed in re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+) ", said, re.MULTILINE)}


def of_debian(lxcpath, bridge):
    """What turns the example to a base that needs no download of a distribution, and to a network of our own."""
    return {
        "fleet_lxcpath": str(lxcpath),
        "fleet_base_rootfs_archive": debian_with_systemd(),
        "fleet_base_template_options": {},
        "fleet_base_config": {"lxc.net.0.type": "veth", "lxc.net.0.link": bridge, "lxc.net.0.flags": "up"},
    }


def looked_into(fleet, names):
    """What each clone says of itself, asked of all at once."""
    asked = {
        name: subprocess.Popen(["lxc-attach", "-P", fleet.lxcpath, "-n", name, "--", "sh", "-c", FACTS], stdout=subprocess.PIPE, text=True) for name in names
    }
    return {name: process.communicate()[0].splitlines() for name, process in asked.items()}


def address_of(fleet, name):
    return lxc("lxc-info", fleet, name, "-i", "-H").stdout.split()[0]


def page_of(address):
    with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
        return answer.read().decode()


def test_twelve_web_servers_of_one_debian_base(lxcpath, bridge):
    assert len(EXAMPLE.read_text().splitlines()) <= 30
    fleet, variables = Fleet(lxcpath), of_debian(lxcpath, bridge)
    said, changed = play(EXAMPLE, variables=variables)
    assert "Note that the base is provisioned" in said and set(changed) == {"localhost", *WEB}

    seen = looked_into(fleet, WEB)
    machine_ids, hostnames, files, macs, states, ed25519, rsa, hosts, dbus = zip(*seen.values())
    assert [len(set(one)) for one in (machine_ids, macs, ed25519, rsa)] == [12] * 4
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in machine_ids) and dbus == machine_ids
    assert list(hostnames) == list(files) == WEB and set(states) == {"running"}
    assert [line.split() for line in hosts] == [["127.0.1.1", name] for name in WEB]
    addresses = {name: address_of(fleet, name) for name in WEB}
    assert len(set(addresses.values())) == 12
    assert all(page_of(address).startswith(f"{name}, Debian 12") for name, address in addresses.items())

    said, changed = play(EXAMPLE, variables=variables)
    assert set(changed.values()) == {0} and "Enter the base" not in said

    # Made again, a clone is the same to the DHCP server and a new machine all the same.
    fleet.clone(source="web-base", name="web-05", state="absent", force_stop=True)
    fleet.clone(
        source="web-base", name="web-05", state="started", wait_for=["network", "command"], wait_command="systemctl is-system-running --wait", wait_timeout=60
    )
    again = looked_into(fleet, ["web-05"])["web-05"]
    assert again[3] == seen["web-05"][3] and address_of(fleet, "web-05") == addresses["web-05"]
    assert again[0] != seen["web-05"][0] and again[5] != seen["web-05"][5]


@contextlib.contextmanager
def plugged(way, bridge):
    """The name of a bridge in the network of another machine, of one piece with ours."""
    ours, pid = f"fl{uuid.uuid4().hex[:8]}", way.machine.holder.pid
    sh(f"ip link add {ours} master {bridge} type veth peer name out netns {pid} && ip link set {ours} up")
    # /sys shows the network of who mounted it.
    way.machine.sh("mkdir /run/cgroup && mount --rbind /sys/fs/cgroup /run/cgroup && mount -t sysfs sysfs /sys && mount --rbind /run/cgroup /sys/fs/cgroup")
    way.machine.sh("ip link add br0 type bridge && ip link set out master br0 && ip link set out up && ip link set br0 up")
    yield "br0"


def test_the_same_playbook_through_ssh_and_sudo(lxcpath, bridge, tmp_path):
    fleet, names = Fleet(lxcpath), WEB[:3]
    inventory = tmp_path / "inventory.yml"
    with through_ssh(fleet, tmp_path) as way, plugged(way, bridge) as link:
        inventory.write_text(json.dumps({"all": {"hosts": {"lxc1": {**way.host, "ansible_python_interpreter": "/usr/bin/python3"}}}}))
        variables = {**of_debian(lxcpath, link), "lxc_hosts": "lxc1", "fleet_clones": names}
        try:
            said, changed = play(EXAMPLE, "-i", inventory, variables=variables)
            assert "Note that the base is provisioned" in said and set(changed) == {"lxc1", *names}
            assert fleet.up() == [], "the containers are to run on the other machine"
            for name in names:
                assert page_of(way.lxc("info", name, "-i", "-H").split()[0]).startswith(f"{name}, Debian 12")
            _said, changed = play(EXAMPLE, "-i", inventory, variables=variables)
            assert set(changed.values()) == {0}
        finally:
            for name in way.sh("lxc-ls", "-P", fleet.lxcpath, "-1", "--active").split():
                way.lxc("stop", name, "-k")


RAW = {"fleet_base_name": "golden", "fleet_provision_wait_for": "running", "fleet_provision_gather_facts": False, "fleet_wait_for": "running"}


def playbook(directory, tasks=(), roles=(), after=()):
    """A play with the role over busybox, and one over its clones."""
    (directory / "provision.yml").write_text(yaml.safe_dump(list(tasks)))
    for name, role in dict(roles).items():
        for part, content in role.items():
            (directory / "roles" / name / part).mkdir(parents=True)
            (directory / "roles" / name / part / "main.yml").write_text(yaml.safe_dump(content))
    fleet = {
        "role": "fleet.lxc.fleet",
        "vars": {"fleet_provision_tasks": "provision.yml", "fleet_provision_roles": list(dict(roles)), "fleet_clones": ["n[1:2]"]},
    }
    (directory / "play.yml").write_text(
        yaml.safe_dump(
            [
                {"hosts": "localhost", "gather_facts": True, "roles": [fleet], "post_tasks": list(after)},
                {"hosts": "fleet", "gather_facts": False, "tasks": [{"name": "Read", "ansible.builtin.raw": "cat /made"}]},
            ]
        )
    )
    return directory / "play.yml"


def test_a_failure_leaves_the_base_unsealed_and_the_next_run_goes_on(lxcpath, tmp_path):
    fleet, variables = Fleet(lxcpath), {**RAW, "fleet_lxcpath": str(lxcpath), "fleet_base_config": NETWORKLESS}
    tasks = [
        {"name": "Begin", "ansible.builtin.raw": "echo once >>/made"},
        {"name": "Stumble", "ansible.builtin.raw": "test -e /mended || { echo no mend >&2; exit 3; }"},
    ]
    path = playbook(tmp_path, tasks)
    with pytest.raises(AssertionError) as failed:
        play(path, variables=variables)
    assert re.search(
        r"The base golden was not provisioned: the task .*Stumble.* failed.*left running and unsealed, and no clone was made", str(failed.value), re.DOTALL
    )
    assert fleet.up() == ["golden"] and fleet.names() == ["golden"]
    assert not json.loads(Path(fleet.path("golden", "fleet.lxc.json")).read_text())["sealed"]

    lxc("lxc-attach", fleet, "golden", "--", "touch", "/mended")
    said, changed = play(path, variables=variables)
    assert set(changed) == {"localhost", "n1", "n2"} and fleet.up() == ["n1", "n2"]
    assert lxc("lxc-attach", fleet, "n1", "--", "cat", "/made").stdout == "once\nonce\n"
    # What is sealed and of the wanted version is not provisioned.
    said, _changed = play(path, variables=variables)
    assert "Stumble" not in said


def test_roles_with_handlers_run_inside_the_base_and_the_hosts_own_facts_come_back(lxcpath, tmp_path):
    fleet, variables = Fleet(lxcpath), {**RAW, "fleet_lxcpath": str(lxcpath), "fleet_base_config": NETWORKLESS}
    mark = f"/fleet-{uuid.uuid4().hex}"
    role = {
        "tasks": [{"name": "Write", "ansible.builtin.raw": "hostname >/made", "notify": "Restart"}],
        "handlers": [{"name": "Restart", "ansible.builtin.raw": f"echo handled >{mark}"}],
    }
    after = [{"ansible.builtin.assert": {"that": "ansible_facts.hostname == lookup('ansible.builtin.pipe', 'hostname -s')"}}]
    play(playbook(tmp_path, roles={"web": role}, after=after), variables=variables)
    assert not os.path.exists(mark)
    assert lxc("lxc-attach", fleet, "n2", "--", "cat", "/made", mark).stdout == "golden\nhandled\n"


def test_another_version_is_provisioned_anew_once_no_clone_depends_on_the_old_one(lxcpath, tmp_path):
    fleet, variables = Fleet(lxcpath), {**RAW, "fleet_lxcpath": str(lxcpath), "fleet_base_config": NETWORKLESS}
    path = playbook(tmp_path, [{"name": "Write", "ansible.builtin.raw": "echo '{{ fleet_base_version }}' >>/made"}])
    play(path, variables={**variables, "fleet_base_version": "1"})
    with pytest.raises(AssertionError, match="is not unsealed while 2 containers depend on its storage.*another base of the same family"):
        play(path, variables={**variables, "fleet_base_version": "2"})
    fleet.clone(source="golden", name="n[1:2]", state="absent", force_stop=True)
    play(path, variables={**variables, "fleet_base_version": "2"})
    assert lxc("lxc-attach", fleet, "n1", "--", "cat", "/made").stdout == "1\n2\n"
    _said, changed = play(path, variables={**variables, "fleet_base_version": "2"})
    assert changed["localhost"] == 0


HERE = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}


def two_hosts(tmp_path, lxcpath):
    """An inventory of two LXC hosts, which are this machine with an lxcpath each."""
    hosts = {}
    for name in ("a", "b"):
        (lxcpath / name).mkdir()
        Fleet(lxcpath / name).base(name="golden", template="busybox", state="sealed", config=NETWORKLESS)
        hosts[name] = {**HERE, "fleet_lxcpath": str(lxcpath / name), "fleet_groups": [f"of_{name}"], "vault_password": "swordfish"}
    (tmp_path / "inventory.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    return tmp_path / "inventory.yml"


def test_the_clones_of_two_lxc_hosts_are_told_apart_and_nothing_else_of_the_hosts_is_told(lxcpath, tmp_path):
    inventory = two_hosts(tmp_path, lxcpath)
    fleet = {"fleet_wait_for": "running", "fleet_clone_state": "present", "fleet_base_config": NETWORKLESS}
    uses = [
        {"import_role": {"name": "fleet.lxc.fleet"}, "vars": {**fleet, "fleet_clones": ["web"]}},
        {"include_role": {"name": "fleet.lxc.fleet"}, "vars": {**fleet, "fleet_clones": ["db"], "fleet_groups": ["db"]}, "when": "inventory_hostname == 'b'"},
        {"copy": {"content": "{{ groups | to_json }}", "dest": str(tmp_path / "groups"), "mode": "0600"}, "run_once": True},
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump([{"hosts": "a:b", "gather_facts": False, "tasks": uses}]))
    try:
        said, _changed = play(tmp_path / "play.yml", "-i", inventory, "-vvv", variables={})
        assert "swordfish" not in said
        groups = json.loads((tmp_path / "groups").read_text())
        assert groups["of_a"] == ["web.a"] and groups["of_b"] == ["web.b"] and groups["db"] == ["db.b"]
    finally:
        for name in ("a", "b"):
            Fleet(lxcpath / name).empty()
            (lxcpath / name).rmdir()


def test_a_second_use_of_the_role_stops_nothing_that_it_was_not_allowed_to(lxcpath, tmp_path):
    fleet = Fleet(lxcpath)
    fleet.base(name="prod", template="busybox", state="started", config=NETWORKLESS)
    os.unlink(fleet.path("prod", "fleet.lxc.json"))
    path = playbook(tmp_path, [{"name": "Write", "ansible.builtin.raw": "true"}])
    content = yaml.safe_load(path.read_text())
    content[0]["roles"].append({"role": "fleet.lxc.fleet", "vars": {"fleet_base_name": "prod", "fleet_base_adopt": True, "fleet_clones": ["p1"]}})
    content[0]["roles"][0]["vars"]["fleet_base_name"] = "golden"
    path.write_text(yaml.safe_dump(content))
    variables = {key: value for key, value in RAW.items() if key != "fleet_base_name"}
    with pytest.raises(AssertionError, match="prod: is not sealed while it is running"):
        play(path, variables={**variables, "fleet_lxcpath": str(lxcpath), "fleet_base_config": NETWORKLESS})
    assert "prod" in fleet.up()


SEED = "#cloud-config\nhostname: {{ clone.name }}\nruncmd: [echo {{ clone.index }}]\n"


def test_each_clone_gets_a_seed_of_its_own(lxcpath, tmp_path):
    fleet = Fleet(lxcpath)
    (tmp_path / "user-data.j2").write_text(SEED)
    variables = {**RAW, "fleet_lxcpath": str(lxcpath), "fleet_base_config": NETWORKLESS, "fleet_clone_state": "present"}
    variables |= {"fleet_cloud_init_user_data": "user-data.j2", "fleet_cloud_init_meta_data": {"rack": 7}, "fleet_add_hosts": False}
    path = playbook(tmp_path, [{"name": "Write", "ansible.builtin.raw": "true"}])
    play(path, variables=variables)
    instances = set()
    for index in (1, 2):
        place = Path(fleet.path(f"n{index}", "overlay/delta/var/lib/cloud/seed/nocloud"))
        assert yaml.safe_load((place / "user-data").read_text()) == {"hostname": f"n{index}", "runcmd": [f"echo {index}"]}
        meta = yaml.safe_load((place / "meta-data").read_text())
        assert meta["local-hostname"] == f"n{index}" and meta["rack"] == 7
        instances.add(meta["instance-id"])
    assert len(instances) == 2
    assert sh(["find", fleet.path("golden", "rootfs"), "-name", "nocloud"]) == ""
