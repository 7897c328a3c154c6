"""List the commands: ``python -m tiramisu``."""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = ("check_data", "train", "evaluate", "predict", "export", "download", "benchmark")


def main(args: Sequence[str] | None = None) -> None:
    """Print every command with one line about it."""
    unknown = sys.argv[1:] if args is None else args
    if unknown and unknown[0] not in ("-h", "--help"):
        print(
            f"tiramisu: error: {unknown[0]} is not run this way; use python -m tiramisu.<command>",
            file=sys.stderr,
        )
        raise SystemExit(2)
    print("Semantic segmentation with FC-DenseNet. Commands (each has --help):\n")
    for command in COMMANDS:
        # Read, not imported: the list must not wait for torch.
        docstring = ast.get_docstring(ast.parse((Path(__file__).parent / f"{command}.py").read_text()))
        print(f"  python -m tiramisu.{command:<10} {(docstring or '').splitlines()[0].split(': ``')[0]}")


if __name__ == "__main__":
    main()
