# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: lxc_attach
short_description: Run tasks in an LXC container, on this machine or through its LXC host
version_added: 0.1.0
description:
  - Runs commands in a running LXC container with C(lxc-attach), and moves files through its standard input and output. The
    container needs neither an SSH server nor an address; busybox is enough for M(ansible.builtin.raw), Python for modules.
  - The container's LXC host is this machine, or any other that P(ansible.builtin.ssh#connection) reaches. Where O(lxc_host) is a
    host of the inventory, Ansible reaches it as that host's own variables say, such as C(ansible_host), C(ansible_port),
    C(ansible_user), C(ansible_ssh_private_key_file) or C(ansible_password). Otherwise O(lxc_host) is an address, and the same
    variables of the container say how to get there.
  - Commands start in the user's home directory with a clean environment, C(PATH), C(HOME), C(USER), C(LOGNAME), C(LANG=C.UTF-8)
    and what the container's C(lxc.environment) says, with umask 022 and without a terminal. Use the keyword C(environment) for more.
author:
  - fleet.lxc contributors (@fleet-lxc)
requirements:
  - LXC 4.0 or later and C(python3) 3.9 or later on the LXC host
  - root there, by login or by O(host_become), but for unprivileged containers of the login user
extends_documentation_fragment:
  - connection_pipelining
