# Copyright (c) 2026, fleet.lxc contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Put pip into a new virtual environment, for ansible-test, from the Python that is there and the package index alone."""

from __future__ import annotations

import ensurepip
import os
import subprocess
import sys

# ensurepip turns pip's configuration off for the whole process.
environment = {key: value for key, value in os.environ.items() if key != "GET_PIP"}
ensurepip.bootstrap()
wanted = [word for word in sys.argv if word.startswith("pip==")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", "--quiet", *wanted], env=environment))
