"""Generation and edits, all figures in one JSON line: python benchmarks/all.py --peer FILE, and edit.py's options"""

import edit
import generate
from common import finish


def main() -> None:
    given = edit.parsed()
    finish(generate.measured(given.model, given.steps, given.rounds) | edit.measured(given))


if __name__ == "__main__":
    main()
