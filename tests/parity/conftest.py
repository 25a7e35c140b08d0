"""The networks to compare are made by the tests of the catalogue: they are imported from there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "networks"))
