# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The connection plugin, into a busybox container and into one with Python: on this machine, and through ssh to an unprivileged login.

The ssh server, its user and its sudoers live in a Machine, whose containers this machine does not see. The ssh client is run in there, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
import tracemalloc
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader
from ansible.template import Templar
from ansible_collections.fleet.lxc.plugins.connection import lxc_attach
from checkout import run
from conftest import NETWORKLESS, Fleet, sh
from machine import Machine

PIECE = lxc_attach.PIECE
EVERY_BYTE = bytes(range(256))
NAMES = ["plain", "-dash", "two words", 'quo\'te "s"', "汉语-['foo bar'].txt", "new\nline", "$HOME `id` \\", "not-utf8-\udcff\udc80"]
PASSWORD = "open sesame"
HASH = "$6$fleetlxc$FuNIfFilPjfZE6YTvv1Ne2wuezLV/9b7RVgiZwVUyNcY8gs8/zwpDOswDRUFRHR.5TP14uYgcUnfOhBDq/jxz0"


@dataclass
class Way:
    """A way to the containers of a fleet: the variables that lead there, and a command's words to run it on their LXC host."""

    fleet: Fleet
    variables: dict
    host: dict = field(default_factory=dict)
    machine: Machine | None = None

    @property
    def command(self):
        return self.machine.command() if self.machine else []

    def sh(self, *argv):
        return sh([*self.command, *argv])

    def lxc(self, command, name, *arguments):
        return self.sh(f"lxc-{command}", "-P", self.fleet.lxcpath, "-n", name, *arguments)

    def connection(self, name="box", **variables):
        """The plugin as Ansible sets it up for a task on that container."""
        variables = {"inventory_hostname": name, **self.variables, **variables}
        made = connection_loader.get("fleet.lxc.lxc_attach", PlayContext())
        made.set_options(var_options=made._resolve_option_variables(variables, Templar(loader=DataLoader(), variables=variables)))
        return made

    def inventory(self, directory, hosts, **more):
        """An inventory file of these hosts with their variables, all reached this way; ``more`` are other hosts."""
        path = directory / "inventory.yml"
        common = {"ansible_connection": "fleet.lxc.lxc_attach", "ansible_python_interpreter": "/usr/bin/python3", **self.variables}
        path.write_text(json.dumps({"all": {"hosts": {**more, **{name: {**common, **variables} for name, variables in hosts.items()}}}}))
        return path