options:
  container:
    description:
      - The container's name.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_lxc_attach_container
  lxcpath:
    description:
      - The directory that holds the container.
      - Default is LXC's own on the LXC host, usually C(/var/lib/lxc).
    type: str
    vars:
      - name: ansible_lxc_attach_lxcpath
    env:
      - name: ANSIBLE_LXC_ATTACH_LXCPATH
    ini:
      - section: lxc_attach_connection
        key: lxcpath
  lxc_host:
    description:
      - The machine that the container runs on.
      - V(localhost) is the machine that Ansible runs on, whatever the inventory says about a host of that name.
      - A host of the inventory whose C(ansible_connection) is V(local) is this machine, too.
      - C(ansible_host) of the container is not looked at. It is free to be the container's own address.
    type: str
    default: localhost
    vars:
      - name: ansible_lxc_attach_host
    env:
      - name: ANSIBLE_LXC_ATTACH_HOST
    ini:
      - section: lxc_attach_connection
        key: host
  remote_user:
    description:
      - The user in the container, as its own user database knows it.
      - It is not the login on the LXC host, which is C(ansible_user), the keyword C(remote_user) or C(--user).
    type: str
    default: root
    vars:
      - name: ansible_lxc_attach_user
    env:
      - name: ANSIBLE_LXC_ATTACH_USER
    ini:
      - section: lxc_attach_connection
        key: user
  executable:
    description:
      - C(lxc-attach) on the LXC host, as a name or with its path.
    type: str
    default: lxc-attach
    vars:
      - name: ansible_lxc_attach_executable
    env:
      - name: ANSIBLE_LXC_ATTACH_EXECUTABLE
    ini:
      - section: lxc_attach_connection
        key: executable
  attach_timeout:
    description:
      - How many seconds the container may take to begin a command. A frozen one never begins.
      - It limits neither the command itself nor the SSH connection, which has its own C(ansible_ssh_timeout).
    type: int
    default: 30
    vars:
      - name: ansible_lxc_attach_timeout
    env:
      - name: ANSIBLE_LXC_ATTACH_TIMEOUT
    ini:
      - section: lxc_attach_connection
        key: timeout
  host_become:
    description:
      - Become root on the LXC host before entering the container, if the login there is not root anyway.
      - This leaves the keyword C(become) free for use in the container.
      - Default is C(ansible_become) of the LXC host if the inventory knows that, and otherwise V(false).
    type: bool
    vars:
      - name: ansible_lxc_attach_host_become
    env:
      - name: ANSIBLE_LXC_ATTACH_HOST_BECOME
    ini:
      - section: lxc_attach_connection
        key: host_become
  host_become_method:
    description:
      - The become plugin that O(host_become) uses.
      - Where O(lxc_host) is a host of the inventory, the plugin gets its options from that host's variables, such as
        C(ansible_become_password), C(ansible_become_exe) or C(ansible_sudo_flags). The user is always root.
      - Default is C(ansible_become_method) of such a host, and otherwise V(sudo).
    type: str
    vars:
      - name: ansible_lxc_attach_host_become_method
    env:
      - name: ANSIBLE_LXC_ATTACH_HOST_BECOME_METHOD
    ini:
      - section: lxc_attach_connection
        key: host_become_method
  host_become_exe:
    description:
      - The program that the become plugin runs on the LXC host, if it is not the plugin's own choice.
    type: str
    vars:
      - name: ansible_lxc_attach_host_become_exe
  host_become_flags:
    description:
      - Options for that program. The default of P(ansible.builtin.sudo#become) is C(-H -S -n).
    type: str
    vars:
      - name: ansible_lxc_attach_host_become_flags
  host_become_password:
    description:
      - The password for that program.
      - One password can be given on the way. Where this is set, C(become) in the container has to do without.
    type: str
    vars:
      - name: ansible_lxc_attach_host_become_password
notes:
  - A process that a command leaves in the background does not keep the task waiting, even if it holds its standard output. It is
    cut off from that output, though, so redirect it.
  - Commands of a user other than root begin with C(runuser), or C(su) where there is none. The former makes no login session.
  - A file is moved in pieces of a few MiB, each a command of its own, straight into its place. Nothing of it is kept on the LXC host.
seealso:
  - plugin: ansible.builtin.ssh
    plugin_type: connection
  - module: fleet.lxc.lxc_clone
"""

EXAMPLES = r"""
- name: Clones of this machine as hosts of the plays to come
  ansible.builtin.add_host:
    name: "{{ item }}"
    groups: web
    ansible_connection: fleet.lxc.lxc_attach
    ansible_lxc_attach_lxcpath: /srv/lxc
  loop: [web-1, web-2]

- name: Clones of the host that this play manages, which is reached as its own variables say, and then by sudo
  ansible.builtin.add_host:
    name: "{{ item }}"
    groups: web
    ansible_connection: fleet.lxc.lxc_attach
    ansible_lxc_attach_host: "{{ inventory_hostname }}"
    ansible_lxc_attach_host_become: true
  loop: [web-1, web-2]

- name: A container on a host that is not in the inventory
  ansible.builtin.add_host:
    name: web-1
    ansible_connection: fleet.lxc.lxc_attach
    ansible_lxc_attach_host: lxc1.example.net
    ansible_user: root
    ansible_port: 2222

- name: Works without Python in the container
  ansible.builtin.raw: uname -a
  delegate_to: web-1
"""

import copy
import os
import re
import shlex
import sys
import uuid

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_native, to_text
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.connection import ConnectionBase
from ansible.plugins.loader import become_loader, connection_loader, get_shell_plugin
from ansible.utils.display import Display

display = Display()

# What a file is moved in, a command for each: small enough for the memory, and large enough for few commands. A whole number of blocks.
PIECE = 4 << 20
BLOCK = 1 << 16
# An exit status of our own for a file that is not there.
MISSING = 66
USER = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")

# What is run in the container, by the user whose name is filled in. The marks on standard error tell that the command began and how it ended;
# without them an exit status might be that of ssh, of sudo or of lxc-attach. A subshell, for the command may say `exit` or `exec`.
# Nothing is run if nobody hears of its beginning: a frozen container gets there when it is thawed, long after the task was given up.
INSIDE = r"""
umask 022
HOME=~{user}; case $HOME in "~"*) HOME=/;; esac
USER={user} LOGNAME={user} LANG=${{LANG:-C.UTF-8}} PATH=${{PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}}
export HOME USER LOGNAME LANG PATH
cd "$HOME" 2>/dev/null || cd /
echo "$1 begin" >&2 || exit
(eval "$2"){stdin}
echo "$1 end $?" >&2
"""
# From root to another user; what this needs is known to the container only.
SWITCH = r"""
if command -v runuser >/dev/null; then exec runuser -u "$1" -- /bin/sh -c "$2" sh "$3" "$4"; fi
exec su -s /bin/sh -c "$2" "$1" sh "$3" "$4"
"""
# What runs lxc-attach on the LXC host, with python3. Whoever waits for the end of its output, as ssh and Ansible do, would wait for each process
# that the command left behind, too: so that output ends here, when the command does. A command that does not begin in time is given up.
# The session is a new one: else `kill 0` in the container would reach us, and its /dev/tty would be the terminal that Ansible was started from.
RELAY = r"""
import os, select, sys, time
token, seconds, command = sys.argv[1].encode(), float(sys.argv[2]), sys.argv[3:]
outputs, actions, writers, said = {}, [], [], b""
for number in 1, 2:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    outputs[reader] = number
    writers.append(writer)
    actions.append((os.POSIX_SPAWN_DUP2, writer, number))
