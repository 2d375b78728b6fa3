"""Where things are in the checkout, wherever a test file stands."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
