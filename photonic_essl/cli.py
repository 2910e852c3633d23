"""The command line: each command is the function of the same name."""

import sys

from data_gen.command_line import Commands, run

COMMANDS: Commands = {
    "pretrain": "photonic_essl.pretraining:pretrain",
    "finetune": "photonic_essl.finetuning:finetune",
    "evaluate": "photonic_essl.prediction:evaluate",
    "predict": "photonic_essl.prediction:predict",
    "import-encoder": "photonic_essl.published:import_encoder",
    "report": "photonic_essl.reporting:report",
    "explore": "photonic_essl.explorer.command:explore",
    "demo": "photonic_essl.demo:demo",
    "vision": {
        "pretrain": "photonic_essl.vision.pretraining:pretrain",
        "probe": "photonic_essl.vision.classification:probe",
        "knn": "photonic_essl.vision.neighbours:knn",
        "finetune": "photonic_essl.vision.classification:finetune",
        "import-encoder": "photonic_essl.vision.interchange:import_encoder",
        "export-encoder": "photonic_essl.vision.interchange:export_encoder",
    },
}


def main() -> None:
    """Run the command that the process was started with."""
    sys.exit(run("photonic-essl", COMMANDS))


if __name__ == "__main__":
    main()