try:  # 13 is SIGPIPE; the module signal takes long to load
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setsid=True, setsigdef=[13])
except OSError as error:
    raise SystemExit(f"{command[0]}: {error.strerror}")
for writer in writers:
    os.close(writer)
end, poll = os.pidfd_open(child), select.poll()
for reader in (*outputs, end):
    poll.register(reader, select.POLLIN)
deadline, begun, ended = time.monotonic() + seconds, False, False
try:
    while not ended:
        ready = [reader for reader, events in poll.poll(None if begun else max(0, deadline - time.monotonic()) * 1000)]
        if not ready:
            raise SystemExit(f"{command[0]} did not begin the command within {seconds:g} seconds")
        ended = end in ready
        for reader in list(outputs) if ended else [reader for reader in ready if reader != end]:
            try:
                chunk = os.read(reader, 1 << 20)
            except BlockingIOError:
                continue
            if not chunk:
                poll.unregister(reader)
                del outputs[reader]
            if not begun and outputs.get(reader) == 2:
                said += chunk
                begun = token in said
            while chunk:
                chunk = chunk[os.write(outputs[reader], chunk):]
finally:
    if not ended:
        os.killpg(child, 9)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
"""


class Connection(ConnectionBase):
    """lxc-attach, run by Ansible's own connection to the LXC host: its local one or ssh."""

    transport = "fleet.lxc.lxc_attach"
    has_pipelining = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._variables = self._of_host = {}
        self._task_keys = self._host = self._host_become = None

    def _resolve_option_variables(self, variables, templar):
        """What Ansible gives to set_options. All that it knows is seen here, and here only: the LXC host's own variables, too."""
        resolved = super()._resolve_option_variables(variables, templar)
        self.set_options(var_options=resolved)
        name = self.get_option("lxc_host")
        # Not asked of hostvars, which makes a localhost of 127.0.0.1 that nobody has put into the inventory.
        if name != "localhost" and name in variables.get("groups", {}).get("all", ()):
            self._variables = self._of_host = variables["hostvars"][name]
        else:
            names = C.config.get_plugin_vars("connection", connection_loader.get("ansible.builtin.ssh", class_only=True)._load_name)
            self._variables, self._of_host = {variable: templar.template(variables[variable]) for variable in names if variable in variables}, {}
        return resolved

    def set_options(self, task_keys=None, var_options=None, direct=None):
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        self._task_keys, self._host, self._host_become = task_keys, None, None
        if not USER.fullmatch(self.get_option("remote_user")):
            raise AnsibleError(f"ansible_lxc_attach_user: {self.get_option('remote_user')!r} is not the name of a user")

    def _connect(self):
        if self._host is None:
            self._host = self._connection_to_host()
            self._host_become = self._become_on_host()
        return self

    def _connection_to_host(self):
        name = self.get_option("lxc_host")
        kind = "local" if name == "localhost" else self._of_host.get("ansible_connection", "ssh").removeprefix("ansible.builtin.")
        if kind not in ("local", "ssh"):
            raise AnsibleError(f"the LXC host '{name}' has ansible_connection={kind}, and containers are reached by 'local' and 'ssh' only")
        # A copy, for the local connection notes in it who we are on this machine.
        host = connection_loader.get(f"ansible.builtin.{kind}", copy.copy(self._play_context), shell=get_shell_plugin("sh", "/bin/sh"))
        # Never a terminal: it would change what goes through it.
        direct = {"pipelining": True}
        if kind == "ssh":
            direct["use_tty"] = False
            if not self._of_host:
                direct["host"] = name
        host.set_options(task_keys=self._task_keys, var_options=known_to("connection", host, self._variables), direct=direct)
        return host

    def _become_on_host(self):
        wanted = self.get_option("host_become")
        root = os.geteuid() == 0 if self._host.transport == "local" else self._host.get_option("remote_user") == "root"
        if root or not boolean(self._of_host.get("ansible_become", False) if wanted is None else wanted):
            return None
        method = self.get_option("host_become_method") or self._of_host.get("ansible_become_method", "sudo")
        become = become_loader.get(method)
        if become is None:
            raise AnsibleError(f"ansible_lxc_attach_host_become_method: there is no become plugin '{method}'")
        given = {"become_exe": "host_become_exe", "become_flags": "host_become_flags", "become_pass": "host_become_password"}
        direct = {theirs: self.get_option(ours) for theirs, ours in given.items() if self.get_option(ours) is not None}
        become.set_options(var_options=known_to("become", become, self._of_host), direct={"become_user": "root", **direct})
        return become

    def exec_command(self, cmd, in_data=None, sudoable=True):
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        display.vvv(f"EXEC {to_text(cmd)}", host=self.get_option("container"))
        return self._in_container(to_text(cmd, errors="surrogate_or_strict"), in_data, sudoable)

    def put_file(self, in_path, out_path):
        super().put_file(in_path, out_path)
        display.vvv(f"PUT {to_text(in_path)} TO {to_text(out_path)}", host=self.get_option("container"))
        try:
            with open(to_bytes(in_path, errors="surrogate_or_strict"), "rb") as source:
                self._put(source, out_path)
        except FileNotFoundError as error:
            raise AnsibleFileNotFound(f"file or module does not exist: {to_native(in_path)}") from error
        except OSError as error:
            raise AnsibleError(f"failed to transfer file to {to_native(out_path)}: {to_native(in_path)}: {error.strerror}") from error

    def fetch_file(self, in_path, out_path):
        super().fetch_file(in_path, out_path)
        display.vvv(f"FETCH {to_text(in_path)} TO {to_text(out_path)}", host=self.get_option("container"))
        try:
            with open(to_bytes(out_path, errors="surrogate_or_strict"), "wb") as target:
                self._fetch(in_path, target)
        except OSError as error:
            raise AnsibleError(f"failed to transfer file from {to_native(in_path)}: {to_native(out_path)}: {error.strerror}") from error

    def reset(self):
        self._connect()
        self._host.reset()

    def close(self):
        if self._host is not None:
            self._host.close()
        self._connected = False

    def _put(self, source, out_path):
        """Each piece goes to its offset and ends the file there: the same, however often ssh tries again."""
        target, sent, last = shlex.quote(out_path), 0, False
        while not last:
            piece = source.read(PIECE)
            last = len(piece) < PIECE
            command = f"dd of={target} bs={BLOCK} seek={sent // BLOCK}"
            status, size, error = self._in_container(f"{command} && wc -c < {target}" if last else command, piece)
            if status:
                raise AnsibleError(f"failed to transfer file to {to_native(out_path)}: {to_native(error).strip()}")
            sent += len(piece)
        if int(size) != sent:
            raise AnsibleError(f"failed to transfer file to {to_native(out_path)}: {int(size)} of {sent} bytes arrived")

    def _fetch(self, in_path, target):
        """As much as the file held when its first piece was read: one that grows, like a log, is no error."""
        source, got, size = shlex.quote(in_path), 0, None
        command = f"[ -e {source} ] || exit {MISSING}; wc -c < {source} && head -c {PIECE} < {source}"
        while size is None or got < size:
            status, piece, error = self._in_container(command)
            if status == MISSING and size is None:
                raise AnsibleFileNotFound(f"file or module does not exist: {to_native(in_path)}")
            if status:
                raise AnsibleError(f"failed to transfer file from {to_native(in_path)}: {to_native(error).strip()}")
            if size is None:
                number, _newline, piece = piece.partition(b"\n")
                size = int(number)
            piece = piece[: size - got]
            if len(piece) < min(PIECE, size - got):
                raise AnsibleError(f"failed to transfer file from {to_native(in_path)}: it ended at {got + len(piece)} of {size} bytes")
            target.write(piece)
            got += len(piece)
            command = f"dd if={source} bs={BLOCK} skip={got // BLOCK} count={PIECE // BLOCK}"

    def _in_container(self, command, in_data=None, sudoable=False):
        """Run a shell's command in the container: (exit status, standard output, standard error)."""
        user, token = self.get_option("remote_user"), f"fleet.lxc-{uuid.uuid4().hex}"
        become = self.become if sudoable and self.become and self.become.expect_prompt() else None
        inside = INSIDE.format(user=user, stdin="" if in_data or become else " </dev/null")
        shell = ["/bin/sh", "-c", inside, "sh", token, command]
        if user != "root":
            shell = ["/bin/sh", "-c", SWITCH, "sh", user, inside, token, command]
        attach = [self.get_option("executable"), *self._which(), "--clear-env", "--", *shell]
        _status, out, said = self._on_host(attach, token, in_data, become)
        begin, end = f"{token} begin\n".encode(), re.search(rf"{token} end (\d+)\n".encode(), said)
        if not end:
            raise self._failure(begin in said, said.replace(begin, b""))
        return int(end[1]), out, (said[: end.start()] + said[end.end() :]).replace(begin, b"")

    def _on_host(self, argv, token="", in_data=None, become=None):
        """Run a program on the LXC host, as root if that was asked for. ``become`` is a plugin that asks for a password on the way."""
        python = sys.executable if self._host.transport == "local" else "python3"
        command = shlex.join([python, "-IS", "-c", RELAY, token, str(self.get_option("attach_timeout")), *argv])
        if self._host_become:
            command = self._host_become.build_become_command(command, self._host._shell)
            if self._host_become.expect_prompt():
                become = self._host_become
        self._host.set_become_plugin(become)
        self._host._play_context.no_log = self._play_context.no_log
        status, out, said = self._host.exec_command(command, in_data=in_data, sudoable=become is not None)
        if self._host_become:
            # Where no password was asked for, nobody has taken that line away.
            before, success, after = out.partition(to_bytes(self._host_become.success) + b"\n")
            out = after if success else before
        return status, out, said

    def _which(self):
        """LXC's options for the container."""
        lxcpath = self.get_option("lxcpath")
        return [f"--name={self.get_option('container')}", *([f"--lxcpath={lxcpath}"] if lxcpath else [])]

    def _failure(self, begun, said):
        """Why a command did not come to its end, and the mend."""
        name, host = self.get_option("container"), self.get_option("lxc_host")
        container = f"container '{name}' ({self.get_option('lxcpath') or 'in the default lxcpath'}, on {host})"
        which = shlex.join(self._which())
        said = to_native(said).strip()
        _status, out, error = self._on_host([os.path.join(os.path.dirname(self.get_option("executable")), "lxc-info"), *self._which(), "-sH"])
        state = to_native(out).strip()
        if b"doesn't exist" in out + error:
            why = "there is no such container: see ansible_lxc_attach_container, ansible_lxc_attach_lxcpath and ansible_lxc_attach_host"
        elif state == "STOPPED":
            why = "it stopped while a command ran in it" if begun else f"it is not running: lxc-start {which}"
        elif state == "FROZEN":
            why = f"it is frozen: lxc-unfreeze {which}"
        elif begun:
            why = f"its shell was killed while a command ran in it: {said}".rstrip(": ")
        else:
            why = f"it cannot be entered: {said}"
        return AnsibleConnectionFailure(f"{container}: {why}")


def known_to(kind, plugin, variables):
    """Those of the variables that a plugin has options for."""
    return {name: variables[name] for name in C.config.get_plugin_vars(kind, plugin._load_name) if name in variables}