def make_containers(fleet):
    """``box``: busybox, and ``full``: this machine's programs, Python among them. Both have users that this machine has not."""
    fleet.base(name="box", template="busybox", state="present", config={**NETWORKLESS, "lxc.environment": "GREETING=hello"})
    full = Path(fleet.path("full", "rootfs"))
    for directory in ("usr", "etc", "proc", "sys", "dev", "run", "root", "home", "var/tmp", "tmp"):
        (full / directory).mkdir(parents=True)
    (full / "tmp").chmod(0o1777)
    for link in ("bin", "sbin", "lib", "lib64"):
        (full / link).symlink_to(f"usr/{link}")
    for name in ("pam.d", "security"):
        shutil.copytree(f"/etc/{name}", full / "etc" / name)
    for name in ("login.defs", "ld.so.cache", "nsswitch.conf"):
        shutil.copy(f"/etc/{name}", full / "etc")
    (full / "etc/sudoers").write_text("deploy ALL=(ALL) ALL\nroot ALL=(ALL) ALL\n")
    config = ["lxc.include = /usr/share/lxc/config/common.conf", f"lxc.rootfs.path = dir:{full}", "lxc.uts.name = full", "lxc.net.0.type = empty"]
    config += ["lxc.mount.entry = /usr usr none bind,ro 0 0", "lxc.init.cmd = /usr/bin/sleep infinity", ""]
    Path(fleet.path("full", "config")).write_text("\n".join(config))
    for name in ("box", "full"):
        etc = Path(fleet.path(name, "rootfs", "etc"))
        (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\ndeploy:x:4242:4242::/home/deploy:/bin/sh\nwww-data:x:33:33::/home:/usr/sbin/nologin\n")
        (etc / "group").write_text("root:x:0:\ndeploy:x:4242:\nsites:x:4300:deploy\nwww-data:x:33:\n")
        (etc / "shadow").write_text(f"root:*:19000::::::\ndeploy:{HASH}:19000::::::\nwww-data:*:19000::::::\n")
        (etc / "shadow").chmod(0o600)
        home = Path(fleet.path(name, "rootfs", "home", "deploy"))
        home.mkdir()
        os.chown(home, 4242, 4242)


@contextlib.contextmanager
def this_machine(fleet, _directory):
    yield Way(fleet, {"ansible_lxc_attach_lxcpath": fleet.lxcpath})


@contextlib.contextmanager
def through_ssh(fleet, directory):
    """An ssh server in a network of its own, with an unprivileged user who may become root by sudo without a password."""
    machine, user = Machine(directory), f"fl{uuid.uuid4().hex[:8]}"
    server = None
    try:
        machine.sh("ip link set lo up; mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/sshd /run/ssh")
        for key in ("host", "user"):
            sh(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)])
        machine.sh(f"cp {directory}/host {directory}/user.pub /run/ssh; useradd --create-home --home-dir /run/home --shell /bin/sh {user}")
        # sudo complains of a host whose own name means nothing.
        machine.sh("getent hosts $(hostname) >/dev/null || echo 127.0.1.1 $(hostname) >>/etc/hosts")
        machine.sh(f"echo '{user}:{PASSWORD}' | chpasswd; echo '{user} ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/{user}; chmod 440 /etc/sudoers.d/{user}")
        options = {"Port": 2222, "ListenAddress": "127.0.0.1", "HostKey": "/run/ssh/host", "AuthorizedKeysFile": "/run/ssh/user.pub"}
        options |= {"UsePAM": "no", "PidFile": "none", "StrictModes": "no", "Subsystem": "sftp internal-sftp"}
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        server = subprocess.Popen(machine.command("/usr/sbin/sshd", "-D", "-f", "/dev/null", *words))
        known = directory / "known_hosts"
        known.write_text(f"[127.0.0.1]:2222 {(directory / 'host.pub').read_text()}")
        client = directory / "ssh"
        client.write_text(f'#!/bin/sh\nexec {shlex.join(machine.command("ssh"))} "$@"\n')
        client.chmod(0o755)
        host = {"ansible_user": user, "ansible_port": 2222, "ansible_ssh_private_key_file": str(directory / "user"), "ansible_ssh_executable": str(client)}
        # The client's masters are killed at the end, and leave their sockets there.
        host["ansible_control_path_dir"] = str(directory / "cp")
        host["ansible_ssh_common_args"] = f"-o UserKnownHostsFile={known}"
        variables = {**host, "ansible_lxc_attach_host": "127.0.0.1", "ansible_lxc_attach_host_become": True, "ansible_lxc_attach_lxcpath": fleet.lxcpath}
        yield Way(fleet, variables, {**host, "ansible_host": "127.0.0.1"}, machine)
    finally:
        end_all(machine, server)


def end_all(machine, server):
    """Whatever lives in a machine's network, such as the ssh client's master, and the machine."""
    ours = os.stat(f"/proc/{machine.holder.pid}/ns/net").st_ino
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(process.name) != machine.holder.pid and os.stat(process / "ns/net").st_ino == ours:
                os.kill(int(process.name), signal.SIGKILL)
    if server:
        server.wait()
    machine.end()


WAYS = {"here": this_machine, "ssh": through_ssh}


@pytest.fixture(scope="module", params=WAYS)
def way(request, tmp_path_factory):
    directory = Path("/var/tmp") / f"fleet-{uuid.uuid4().hex[:8]}"
    directory.mkdir(mode=0o755)
    fleet = Fleet(directory)
    try:
        make_containers(fleet)
        with WAYS[request.param](fleet, tmp_path_factory.mktemp(request.param)) as made:
            for name in ("box", "full"):
                made.lxc("start", name)
            try:
                yield made
            finally:
                for name in ("box", "full"):
                    made.lxc("stop", name, "-k")
    finally:
        fleet.empty()
        directory.rmdir()


