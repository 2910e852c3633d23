import pytest

from photonic_essl.explorer.session import Session


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    """A session without a model; starting its processes takes seconds."""
    with Session([], tmp_path_factory.mktemp("session") / "explored.h5") as session:
        yield session
