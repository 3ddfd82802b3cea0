# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""ansible-test sanity, each of its tests one of ours, and what Galaxy would say of the artefact."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import ansible_test._internal.python_requirements as requirements
import pytest
from checkout import run


def listed():
    """The tests that ansible-test knows, which it tells only inside something like a collection; its warnings go elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        collection = Path(directory, "ansible_collections", "fleet", "lxc")
        collection.mkdir(parents=True)
        (collection / "galaxy.yml").touch()
        tests = subprocess.run(["ansible-test", "sanity", "--list-tests"], cwd=collection, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert tests
    return tests


@pytest.fixture(scope="session", autouse=True)
def pip():
    """Put our get_pip.py where ansible-test keeps the one that it would download."""
    version = re.search(r"pip='([0-9.]+)'", Path(requirements.__file__).read_text(encoding="utf-8"))[1]
    script = Path.home() / ".ansible" / "test" / "cache" / f"get_pip_{version.replace('.', '_')}.py"
    if not script.exists():
        script.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("get_pip.py"), script)


@pytest.mark.parametrize("test", listed())
def test_sanity(collection, test):
    run("ansible-test", "sanity", "--test", test, "--python", "default", "--requirements", "--color", "no", cwd=collection)


def test_galaxy_imports_the_artefact_without_complaint(artefact, tmp_path):
    said = run("python", "-m", "galaxy_importer.main", artefact, cwd=tmp_path)
    assert "Importer processing completed successfully" in said
    assert not [line for line in said.splitlines() if line.startswith(("ERROR", "WARNING"))], said
