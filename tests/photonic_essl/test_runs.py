import re

from photonic_essl import runs


def test_the_commit_is_the_packages_own_or_none(other_repository, monkeypatch):
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?|None", str(runs.environment()["commit"]))
    monkeypatch.setattr(runs, "__file__", str(other_repository / "runs.py"))
    assert runs.environment()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert runs.environment()["commit"] is None
