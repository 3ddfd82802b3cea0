# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands timed in turn, their ratios held to a bound and printed as one table; a throwaway lxcpath and network."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import network
import pytest
from checkout import run

ROWS = []


@dataclass(frozen=True)
class Row:
    what: str
    seconds: float
    against: str
    others: float
    ratio: float
    bound: str


class Bench:
    """An lxcpath with a sealed busybox base in it."""

    def __init__(self, lxcpath, graveyard):
        self.lxcpath, self.graveyard = lxcpath, graveyard

    def ansible(self, *arguments):
        """One whole ``ansible`` command, as a user types it; returns its output."""
        return run("ansible", "localhost", "-e", "ansible_python_interpreter=/usr/bin/python3", *arguments)

    def clone(self, **options):
        return self.ansible("-m", "lxc_clone", "-a", " ".join(f"{key}={value}" for key, value in {"lxcpath": self.lxcpath, **options}.items()))

    def shell(self, script):
        """A shell script with P, the lxcpath."""
        return run("sh", "-euc", script, P=self.lxcpath)

    def names(self):
        return sorted(os.listdir(self.lxcpath))

    def empty(self):
        """Take all clones out of the way, whoever made them.

        They are not deleted: ext4 passes over inodes that were deleted within the last minutes, one by one, and that search would
        be measured instead.
        """
        for name in subprocess.run(["lxc-ls", "-P", self.lxcpath, "-1", "--active"], capture_output=True, text=True, check=True).stdout.split():
            subprocess.run(["lxc-stop", "-P", self.lxcpath, "-n", name, "-k"], check=True)
        place = tempfile.mkdtemp(dir=self.graveyard)
        for name in self.names():
            if name != "golden":
                os.rename(f"{self.lxcpath}/{name}", f"{place}/{name}")
        Path(self.lxcpath, "golden", "lxc_snapshots").unlink(missing_ok=True)


def seconds(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@pytest.fixture
def compare(bench):
    """Times two ways in turn, A B A B …, cleans up after each, and holds the ratio of the best of each to a bound.

    What else a machine does only ever makes a run slower, so the best run tells most of the way itself.
    """

    def run_both(what, ours, against, theirs, *, at_most, runs=3, prepare=lambda: None, clean=True, check=lambda: None):
        pairs = []
        for _run in range(runs):
            pair = []
            for work in (ours, theirs):
                prepare()
                pair.append(seconds(work))
                check()
                if clean:
                    bench.empty()
            pairs.append(pair)
        a, b = map(min, zip(*pairs))
        ratio = a / b
        ROWS.append(Row(what, a, against, b, ratio, f"≤ {at_most:.2g}"))
        assert ratio <= at_most, f"{what}: {a:.2f} s against {b:.2f} s of {against}, a ratio of {ratio:.2f}: {pairs}"

    return run_both


@pytest.fixture(scope="module")
def bench():
    """On a filesystem of its own that nothing was ever deleted from: see :meth:`Bench.empty`."""
    directory = f"/var/tmp/fleet-benchmark-{uuid.uuid4().hex[:8]}"
    image, point = f"{directory}/image", f"{directory}/point"
    os.makedirs(point)
    run("truncate", "--size=4G", image)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    run("mount", "-o", "loop", image, point)
    lxcpath, graveyard = f"{point}/lxc", f"{point}/graveyard"
    made = Bench(lxcpath, graveyard)
    try:
        os.mkdir(lxcpath)
        os.mkdir(graveyard)
        made.ansible("-m", "lxc_base", "-a", f"name=golden template=busybox state=present lxcpath={lxcpath}")
        yield made
        made.empty()
    finally:
        run("umount", point)
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def bridge():
    with network.bridge() as name:
        yield name


def pytest_terminal_summary(terminalreporter):
    """The table; FLEET_LXC_FIGURES names a file that gets it as Markdown."""
    if not ROWS:
        return
    table = ["| what | s | against | s | ratio | bound |", "|---|---|---|---|---|---|"]
    table += [f"| {r.what} | {r.seconds:.2f} | {r.against} | {r.others:.2f} | {r.ratio:.3f} | {r.bound} |" for r in ROWS]
    terminalreporter.section("figures: the best of each, ratios within one run")
    for line in table:
        terminalreporter.write_line(line)
    if os.environ.get("FLEET_LXC_FIGURES"):
        Path(os.environ["FLEET_LXC_FIGURES"]).write_text("\n".join(table) + "\n", encoding="utf-8")
