"""The command line: each command is the function of the same name."""

import sys

from data_gen.command_line import run

COMMANDS = {
    "pretrain": "photonic_essl.pretraining:pretrain",
    "finetune": "photonic_essl.finetuning:finetune",
    "evaluate": "photonic_essl.regression:evaluate",
    "predict": "photonic_essl.regression:predict",
    "import-encoder": "photonic_essl.published:import_encoder",
    "report": "photonic_essl.reporting:report",
    "explore": "photonic_essl.explorer.command:explore",
    "demo": "photonic_essl.demo:demo",
}


def main() -> None:
    """Run the command that the process was started with."""
    sys.exit(run("photonic-essl", COMMANDS))
