"""A sample of the hostile files, and that the experiment would notice each thing that must not happen."""

import pickle

import numpy as np
import pytest

from experiments.faults.hostile_files import (
    KINDS,
    REFUSED,
    UNDAMAGED,
    UNTOLD,
    Kind,
    damaged,
    disguised_pickle,
    make_originals,
    outcome_of,
    outcomes,
    planned,
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    make_originals(folder)
    return folder


@pytest.mark.slow
def test_a_sample_gives_one_clear_line_or_its_own_contents(originals):
    *found, memory = outcomes(planned(len(KINDS), seed=1), originals)
    assert sorted({kind for kind, _, _ in found}) == sorted(KINDS)
    assert [each for each in found if each[2] not in (REFUSED, UNDAMAGED, UNTOLD)] == []
    assert memory < 2**30


def test_what_must_not_happen_is_noticed(tmp_path):
    originals, folder = tmp_path / "originals", tmp_path / "read"
    for each in (originals, folder):
        each.mkdir()
    (originals / "a.bin").write_bytes(bytes(range(256)) * 20)

    def outcome(read, seed=0, checksum=True):
        return outcome_of(Kind("a.bin", read, checksum), originals, folder, seed, b"whole")

    def raising(error):
        def read(path):
            raise error

        return read

    pickled = next(seed for seed in range(1000) if _unpickles(seed, tmp_path))
    assert outcome(lambda path: pickle.loads(path.read_bytes()), pickled) == "CODE WAS RUN"
    assert outcome(lambda path: b"other") == "OTHER CONTENTS"
    assert outcome(lambda path: b"other", checksum=False) == UNTOLD
    assert outcome(lambda path: b"whole") == UNDAMAGED
    assert outcome(raising(ValueError("the file is damaged"))) == REFUSED
    untouched = next(seed for seed in range(1000) if np.random.default_rng(seed).random() > 0.96)
    assert outcome(raising(ValueError("no")), untouched) == "A WHOLE FILE WAS REFUSED: no"
    for words in ("", "one\ntwo"):
        assert outcome(raising(ValueError(words))) == "REFUSED IN NO LINE OR MORE: ValueError"
    assert outcome(raising(KeyError("x"))) == "ANOTHER EXCEPTION: KeyError"
    assert outcome(raising(MemoryError())) == "BEYOND THE MEMORY LIMIT"


def _unpickles(seed, folder):
    """Whether the file of this seed is a plain pickle."""
    generator = np.random.default_rng(seed)
    return generator.random() < 0.1 and b"model_state_dict" in disguised_pickle(generator, folder)[:50]


def test_damage_follows_from_the_seed():
    content = bytes(range(256)) * 8
    same = [damaged(content, np.random.default_rng(3)) for _ in range(2)]
    assert same[0] == same[1] != content
