# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The checkout, what Ansible makes of it, and its tools run over it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleet-lxc"
# The community package on PyPI that others' collections are taken from: Galaxy cannot be reached from every build machine.
ANSIBLE = "12.3.0"


def run(*command, cwd=ROOT, **environment):
    """Run a command; its whole output is the result, or the test's failure."""
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "NO_COLOR": "1", "PY_COLORS": "0", **{key: str(value) for key, value in environment.items()}}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{shlex.join(done.args)} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def copy_to(directory):
    """What git would see of the checkout, at ansible_collections/fleet/lxc below a directory: some tools refuse any other place."""
    collection = Path(directory, "ansible_collections", "fleet", "lxc")
    collection.mkdir(parents=True)
    run("rsync", "--archive", "--filter=:- .gitignore", "--exclude=/.git", "--exclude=/.collections", f"{ROOT}/", collection)
    return collection


def build_in(directory):
    """The artefact, built from the checkout as it lies there."""
    run("ansible-galaxy", "collection", "build", ROOT, "--output-path", directory)
    (artefact,) = Path(directory).glob("fleet-lxc-*.tar.gz")
    return artefact


def published(*names):
    """The directory with others' collections in it, such as ``awx.awx``; downloaded once."""
    place = CACHE / f"{'-'.join(names)}-of-ansible-{ANSIBLE}"
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        wanted = tuple(f"ansible_collections/{name.replace('.', '/')}/" for name in names)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "-d", scratch]
            run(*pip, f"ansible=={ANSIBLE}")
            with zipfile.ZipFile(next(Path(scratch).glob("ansible-*.whl"))) as wheel:
                wheel.extractall(Path(scratch) / "taken", [name for name in wheel.namelist() if name.startswith(wanted)])
            os.rename(Path(scratch) / "taken", place)
    return place