def inside(way, connection, path):
    """A file of the container, seen from its host."""
    return Path(way.fleet.path(connection.get_option("container"), "rootfs", path))


@pytest.fixture(params=["box", "full"])
def connection(way, request):
    return way.connection(request.param)


def test_tells_exit_statuses_and_keeps_both_outputs_apart_byte_by_byte(connection):
    # 255 is what ssh itself ends with, when there is no connection.
    for status in (0, 1, 66, 127, 254, 255):
        assert connection.exec_command(f"exit {status}") == (status, b"", b"")
    assert connection.exec_command("sh -c 'kill -9 $$'")[0] == 128 + signal.SIGKILL
    assert connection.exec_command("exec false")[0] == 1
    assert connection.exec_command("no-such-program")[0] == 127
    assert connection.exec_command("cat; echo good; printf bad >&2", in_data=EVERY_BYTE) == (0, EVERY_BYTE + b"good\n", b"bad")
    assert connection.exec_command(f"echo {shlex.quote('汉语 ' + os.fsdecode(bytes([255])))}")[1] == "汉语 ".encode() + b"\xff\n"


def test_a_command_has_no_terminal_and_no_input_but_what_is_given(connection):
    for number in range(3):
        assert connection.exec_command(f"test -t {number}")[0] == 1
    assert connection.exec_command("cat") == (0, b"", b"")
    assert connection.exec_command("yes | head -n 1") == (0, b"y\n", b"")
    # A command that does not read what it is given ends all the same.
    assert connection.exec_command("true", in_data=bytes(1 << 20))[0] == 0


def test_nothing_of_the_caller_gets_into_the_environment(way, monkeypatch):
    monkeypatch.setenv("SECRET", "of the controller")
    monkeypatch.chdir("/usr/share")
    before = os.umask(0o077)
    try:
        status, out, _error = way.connection("box").exec_command("env; echo umask=`umask`; echo pwd=`pwd`")
    finally:
        os.umask(before)
    found = dict(line.split("=", 1) for line in out.decode().splitlines())
    for ours in ("SHLVL", "OLDPWD", "PWD", "_"):
        found.pop(ours, None)
    wanted = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8", "container": "lxc", "GREETING": "hello", "umask": "0022", "pwd": "/root"}
    assert (status, found) == (0, {**wanted, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})


@pytest.mark.parametrize("left", ["sleep 1000", "yes"])
def test_a_process_left_behind_does_not_keep_the_task_waiting(connection, left):
    begin = time.monotonic()
    status, _out, error = connection.exec_command(f"{left} & echo $! >&2; echo started")
    assert time.monotonic() - begin < 8
    assert (status, error.strip().isdigit()) == (0, True)
    connection.exec_command(f"kill {error.decode()}")


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_files_of_all_sizes_go_there_and_back(way, connection, tmp_path, size):
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(random.Random(size).randbytes(size))
    # What was there before is longer, and gone.
    connection.exec_command(f"dd if=/dev/zero of=/root/file bs={PIECE} count=3")
    connection.put_file(str(there), "/root/file")
    assert inside(way, connection, "root/file").read_bytes() == there.read_bytes()
    connection.fetch_file("/root/file", str(back))
    assert back.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_files_of_all_names_go_there_and_back(way, connection, tmp_path, name):
    there, back = tmp_path / name, tmp_path / f"{name}.back"
    there.write_bytes(EVERY_BYTE)
    for place in (name, f"/var/{name}"):
        connection.put_file(str(there), place)
        assert inside(way, connection, f"root/{name}" if place == name else place[1:]).read_bytes() == EVERY_BYTE
        connection.fetch_file(place, str(back))
        assert back.read_bytes() == EVERY_BYTE


