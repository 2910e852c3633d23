"""Which code is at work."""

import subprocess
from pathlib import Path


def package_commit() -> str | None:
    """Return the commit of the package's own repository, None where it was installed without one.

    Returns:
        40 hexadecimal digits, with `-dirty` after them where files differ from the commit's.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # It may be installed in a folder of somebody else's repository, which has no such file.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, timeout=10, check=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
