# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A plugin of pytest: several runs of the same tests share them out, one from the front and one from the back.

``--share DIRECTORY`` is seen by all of them; who makes the directory of a test's number there runs that test.
"""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser):
    parser.addoption("--share", help="the directory in which tests are claimed")
    parser.addoption("--backwards", action="store_true", help="begin with the last test")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    directory, items = session.config.getoption("share"), list(enumerate(session.items))
    if directory is None or session.testsfailed or session.config.option.collectonly:
        return None

    def claimed():
        for number, item in reversed(items) if session.config.getoption("backwards") else items:
            try:
                os.mkdir(os.path.join(directory, str(number)))
            except FileExistsError:
                continue
            yield item

    mine = claimed()
    item = next(mine, None)
    while item and not (session.shouldfail or session.shouldstop):
        following = next(mine, None)  # what of fixtures goes on living is decided by that
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        item = following
    return True
