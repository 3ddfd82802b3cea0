# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tests of every backing store, each where it is real: LVM and ZFS in two guests of the lab, all else on this machine.

    suite.py REPORT.xml [pytest arguments]

Three runs at once; the guests share out their tests. At the end one report, the figures that tests recorded, and the matrix of the
conformance suite. A test that is skipped in a guest counts as failed: it has proved nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as tree
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CONFORMANCE = "tests/integration/test_conformance.py"
OTHERS = sorted(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("tests/integration/test_store_*.py"))
# The guests meet somewhere in the middle, where tests should be short ones.
TESTS = [*OTHERS[:2], CONFORMANCE, *OTHERS[2:]]
STORES = ["lvm", "zfs"]  # those of the guests, by their marks
GUESTS = {"guest 1": [], "guest 2": ["--backwards"]}
# Column: how the names of its stores begin.
COLUMNS = {"directory": "dir-", "overlay": "overlay", "btrfs": "btrfs", "loop": "loop", "LVM thick": "lvm-thick", "LVM thin": "lvm-thin", "ZFS": "zfs"}


def main(report, *arguments):
    with tempfile.TemporaryDirectory(prefix="fleet-storage-") as directory:
        return run(Path(directory), report, arguments)


def run(directory, report, arguments):
    (directory / "claims").mkdir()
    pytest = ["python3", "-m", "pytest", "-q", "--tb=short", "--durations=12"]
    # The rest of what needs neither store is run by ./test integration.
    host = [*pytest, CONFORMANCE, "-m", " and ".join(f"not {store}" for store in STORES), f"--junitxml={directory}/host.xml", *arguments]
    runs = {"host": ["nice", *host]}
    for guest, words in GUESTS.items():
        share = ["-p", "tests.storage_lab.share", "--share=/srv/exchange/claims", *words]
        inside = [*pytest, *TESTS, *share, "-m", " or ".join(STORES), f"--junitxml=/srv/exchange/{guest}.xml", *arguments]
        runs[guest] = [str(HERE / "lab"), "run", "--exchange", str(directory), "--", shlex.join(inside)]
    processes = {}
    try:
        for name, command in runs.items():
            processes[name] = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        printers = [threading.Thread(target=echo, args=(name, process.stdout)) for name, process in processes.items()]
        for printer in printers:
            printer.start()
        for process in processes.values():
            process.wait()
        for printer in printers:
            printer.join()
    finally:
        for process in processes.values():
            process.terminate()
    merged = tree.Element("testsuites")
    for name, process in processes.items():
        merged.append(result(name, process.returncode, directory / f"{name}.xml"))
    tree.ElementTree(merged).write(report, encoding="utf-8")
    for figure in merged.iter("property"):
        print(figure.get("value"))
    print_matrix(merged)
    return any(int(suite.get(kind, 0)) for suite in merged for kind in ("failures", "errors"))


def echo(name, lines):
    for line in lines:
        print(f"{name}: {line}", end="", flush=True)


def result(name, status, report):
    """One run's <testsuite>."""
    try:
        suite = next(tree.parse(report).getroot().iter("testsuite"))
    except (OSError, tree.ParseError, StopIteration):
        return tree.Element("testsuite", name=name, tests="1", errors="1")
    suite.set("name", name)
    if name in GUESTS:
        for case in suite.iter("testcase"):
            for skipped in case.findall("skipped"):
                skipped.tag = "failure"
        suite.set("failures", str(int(suite.get("failures", 0)) + int(suite.get("skipped", 0))))
        suite.set("skipped", "0")
    if status and not int(suite.get("failures", 0)) + int(suite.get("errors", 0)):
        suite.set("errors", "1")
    return suite


def print_matrix(merged):
    """Conformance test by store."""
    seen: dict[str, dict[str, set[str]]] = {}
    for case in merged.iter("testcase"):
        match = re.fullmatch(r"(test_\w+)\[([\w-]+)\]", case.get("name"))
        if not match or "conformance" not in case.get("classname"):
            continue
        column = next((column for column, prefix in COLUMNS.items() if match[2].startswith(prefix)), None)
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "–" if "skipped" in tags else "ok"
        seen.setdefault(match[1].removeprefix("test_").replace("_", " "), {}).setdefault(column, set()).add(outcome)
    width = max(map(len, seen), default=0)
    print("\n" + "  ".join(["".ljust(width), *COLUMNS]))
    for test, outcomes in seen.items():
        cells = [next((word for word in ("failed", "ok") if word in outcomes.get(column, ())), "–") for column in COLUMNS]
        print("  ".join([test.ljust(width), *(cell.center(len(column)) for cell, column in zip(cells, COLUMNS))]).rstrip())
    print(flush=True)


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
