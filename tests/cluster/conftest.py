"""Ray on 127.0.0.1 alone: its switch for systems where firewalls ask stands in the environment before it is loaded."""

from __future__ import annotations

import os

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
