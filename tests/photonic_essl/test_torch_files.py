import pickle
import zipfile

import pytest
import torch

from photonic_essl.torch_files import read_torch_file

HELD = {"weights": {"a": torch.arange(2000.0), "b": [torch.eye(3)]}, "epoch": 3}


class Code:
    """What would write a file when it is unpickled."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return open, (self.witness, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_back_from_either_format(zipped, tmp_path):
    torch.save(HELD, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    held = read_torch_file(tmp_path / "a.pt")
    assert torch.equal(held["weights"]["a"], HELD["weights"]["a"])
    assert held["epoch"] == 3


def test_one_bit_of_a_weight_is_enough_to_refuse_the_file(tmp_path):
    file = tmp_path / "a.pt"
    torch.save(HELD, file)
    whole = file.read_bytes()
    body = bytearray(whole)
    body[whole.index(torch.arange(2000.0).numpy().tobytes()) + 1234] ^= 1
    file.write_bytes(body)
    assert not torch.equal(torch.load(file, weights_only=True)["weights"]["a"], HELD["weights"]["a"])
    with pytest.raises(ValueError, match=r"a.pt is damaged, or holds more than tensors"):
        read_torch_file(file)
    file.write_bytes(whole[:-300])
    with pytest.raises(ValueError, match="is damaged"):
        read_torch_file(file)


@pytest.mark.parametrize("save", [torch.save, lambda held, file: file.write_bytes(pickle.dumps(held))])
def test_no_code_runs(save, tmp_path):
    save({"weights": Code(tmp_path / "witness")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"is damaged, or holds more than tensors and plain containers\.$"):
        read_torch_file(tmp_path / "a.pt")
    assert not (tmp_path / "witness").exists()


def test_files_that_claim_more_than_they_hold_are_refused(tmp_path):
    file = tmp_path / "a.pt"
    torch.save({"a": [torch.zeros(1).expand(2**40)]}, file)
    with pytest.raises(ValueError, match=r"a tensor claims the shape \(1099511627776,\)"):
        read_torch_file(file)
    torch.save({"a": torch.zeros(10**6)}, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for record in archive.infolist():
            small.writestr(record.filename, archive.read(record))
    with pytest.raises(ValueError, match="its records claim to be larger than the file"):
        read_torch_file(tmp_path / "b.pt")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_torch_file(tmp_path / "none.pt")
