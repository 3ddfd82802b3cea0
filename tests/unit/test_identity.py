# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import re
import stat
import subprocess

import pytest
from ansible_collections.fleet.lxc.plugins.module_utils.guest import GuestRoot
from ansible_collections.fleet.lxc.plugins.module_utils.identity import ALL, MacAddresses, scrub, survey, write_seed

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="overlay mounts and device nodes need root")
ITEMS = ALL.scrubbed
MACHINE_ID = "0123456789abcdef0123456789abcdef\n"


def furnish(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


DEBIAN = {
    "usr/lib/systemd/systemd": "",
    "usr/bin/ssh-keygen": "",
    "etc/machine-id": MACHINE_ID,
    "etc/hostname": "golden\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1\tgolden.example.org golden # golden\n10.0.0.9 golden\n::1 localhost golden-two golden\n",
    "etc/passwd": "root:x:0:0\n",
    "etc/ssh/sshd_config": "",
    "etc/ssh/ssh_host_rsa_key": "secret",
    "etc/ssh/ssh_host_rsa_key.pub": "public",
    "etc/ssh/ssh_host_ed25519_key": "secret",
    "var/lib/dbus/machine-id": MACHINE_ID,
    "var/lib/systemd/random-seed": "seed",
    "var/lib/dhcp/dhclient.eth0.leases": "lease",
    "var/lib/dhcpcd/duid": "duid",
    "var/lib/cloud/instances/i-1/user-data.txt": "x",
    "var/lib/cloud/data/instance-id": "i-1",
    "var/lib/cloud/seed/nocloud/user-data": "kept",
}
TAKEN = {
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/ssh_host_rsa_key.pub",
    "etc/ssh/ssh_host_ed25519_key",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/dhcp/dhclient.eth0.leases",
    "var/lib/dhcpcd/duid",
    "var/lib/cloud/instances",
    "var/lib/cloud/data",
}


@pytest.fixture
def debian(tmp_path):
    root = tmp_path / "guest"
    furnish(root, DEBIAN)
    (root / "var/lib/cloud/instance").symlink_to("/var/lib/cloud/instances/i-1")
    return root


def scrubbed(*layers, items=ITEMS):
    """What was done, and what could not be."""
    warnings = []
    with GuestRoot([str(layer) for layer in layers]) as guest:
        return scrub(guest, items, warnings.append), warnings


def rename(guest, name, source, warn):
    """As a clone is renamed; whether anything changed."""
    found = survey(guest, ALL)
    for problem in found.problems:
        warn(problem)
    files = found.renamed(name, source)
    for path, text in files.items():
        guest.replace(path, text)
    return bool(files)


def paths(root):
    return {os.path.relpath(os.path.join(where, name), root) for where, directories, files in os.walk(root) for name in [*directories, *files]}


def test_a_debian_guest_is_rid_of_all_that_two_must_not_share(debian):
    before = paths(debian)
    assert scrubbed(debian) == (ITEMS, [])
    gone = before - paths(debian)
    assert TAKEN | {"var/lib/cloud/instance"} <= gone
    assert {path for path in gone if not any(path.startswith(taken) for taken in TAKEN)} == {"var/lib/cloud/instance"}
    assert (debian / "etc/machine-id").read_text() == ""
    unit = debian / "etc/systemd/system/fleet-lxc-ssh-host-keys.service"
    assert "ssh-keygen -A" in unit.read_text()
    assert os.readlink(debian / "etc/systemd/system/multi-user.target.wants" / unit.name) == f"/etc/systemd/system/{unit.name}"


def test_a_scrubbed_guest_is_known_and_left_alone(debian):
    with GuestRoot([str(debian)]) as guest:
        assert not survey(guest, ALL).scrubbed
    scrubbed(debian)
    with GuestRoot([str(debian)]) as guest:
        assert survey(guest, ALL).scrubbed
    assert scrubbed(debian) == ([], [])


@pytest.mark.parametrize("item", ITEMS)
def test_each_item_is_taken_away_alone(debian, item):
    others = [other for other in ITEMS if other != item]
    assert scrubbed(debian, items=[item]) == ([item], [])
    assert scrubbed(debian, items=[item]) == ([], [])
    assert scrubbed(debian, items=others) == (others, [])


def test_a_guest_without_systemd_has_its_machine_id_removed(debian):
    (debian / "usr/lib/systemd/systemd").unlink()
    scrubbed(debian, items=["machine_id"])
    assert not (debian / "etc/machine-id").exists() and not (debian / "var/lib/dbus/machine-id").exists()


def test_host_keys_that_nothing_would_make_anew_stay_and_that_is_told(debian):
    (debian / "usr/bin/ssh-keygen").unlink()
    done, warnings = scrubbed(debian, items=["ssh_host_keys"])
    assert done == [] and "nothing in this guest would make new ones" in warnings[0]
    assert (debian / "etc/ssh/ssh_host_rsa_key").exists()


@pytest.mark.parametrize("maker", ["usr/lib/systemd/system/sshd-keygen@.service", "etc/init.d/sshd"])
def test_a_guest_that_makes_host_keys_by_itself_gets_no_unit(debian, maker):
    if maker == "etc/init.d/sshd":
        (debian / "usr/lib/systemd/systemd").unlink()
    furnish(debian, {maker: "ssh-keygen -A"})
    assert scrubbed(debian, items=["ssh_host_keys"]) == (["ssh_host_keys"], [])
    assert not (debian / "etc/systemd").exists()


def test_a_guest_that_has_none_of_it_is_not_touched(tmp_path):
    furnish(tmp_path, {"etc/passwd": "", "bin/busybox": ""})
    before = paths(tmp_path)
    assert scrubbed(tmp_path) == ([], [])
    assert paths(tmp_path) == before


@needs_root
def test_the_kernel_sees_an_overlay_clone_of_an_unscrubbed_base_scrubbed(debian, tmp_path):
    delta, work, merged = tmp_path / "delta", tmp_path / "work", tmp_path / "merged"
    for directory in (delta, work, merged):
        directory.mkdir()
    os.chmod(debian / "etc/ssh", 0o710)
    assert scrubbed(delta, debian) == (ITEMS, [])
    assert (debian / "etc/ssh/ssh_host_rsa_key").exists() and (debian / "etc/machine-id").read_text() == MACHINE_ID
    with GuestRoot([str(delta), str(debian)]) as guest:
        assert write_seed(guest, "web", "i-2", {"user_data": "new"}, pytest.fail)
    subprocess.run(["mount", "-t", "overlay", "-o", f"lowerdir={debian},upperdir={delta},workdir={work}", "overlay", merged], check=True)
    try:
        assert not any((merged / path).exists() for path in TAKEN)
        assert (merged / "etc/machine-id").read_text() == "" and stat.S_IMODE((merged / "etc/ssh").stat().st_mode) == 0o710
        assert (merged / "etc/ssh/sshd_config").exists()
        assert (merged / "var/lib/cloud/seed/nocloud/user-data").read_text() == "new"
        assert sorted(os.listdir(merged / "var/lib/cloud")) == ["seed"]
    finally:
        subprocess.run(["umount", merged], check=True)


@needs_root
def test_a_directory_made_where_one_was_removed_is_empty(debian, tmp_path):
    delta, work, merged = tmp_path / "delta", tmp_path / "work", tmp_path / "merged"
    for directory in (delta, work, merged):
        directory.mkdir()
    with GuestRoot([str(delta), str(debian)]) as guest:
        guest.remove("var/lib/cloud")
        guest.make_directory("var/lib/cloud/seed")
    subprocess.run(["mount", "-t", "overlay", "-o", f"lowerdir={debian},upperdir={delta},workdir={work}", "overlay", merged], check=True)
    try:
        assert os.listdir(merged / "var/lib/cloud") == ["seed"] and os.listdir(merged / "var/lib/cloud/seed") == []
    finally:
        subprocess.run(["umount", merged], check=True)


def test_a_name_is_given_in_hostname_and_in_its_own_lines_of_hosts(debian):
    with GuestRoot([str(debian)]) as guest:
        assert rename(guest, "web-1", "other", pytest.fail)
        assert not rename(guest, "web-1", "other", pytest.fail)
    assert (debian / "etc/hostname").read_text() == "web-1\n"
    expected = "127.0.0.1 localhost\n127.0.1.1\tweb-1.example.org web-1 # golden\n10.0.0.9 golden\n::1 localhost golden-two web-1\n"
    assert (debian / "etc/hosts").read_text() == expected


def test_a_name_is_given_in_the_settings_of_red_hats_kin(debian):
    furnish(
        debian,
        {"etc/sysconfig/network": "NETWORKING=yes\nHOSTNAME=golden.example.org\n", "etc/sysconfig/network-scripts/ifcfg-eth0": 'DHCP_HOSTNAME="golden"\n'},
    )
    with GuestRoot([str(debian)]) as guest:
        rename(guest, "web-1", "golden", pytest.fail)
    assert (debian / "etc/sysconfig/network").read_text() == "NETWORKING=yes\nHOSTNAME=web-1.example.org\n"
    assert (debian / "etc/sysconfig/network-scripts/ifcfg-eth0").read_text() == 'DHCP_HOSTNAME="web-1"\n'


def test_a_name_with_a_domain_takes_the_place_of_the_old_one(debian):
    with GuestRoot([str(debian)]) as guest:
        rename(guest, "web.example.com", "other", pytest.fail)
    assert (debian / "etc/hosts").read_text().splitlines()[1] == "127.0.1.1\tweb.example.com web.example.com # golden"


def test_what_stays_the_same_in_all_clones_is_told(debian):
    furnish(debian, {"etc/dropbear/dropbear_rsa_host_key": "secret"})
    _done, warnings = scrubbed(debian)
    assert [warning.split()[0] for warning in warnings] == ["dropbear's"]
    furnish(debian, {"var/lib/cloud/seed/nocloud-net/meta-data": "instance-id: golden"})
    assert [warning.split()[0] for warning in scrubbed(debian)[1]] == ["dropbear's", "cloud-init's"]


@needs_root
def test_what_cannot_be_removed_is_told(debian):
    subprocess.run(["chattr", "+i", debian / "etc/machine-id"], check=True)
    try:
        done, warnings = scrubbed(debian)
    finally:
        subprocess.run(["chattr", "-i", debian / "etc/machine-id"], check=True)
    assert "machine_id" not in done and "ssh_host_keys" in done
    assert warnings[0].startswith("machine_id was left as it is: ")


def test_localhost_is_nobodys_old_name(debian):
    (debian / "etc/hostname").write_text("localhost\n")
    (debian / "etc/hosts").write_text("127.0.0.1 localhost localhost.localdomain\n")
    with GuestRoot([str(debian)]) as guest:
        rename(guest, "web-1", "golden", pytest.fail)
    assert (debian / "etc/hosts").read_text() == "127.0.0.1 localhost localhost.localdomain\n"


HOSTILE = {
    "etc leads to the root": lambda root, host: turned(root / "etc", "/"),
    "etc leads out": lambda root, host: turned(root / "etc", host),
    "hostname leads to passwd": lambda root, host: turned(root / "etc/hostname", "/etc/passwd"),
    "hosts leads to the host": lambda root, host: turned(root / "etc/hosts", host / "passwd"),
    "var leads up": lambda root, host: turned(root / "var", "../../.."),
    "var leads out": lambda root, host: turned(root / "var", host),
    "ssh leads out": lambda root, host: turned(root / "etc/ssh", host),
    "cloud leads out": lambda root, host: turned(root / "var/lib/cloud", host),
    "a directory in cloud leads out": lambda root, host: turned(root / "var/lib/cloud/instances/i-1", host),
    "machine-id is a pipe": lambda root, host: piped(root / "etc/machine-id"),
    "hostname is a pipe": lambda root, host: piped(root / "etc/hostname"),
    "hosts is a device": lambda root, host: device(root / "etc/hosts"),
    "systemd leads out": lambda root, host: turned(root / "etc/systemd", host),
}


def turned(path, target):
    subprocess.run(["rm", "-rf", path], check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def piped(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


@needs_root
@pytest.mark.parametrize("layered", [False, True], ids=["directory", "overlay"])
@pytest.mark.parametrize("trap", HOSTILE, ids=lambda trap: trap.replace(" ", "-"))
def test_a_hostile_guest_neither_reaches_the_host_nor_loses_what_is_not_named(debian, tmp_path, trap, layered):
    host = tmp_path / "host"
    furnish(
        host,
        {"passwd": "root", "ssh_host_rsa_key": "the host's", "hostname": "host", "hosts": "127.0.0.1 golden", "instances/x": "x", "machine-id": MACHINE_ID},
    )
    furnish(host, {"lib/cloud/instances/x": "x", "lib/dhcp/a.leases": "x", "data/x": "x", "multi-user.target.wants/x": "x"})
    HOSTILE[trap](debian, host)
    outside = {path: (host / path).read_text() for path in paths(host) if (host / path).is_file()}
    delta = tmp_path / "delta"
    delta.mkdir()
    passwd = (debian / "etc/passwd").read_text() if trap not in ("etc leads to the root", "etc leads out") else None
    warnings = []
    with GuestRoot([str(delta), str(debian)] if layered else [str(debian)]) as guest:
        rename(guest, "web-1", "golden", warnings.append)
        scrub(guest, ITEMS, warnings.append)
        write_seed(guest, "web-1", "i", {"user_data": "x"}, warnings.append)
    assert {path: (host / path).read_text() for path in paths(host) if (host / path).is_file()} == outside
    assert passwd is None or (debian / "etc/passwd").read_text() == passwd
    assert not any("passwd" in path for path in paths(delta))


def test_a_seed_is_what_cloud_init_reads(debian):
    with GuestRoot([str(debian)]) as guest:
        seed = {"user_data": {"packages": ["nginx"]}, "network_config": "version: 2\n", "meta_data": {"rack": 7}}
        assert write_seed(guest, "web", "i-2", seed, pytest.fail)
    place = debian / "var/lib/cloud/seed/nocloud"
    assert json.loads((place / "meta-data").read_text()) == {"instance-id": "i-2", "local-hostname": "web", "rack": 7}
    header, _newline, body = (place / "user-data").read_text().partition("\n")
    assert header == "#cloud-config" and json.loads(body) == {"packages": ["nginx"]}
    assert (place / "network-config").read_text() == "version: 2\n"
    assert [stat.S_IMODE((place / name).stat().st_mode) for name in ("user-data", "meta-data")] == [0o600, 0o644]


def test_stable_addresses_are_the_same_again_and_never_anothers():
    def give(used=(), name="web-1", index=0, lxcpath="/var/lib/lxc"):
        return MacAddresses("stable", lxcpath, lambda: used)(name, index, None)

    first = give()
    assert re.fullmatch("00:16:3e(:[0-9a-f]{2}){3}", first) and give() == first
    assert len({first, give(name="web-2"), give(index=1), give(lxcpath="/srv/lxc"), give(used=[first.upper()])}) == 5
    addresses = MacAddresses("stable", "/var/lib/lxc", lambda: ())
    assert len({addresses(f"web-{n}", 0, None) for n in range(20_000)}) == 20_000


def test_an_address_is_kept_or_left_to_chance_where_that_is_wanted():
    old = "00:16:3e:aa:bb:cc"
    assert MacAddresses("keep", "/p", lambda: [old])("web", 0, old) == old
    assert MacAddresses("keep", "/p", lambda: ())("web", 0, None) is None
    assert MacAddresses("random", "/p", lambda: ())("web", 0, None) is None
    assert MacAddresses("random", "/p", lambda: ())("web", 0, old) not in (None, old)
