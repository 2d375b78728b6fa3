"""Generation and edits, all figures in one line of JSON: python benchmarks/all.py --peer FILE, and edit.py's options"""

import edit
import generate
from common import print_figures


def main() -> None:
    args = edit.parse_args()
    print_figures(generate.measure(args.model, args.steps, args.rounds) | edit.measure(args))


if __name__ == "__main__":
    main()
