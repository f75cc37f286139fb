"""Settings of the process that publishes and counts; the environment variable ``POISON`` holds what a run decides."""

from __future__ import annotations

import json
import os

from testproject.settings.tests import *  # noqa: F403

_given = json.loads(os.environ["POISON"])
DATABASES = _given["databases"]
JETBRIDGE = _given["jetbridge"]
