# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one error that an operator sees: what was refused, on which container, why, and the mend.

Private to the collection fleet.lxc.
"""

from __future__ import annotations

INVALID = "invalid"  # the options contradict themselves or the rules
MISSING = "missing"  # something that must exist does not
CONFLICT = "conflict"  # what exists is not ours, or not what was asked for
BUSY = "busy"  # something runs, is locked or is depended on
UNSUPPORTED = "unsupported"  # the store, the kernel or LXC cannot do it
RESOURCES = "resources"  # no space, no rights, no tool
BROKEN = "broken"  # ours, once complete, damaged since
FAILED = "failed"  # a command or a system call failed
TIMEOUT = "timeout"
# What may look so only while another run is in the middle of its work: it is looked at again under the locks.
PASSING = frozenset({MISSING, CONFLICT, BROKEN})


class FleetError(Exception):
    """A refusal or failure, written for the operator.

    :param what: what was refused or failed.
    :param container: the name of the container concerned.
    :param why: the cause.
    :param mend: the command or option that mends it.
    :param kind: one of this file's kinds.
    """

    def __init__(self, what: str, *, container: str | None = None, why: str = "", mend: str = "", kind: str = FAILED):
        super().__init__(what)
        self.what, self.container, self.why, self.mend, self.kind = what, container, why, mend, kind

    def __str__(self) -> str:
        text = f"{self.container}: {self.what}" if self.container else self.what
        if self.why:
            text += f": {self.why}"
        if self.mend:
            text = f"{text.rstrip('.')}. {self.mend}"
        return text
