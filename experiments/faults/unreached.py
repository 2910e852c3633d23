"""Every `raise` that no test has reached, and exit status 1 if there is one.

    make coverage

runs the tests under coverage, reports how many lines they execute, and then calls this. Not seen is what runs under the
interpreter that has MPB, `data_gen/solvers/mpb_worker.py`, apart from what tests call in their own.
"""

import ast
from pathlib import Path

from coverage import Coverage


def unreached(coverage: Coverage) -> list[str]:
    """Return file, line and text of each `raise` that was not executed."""
    found = []
    for file in sorted(coverage.get_data().measured_files()):
        source = Path(file).read_text()
        missing = set(coverage.analysis2(file)[3])
        raises = [
            node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise) and node.lineno in missing
        ]
        found += [f"{file}:{node.lineno}: {ast.unparse(node)}" for node in sorted(raises, key=lambda node: node.lineno)]
    return found


def main() -> int:
    coverage = Coverage()
    coverage.load()
    lines = unreached(coverage)
    print("\n".join(lines) or "every raise is reached")
    return bool(lines)


if __name__ == "__main__":
    raise SystemExit(main())
