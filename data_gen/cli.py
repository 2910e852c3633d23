"""The command `data-gen`: each of its commands is the function of that name."""

import sys

from data_gen.command_line import run

COMMANDS = {
    "generate": "data_gen.generation:generate",
    "verify": "data_gen.verification:verify",
    "preview": "data_gen.inspection:preview",
    "info": "data_gen.inspection:info",
    "import-cells": "data_gen.own_cells:import_cells",
    "import-legacy": "data_gen.legacy:import_legacy",
    "export-legacy": "data_gen.legacy:export_legacy",
}


def main() -> None:
    """Run `data-gen` on this process's arguments and exit with its status."""
    sys.exit(run("data-gen", COMMANDS))


if __name__ == "__main__":
    main()