def test_a_large_file_takes_little_memory(way, tmp_path):
    connection = way.connection("full")
    there, back = tmp_path / "there", tmp_path / "back"
    with open(there, "wb") as file:
        # Compressed on the way by ssh, which takes longest with what it cannot compress.
        for number in range(100):
            file.write(b"%d\n" % number * (1 << 20))
    assert there.stat().st_size > 100 << 20
    tracemalloc.start()
    try:
        connection.put_file(str(there), "/root/large")
        connection.fetch_file("/root/large", str(back))
        assert tracemalloc.get_traced_memory()[1] < 10 * PIECE
    finally:
        tracemalloc.stop()
        connection.exec_command("rm /root/large")
    sh(["cmp", str(there), str(back)])


def test_a_piece_that_ssh_sends_again_does_no_harm(way, tmp_path, monkeypatch):
    connection, there = way.connection("box"), tmp_path / "there"
    there.write_bytes(random.randbytes(2 * PIECE + 1000))
    once = connection._in_container

    def twice(command, piece):
        once(command, piece[: len(piece) // 2])
        once(command, piece)
        return once(command, piece)

    monkeypatch.setattr(connection, "_in_container", twice)
    connection.put_file(str(there), "/root/file")
    monkeypatch.undo()
    assert inside(way, connection, "root/file").read_bytes() == there.read_bytes()


def test_a_transfer_that_falls_short_is_an_error(way, tmp_path, monkeypatch):
    connection, local = way.connection("box"), tmp_path / "local"
    local.write_bytes(bytes(PIECE + 1000))
    once = connection._in_container
    monkeypatch.setattr(connection, "_in_container", lambda command, piece: once(command, piece[:-1]))
    with pytest.raises(AnsibleError, match=f"/root/file: {PIECE + 999} of {PIECE + 1000} bytes arrived"):
        connection.put_file(str(local), "/root/file")
    monkeypatch.setattr(connection, "_in_container", lambda command: [once(command), once(": > /root/file")][0])
    with pytest.raises(AnsibleError, match=f"/root/file: it ended at {PIECE} of {PIECE + 999} bytes"):
        connection.fetch_file("/root/file", str(local))


def test_what_cannot_be_moved_is_named(connection, tmp_path):
    local = tmp_path / "local"
    local.write_bytes(b"x")
    with pytest.raises(AnsibleFileNotFound, match="file or module does not exist: /no/such/file"):
        connection.put_file("/no/such/file", "/tmp/file")
    with pytest.raises(AnsibleError, match=f"failed to transfer file to /tmp/file: {tmp_path}: Is a directory"):
        connection.put_file(str(tmp_path), "/tmp/file")
    for target, reason in {"/root": "Is a directory", "/no/such/place": "No such file", "/proc/version": "", "/dev/full": "No space left"}.items():
        with pytest.raises(AnsibleError, match=f"(?s)failed to transfer file to {target}: .*{reason}"):
            connection.put_file(str(local), target)
    with pytest.raises(AnsibleFileNotFound, match="file or module does not exist: /no/such/file"):
        connection.fetch_file("/no/such/file", str(local))
    with pytest.raises(AnsibleError, match="failed to transfer file from /root: "):
        connection.fetch_file("/root", str(local))
    with pytest.raises(AnsibleError, match="failed to transfer file from /root/x: .*No such file") as caught:
        connection.exec_command("touch /root/x")
        connection.fetch_file("/root/x", "/no/such/place/x")
    assert not isinstance(caught.value, AnsibleConnectionFailure)


def test_a_user_is_the_containers_own(way, tmp_path):
    local = tmp_path / "local"
    local.write_bytes(b"hello")
    for name in ("box", "full"):
        connection = way.connection(name, ansible_lxc_attach_user="deploy")
        assert connection.exec_command("id -u; id -un; id -G; echo $HOME $USER $LOGNAME; pwd; exit 3") == (
            3,
            b"4242\ndeploy\n4242 4300\n/home/deploy deploy deploy\n/home/deploy\n",
            b"",
        )
        connection.put_file(str(local), "file")
        assert os.stat(way.fleet.path(name, "rootfs/home/deploy/file")).st_uid == 4242
        assert connection.exec_command("cat", in_data=EVERY_BYTE) == (0, EVERY_BYTE, b"")
        # Its shell is no matter, and this machine's users neither.
        assert way.connection(name, ansible_lxc_attach_user="www-data").exec_command("id -u")[1] == b"33\n"
        with pytest.raises(AnsibleConnectionFailure, match=f"container '{name}'.* cannot be entered: .*games"):
            way.connection(name, ansible_lxc_attach_user="games").exec_command("id")
    with pytest.raises(AnsibleError, match="ansible_lxc_attach_user: 'a; reboot' is not the name of a user"):
        way.connection("box", ansible_lxc_attach_user="a; reboot")


def test_a_container_that_cannot_be_entered_is_named_with_the_mend(way):
    path = way.fleet.lxcpath
    host = way.variables.get("ansible_lxc_attach_host", "localhost")
    with pytest.raises(AnsibleConnectionFailure, match=f"container 'nobody' .{path}, on {host}.: there is no such container: see ansible_lxc_attach_container"):
        way.connection("nobody").exec_command("true")
    connection = way.connection("box", ansible_lxc_attach_timeout=1)
    with pytest.raises(AnsibleConnectionFailure, match="container 'box' .*cannot be entered: no-such-program: No such file"):
        way.connection("box", ansible_lxc_attach_executable="no-such-program").exec_command("true")
    way.lxc("stop", "box", "-k")
    try:
        with pytest.raises(AnsibleConnectionFailure, match=f"container 'box' .*: it is not running: lxc-start --name=box --lxcpath={path}"):
            connection.exec_command("true")
    finally:
        way.lxc("start", "box")
    way.lxc("freeze", "box")
    try:
        with pytest.raises(AnsibleConnectionFailure, match=f"container 'box' .*: it is frozen: lxc-unfreeze --name=box --lxcpath={path}"):
            connection.exec_command("touch /root/late")
    finally:
        way.lxc("unfreeze", "box")
    time.sleep(0.5)
    assert connection.exec_command("ls /root/late")[0] != 0


def test_a_command_whose_shell_is_killed_is_no_failed_command(connection):
    # Whatever a container's process does to its process group and terminal, they are not ours.
    with pytest.raises(AnsibleConnectionFailure, match="container .*: its shell was killed while a command ran in it"):
        connection.exec_command("kill 0; sleep 100")
    status, out, _error = connection.exec_command("cat /proc/$$/stat; true < /dev/tty")
    assert status and out.split()[6] == b"0"


def test_a_container_never_sees_the_terminal_of_the_caller(way, tmp_path):
    ad_hoc = ["ansible", "full", "-i", str(way.inventory(tmp_path, {"full": {}})), "-m", "raw", "-a", "cat /proc/self/stat; true </dev/tty || echo none"]
    said = run("script", "--quiet", "--return", "--command", shlex.join(ad_hoc), "/dev/null")
    assert "none" in said and re.search(r"\d+ \(cat\) R( \d+){3} 0 ", said), said


TASKS = """
- name: Text there and back
  ansible.builtin.raw: echo 汉语
  register: said
  failed_when: said.stdout_lines != ['汉语'] or said is not changed
- name: A file to copy
  ansible.builtin.copy: {content: "汉语 of {{ inventory_hostname }}\n", dest: "{{ local }}-{{ inventory_hostname }}-{{ odd }}"}
  delegate_to: localhost
  vars: &here {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
- name: A directory
  ansible.builtin.file: {path: /tmp/汉语, state: directory, mode: "0755"}
- name: Copied
  ansible.builtin.copy: {src: "{{ local }}-{{ inventory_hostname }}-{{ odd }}", dest: "/tmp/汉语/{{ odd }}", mode: "0640"}
- name: Fetched
  ansible.builtin.fetch:
    {src: "/tmp/汉语/{{ odd }}", dest: "{{ local }}-{{ inventory_hostname }}-fetched", flat: true, fail_on_missing: true, validate_checksum: true}
- name: Fetched right
  ansible.builtin.assert:
    that: lookup('file', local ~ '-' ~ inventory_hostname ~ '-fetched') == '汉语 of ' ~ inventory_hostname
- name: Removed
  ansible.builtin.file: {path: /tmp/汉语, state: absent}
- name: Facts
  ansible.builtin.setup:
    gather_subset: [min]
- name: Facts of the container
  ansible.builtin.assert:
    that:
      - ansible_facts.hostname == 'full'
      - ansible_facts.env.HOME == '/root'
      - ansible_host == inventory_hostname
- name: Ping
  ansible.builtin.ping:
- name: A template
  ansible.builtin.template: {src: "{{ local }}.j2", dest: /root/made, mode: "0600"}
- name: The keyword for more
  ansible.builtin.command: printenv COLOUR
  environment: {COLOUR: blue}
  changed_when: false
- name: In the background
  ansible.builtin.command: sleep 1
  async: 20
  poll: 1
  changed_when: false
- name: Another user by su, root not being asked for a password
  ansible.builtin.command: id -un
  become: true
  become_user: deploy
  become_method: ansible.builtin.su
  register: me
  changed_when: false
  failed_when: me.stdout != 'deploy'
- name: A user that root may become by sudo, without a module
  ansible.builtin.raw: id -un
  become: true
  become_user: deploy
  register: me
  changed_when: false
  failed_when: me.stdout_lines != ['deploy']
- name: Root by sudo with a password, from a user of the container
  ansible.builtin.command: id -un
  become: true
  vars: {ansible_lxc_attach_user: deploy, ansible_become_password: open sesame}
  register: me
  changed_when: false
  failed_when: me.stdout != 'root'
- name: The wrong password
  ansible.builtin.command: id -un
  become: true
  vars: {ansible_lxc_attach_user: deploy, ansible_become_password: shut, ansible_local_become_success_timeout: 4}
  register: me
  changed_when: false
  ignore_errors: true
- name: Refused
  ansible.builtin.assert:
    that: me is failed and 'password' in me.msg ~ me.module_stderr | default('')
- name: Anew
  ansible.builtin.meta: reset_connection
- name: There again
  ansible.builtin.wait_for_connection: {timeout: 10}
"""


def play(way, directory, hosts, tasks, others=None):
    """What a playbook says, or one play of these tasks on the hosts."""
    tasks = yaml.safe_load(tasks)
    plays = tasks if "hosts" in tasks[0] else [{"hosts": ":".join(hosts), "gather_facts": False, "tasks": tasks}]
    playbook = directory / "play.yml"
    playbook.write_text(yaml.safe_dump(plays, sort_keys=False))
    return run("ansible-playbook", "-i", way.inventory(directory, hosts, **(others or {})), playbook)


@pytest.mark.parametrize("pipelining", [False, True])
def test_a_play_goes_as_over_any_other_connection(way, tmp_path, pipelining):
    name = f"plain-{uuid.uuid4().hex[:4]}"
    (tmp_path / "files.j2").write_text("{{ ansible_connection }} {{ ansible_lxc_attach_container }}\n")
    variables = {"ansible_lxc_attach_container": "full", "ansible_pipelining": pipelining, "odd": "汉语-['foo bar'].txt"}
    hosts = {name: {**variables, "local": str(tmp_path / "files")}}
    said = play(way, tmp_path, hosts, TASKS)
    assert "failed=0" in said and "unreachable=0" in said
    assert Path(way.fleet.path("full", "rootfs/root/made")).read_text() == "fleet.lxc.lxc_attach full\n"


def test_the_variables_of_the_connection_are_not_in_the_output(way, tmp_path):
    said = run("ansible", "full", "-i", way.inventory(tmp_path, {"full": {}}), "-m", "ansible.builtin.set_fact", "-a", "testing=value", "-v")
    assert "testing" in said and "ansible_host" not in said and "lxc_attach_host" not in said


ADDED = """
- hosts: lxc-host
  gather_facts: false
  tasks:
    - name: The container is a host from now on
      ansible.builtin.add_host:
        name: web-1
        groups: web
        ansible_connection: fleet.lxc.lxc_attach
        ansible_lxc_attach_container: full
        ansible_lxc_attach_lxcpath: "{{ path }}"
        ansible_lxc_attach_host: "{{ inventory_hostname }}"
        ansible_lxc_attach_host_become: true
        ansible_python_interpreter: /usr/bin/python3
      changed_when: false
    - name: And can be delegated to
      ansible.builtin.command: uname -n
      delegate_to: web-1
      register: name
      changed_when: false
      failed_when: name.stdout != 'full'
- hosts: web
  tasks:
    - name: It is reached as its LXC host is
      ansible.builtin.assert:
        that: ansible_facts.hostname == 'full'
"""


def test_a_container_is_reached_as_its_lxc_host_is(way, tmp_path):
    host = {"path": way.fleet.lxcpath, **(way.host or {"ansible_connection": "local"})}
    said = play(way, tmp_path, {}, ADDED, {"lxc-host": host})
    assert "failed=0" in said and "unreachable=0" in said


def test_one_password_is_given_on_the_way(way, tmp_path):
    if not way.host:
        pytest.skip("root needs no password to become root")
    rule = f"/etc/sudoers.d/{way.variables['ansible_user']}"
    before = way.sh("cat", rule)
    way.sh("sh", "-c", f"echo '{way.variables['ansible_user']} ALL=(root) ALL' >{rule}")
    try:
        there, back = tmp_path / "there", tmp_path / "back"
        there.write_bytes(EVERY_BYTE * 1000)
        # From the container's variables, and from those of its LXC host.
        own = {**way.variables, "ansible_lxc_attach_host_become_password": PASSWORD}
        of_host = {"inventory_hostname": "box", "ansible_lxc_attach_lxcpath": way.fleet.lxcpath, "ansible_lxc_attach_host": "h"}
        of_host["groups"] = {"all": ["h"]}
        of_host["hostvars"] = {"h": {"inventory_hostname": "h", **way.host, "ansible_become": True, "ansible_become_password": PASSWORD}}
        for variables in (own, of_host):
            connection = Way(way.fleet, variables).connection("box")
            assert connection.exec_command("cat; id -u; echo bad >&2; exit 5", in_data=EVERY_BYTE) == (5, EVERY_BYTE + b"0\n", b"bad\n")
            connection.put_file(str(there), "/root/file")
            connection.fetch_file("/root/file", str(back))
            assert back.read_bytes() == there.read_bytes()
        with pytest.raises(AnsibleConnectionFailure, match="container 'box' .*cannot be entered: .*password is required"):
            way.connection("box").exec_command("true")
        with pytest.raises(AnsibleError, match="Incorrect sudo password"):
            way.connection("box", ansible_lxc_attach_host_become_password="shut").exec_command("true")
    finally:
        way.sh("sh", "-c", f"echo '{before.strip()}' >{rule}")


def test_root_need_not_become_root(way):
    if not way.host:
        assert way.connection("box", ansible_lxc_attach_host_become=True, ansible_lxc_attach_host_become_exe="/no/sudo").exec_command("true")[0] == 0
    connection = way.connection("box", ansible_lxc_attach_host_become=True, ansible_user="root")
    with contextlib.suppress(AnsibleConnectionFailure):  # root may not log in here
        connection.exec_command("true")
    assert connection._host_become is None


def test_an_lxc_host_that_cannot_be_reached_is_named(way):
    if not way.host:
        pytest.skip("this machine is always there")
    with pytest.raises(AnsibleConnectionFailure, match="connect to host 127.0.0.1 port 2223"):
        way.connection("box", ansible_port=2223).exec_command("true")
    with pytest.raises(AnsibleConnectionFailure, match="container 'box' .*cannot be entered|no such container"):
        way.connection("box", ansible_lxc_attach_host_become=False).exec_command("true")
    hostvars = {"groups": {"all": ["h"]}, "hostvars": {"h": {"ansible_connection": "winrm"}}}
    with pytest.raises(AnsibleError, match="the LXC host 'h' has ansible_connection=winrm, and containers are reached by 'local' and 'ssh' only"):
        way.connection("box", ansible_lxc_attach_host="h", **hostvars).exec_command("true")
    with pytest.raises(AnsibleError, match="there is no become plugin 'magic'"):
        way.connection("box", ansible_lxc_attach_host_become_method="magic").exec_command("true")
