import gc
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import xarray as xr

import data_gen
from data_gen.dataset import VARIABLES, append_to_dataset, write_dataset

ATTRIBUTES = {
    "schema_version": 1,
    "family": "blob",
    "seed": 0,
    "resolution": 4,
    "lattice": [1.0, 0.0, 0.0, 1.0],
    "package_version": "0",
}
NAMES = ("epsilon", "epsilon_mean", "status", "error_message", "dos", "dos_error")


def arrays(samples, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "epsilon": generator.uniform(1, 20, (samples, 4, 4)),
        "epsilon_mean": np.full(samples, 5.0),
        "status": np.zeros(samples, dtype=np.int8),
        "error_message": np.full(samples, b"", dtype="S200"),
        "dos": generator.uniform(size=(samples, 500)),
        "dos_error": np.zeros(samples),
    }


def kind(**attributes):
    return {
        "variables": {name: VARIABLES[name] for name in NAMES},
        "fixed": {"frequency": np.linspace(0, 1.2, 500)},
        "attributes": {**ATTRIBUTES, **attributes},
    }


def write(path, blocks, samples, **attributes):
    write_dataset(path, blocks, samples=samples, **kind(**attributes))


def test_reads_back_with_xarray_and_h5py_and_says_what_everything_is(tmp_path):
    path = tmp_path / "a.h5"
    block = arrays(6)
    write(path, [{name: value[:4] for name, value in block.items()}, {n: v[4:] for n, v in block.items()}], 6)
    with data_gen.open_dataset(path) as dataset:
        np.testing.assert_array_equal(dataset["dos"], block["dos"].astype(np.float32))
        assert dataset["dos"].dims == ("sample", "frequency")
        assert all({"units", "long_name"} <= set(variable.attrs) for variable in dataset.variables.values())
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["epsilon"], block["epsilon"].astype(np.float32))
    with xr.open_dataset(path) as dataset:
        assert dataset.attrs["family"] == "blob"


def test_same_content_is_the_same_bytes_however_it_comes_in_blocks(tmp_path):
    block = arrays(6)
    for name, cut in (("a.h5", 2), ("b.h5", 5)):
        parts = [{n: v[:cut] for n, v in block.items()}, {n: v[cut:] for n, v in block.items()}]
        write(tmp_path / name, parts, 6)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_opening_is_lazy_and_values_that_are_not_finite_are_refused_when_asked_for(tmp_path):
    path = tmp_path / "a.h5"
    block = arrays(3)
    block["dos"][1, 7] = np.nan
    write(path, [block], 3)
    with data_gen.open_dataset(path) as dataset:
        assert dataset["epsilon"].chunks is not None
        dataset["epsilon"].load()
        with pytest.raises(ValueError, match="`dos` holds numbers that are not finite in sample 1, which counts as"):
            dataset["dos"].load()
        with pytest.raises(ValueError, match="not finite in sample 1, which counts as"):
            dataset["dos"][[2, 1]].load()
        with pytest.raises(ValueError, match="not finite in sample 1, which counts as"):
            dataset["dos"][1].load()
        dataset["dos"][0].load()
        dataset["dos"][2:].load()


def test_cells_taken_out_of_a_file_say_what_they_are(tmp_path):
    write(tmp_path / "a.h5", [arrays(3)], 3)
    with data_gen.open_dataset(tmp_path / "a.h5") as dataset:
        assert list(dataset["epsilon"][1].attrs["lattice"]) == list(dataset.attrs["lattice"])


def test_failed_samples_may_lack_their_label(tmp_path):
    path = tmp_path / "a.h5"
    block = arrays(3)
    block["dos"][1] = np.nan
    block["status"][1] = 1
    write(path, [block], 3)
    with data_gen.open_dataset(path) as dataset:
        assert np.isnan(dataset["dos"].values[1]).all()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.h5"
    write(path, [arrays(3)], 3)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="3 samples of 4"):
        write(path, [arrays(3, seed=1)], 4)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["epsilon", "dos", "frequency"])
def test_a_damaged_chunk_is_not_read(tmp_path, name):
    path = tmp_path / "a.h5"
    write(path, [arrays(3)], 3)
    with h5py.File(path) as file:
        where = file[name].id.get_chunk_info(0).byte_offset
    body = bytearray(path.read_bytes())
    body[where + 5] ^= 1
    path.write_bytes(body)
    with pytest.raises(ValueError, match=f"{path} .*damaged"):
        data_gen.open_dataset(path).load()


def test_a_damaged_chunk_is_named_when_it_is_read_and_not_before(tmp_path):
    path = tmp_path / "a.h5"
    write(path, [arrays(3)], 3)
    with h5py.File(path) as file:
        where = file["dos"].id.get_chunk_info(0).byte_offset
    body = bytearray(path.read_bytes())
    body[where + 5] ^= 1
    path.write_bytes(body)
    with data_gen.open_dataset(path) as dataset:
        dataset["epsilon"].load()
        for read in (lambda: dataset["dos"].values, lambda: dataset.isel(sample=[1])["dos"].mean().values):
            with pytest.raises(ValueError, match=f"^{path} is damaged: `dos` cannot be read") as caught:
                read()
            assert "\n" not in str(caught.value)


def _edit(change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.modify("family", "gpm"),
        lambda file: file.attrs.modify("seed", 1),
        lambda file: file.attrs.create("polarization", "te"),
        lambda file: file["dos"].attrs.modify("units", "1"),
        lambda file: file.move("dos_error", "error"),
        lambda file: file.pop("dos_error"),
    ],
)
def test_all_that_a_file_says_of_itself_counts(change, tmp_path):
    path = tmp_path / "a.h5"
    write(path, [arrays(3)], 3)
    _edit(change)(path)
    with pytest.raises(ValueError, match=f"{path} (was cut or changed in place|is damaged)"):
        data_gen.open_dataset(path)


def test_every_byte_that_is_no_chunk_is_sealed(tmp_path):
    path = tmp_path / "a.h5"
    write(path, [arrays(3)], 3)
    whole = path.read_bytes()
    with h5py.File(path) as file:
        chunks = [
            range(each.byte_offset, each.byte_offset + each.size)
            for entry in file.values()
            if isinstance(entry, h5py.Dataset) and entry.chunks
            for each in [entry.id.get_chunk_info(0)]
        ]
    outside = [place for place in range(len(whole)) if not any(place in chunk for chunk in chunks)]
    for place in outside[:: len(outside) // 200]:
        body = bytearray(whole)
        body[place] ^= 4
        path.write_bytes(body)
        with pytest.raises(ValueError, match=f"{path} "):
            data_gen.open_dataset(path)
    path.write_bytes(whole[: max(outside) - 200] + whole[max(outside) - 100 :])
    with pytest.raises(ValueError, match="is not the file that was sealed"):
        data_gen.open_dataset(path)


@pytest.mark.parametrize("opened_by", [xr.open_dataset, data_gen.open_dataset])
def test_what_users_make_of_a_file_has_no_seal_and_is_read(tmp_path, opened_by):
    write(tmp_path / "a.h5", [arrays(3)], 3)
    with opened_by(tmp_path / "a.h5") as dataset:
        dataset.isel(sample=[0, 2]).assign_attrs(family="mine").to_netcdf(tmp_path / "b.h5", engine="h5netcdf")
    with data_gen.open_dataset(tmp_path / "b.h5") as dataset:
        assert dataset.attrs["family"] == "mine"
        assert dataset.sizes["sample"] == 2


def test_texts_of_any_length_are_no_damage(tmp_path):
    write(tmp_path / "a.h5", [arrays(3)], 3)
    with xr.load_dataset(tmp_path / "a.h5") as dataset:
        named = dataset.assign_coords(material=("sample", np.array(["air", "glass", "silicon"], dtype=object)))
        named.to_netcdf(tmp_path / "b.h5", engine="h5netcdf")
    with data_gen.open_dataset(tmp_path / "b.h5") as dataset:
        assert dataset["material"].values.tolist() == ["air", "glass", "silicon"]


def test_parts_that_are_missing_are_not_taken_for_zeros(tmp_path):
    path = tmp_path / "a.h5"
    write(path, [arrays(300)], 300)
    xr.load_dataset(path).to_netcdf(path, engine="h5netcdf")  # without a seal

    def without_the_second_half(file):
        values = file["epsilon"][:256]
        attributes = dict(file["epsilon"].attrs)
        del file["epsilon"]
        made = file.create_dataset("epsilon", (300, 4, 4), "f4", chunks=(256, 4, 4))
        made[:256] = values
        for name in ("units", "long_name"):
            made.attrs[name] = attributes[name]
        for axis, name in enumerate(("sample", "x", "y")):
            made.dims[axis].attach_scale(file[name])

    _edit(without_the_second_half)(path)
    with pytest.raises(ValueError, match=f"{path} is damaged: `epsilon` is not whole"):
        data_gen.open_dataset(path)


def test_a_status_that_is_none_is_refused(tmp_path):
    block = arrays(3)
    block["status"][1] = 7
    write(tmp_path / "a.h5", [block], 3)
    with pytest.raises(ValueError, match="`status` must be 0 or 1 everywhere"):
        data_gen.open_dataset(tmp_path / "a.h5")


def test_nothing_is_printed_about_a_file_that_is_none(tmp_path, capfd):
    (tmp_path / "a.h5").write_bytes(b"not a dataset")
    with pytest.raises(ValueError, match="cannot be read as a dataset file"):
        data_gen.open_dataset(tmp_path / "a.h5")
    gc.collect()
    assert capfd.readouterr().err == ""


def test_missing_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset file at"):
        data_gen.open_dataset(tmp_path / "none.h5")
    (tmp_path / "half.h5.part").mkdir()
    with pytest.raises(FileNotFoundError, match=r"half\.h5; it is unfinished, and goes on by the command"):
        data_gen.open_dataset(tmp_path / "half.h5")
    path = tmp_path / "a.h5"
    write(path, [arrays(3)], 3)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a dataset"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read as a dataset file") as caught:
            data_gen.open_dataset(path)
        assert "\n" not in str(caught.value)
    with h5py.File(path, "w") as file:
        file["other"] = np.ones(3)
    with pytest.raises(ValueError, match="schema_version 1, got None"):
        data_gen.open_dataset(path)
    write(path, [arrays(3)], 3, schema_version=99)
    with pytest.raises(ValueError, match="schema_version 1, got 99"):
        data_gen.open_dataset(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dataset: dataset.drop_vars("status"), "a.h5 lacks status"),
        (lambda dataset: dataset.drop_attrs(deep=False), "must have the attribute schema_version 1, got None"),
        (
            lambda dataset: dataset.assign(epsilon=dataset["epsilon"].transpose("sample", "y", "x")),
            r"`epsilon` must have dimensions \('sample', 'x', 'y'\), got \('sample', 'y', 'x'\)",
        ),
        (
            lambda dataset: dataset.assign(dos=dataset["dos"].astype("S8")),
            r"`dos` must hold real numbers, got \|S8",
        ),
        (lambda dataset: dataset.isel(frequency=slice(None, None, -1)), "`frequency` must be finite and ascending"),
        (lambda dataset: dataset.drop_vars("frequency"), "has `dos`, but lacks the coordinate `frequency`"),
        (lambda dataset: dataset.assign_attrs(lattice=[1.0, 0.0, 0.0]), "`lattice` must be four numbers"),
        (lambda dataset: dataset.assign_attrs(lattice=[500.0, 0, 0, 750]), "`lattice` must be in units of a"),
        (lambda dataset: dataset.assign_attrs(lattice=[1.0, 0, 2, 0]), "must be two finite, independent vectors"),
        (lambda dataset: dataset.assign_attrs(polarization="TE"), "`polarization` must be tm or te, got 'TE'"),
        (lambda dataset: dataset.assign_attrs(lattice=4 * [np.nan]), "must be two finite, independent vectors"),
    ],
)
def test_files_of_another_content_are_refused(change, message, tmp_path):
    write(tmp_path / "whole.h5", [arrays(3)], 3)
    with xr.open_dataset(tmp_path / "whole.h5") as dataset:
        change(dataset).to_netcdf(tmp_path / "a.h5", engine="h5netcdf")
    with pytest.raises(ValueError, match=message):
        data_gen.open_dataset(tmp_path / "a.h5")


def test_appending_one_by_one_gives_the_file_of_them_all(tmp_path):
    block = arrays(5)
    for index in range(5):
        held = append_to_dataset(tmp_path / "a.h5", {n: v[index : index + 1] for n, v in block.items()}, **kind())
        assert held == index + 1
    with data_gen.open_dataset(tmp_path / "a.h5") as dataset:
        assert dataset.sizes["sample"] == 5
        for name in ("epsilon", "dos", "epsilon_mean"):
            np.testing.assert_array_equal(dataset[name], block[name].astype(dataset[name].dtype))
        assert dataset["error_message"].values.tolist() == [b""] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attributes": {**ATTRIBUTES, "lattice": [1.0, 0.0, 0.0, 2.0]}},
            r"holds cells with lattice \[1.0, .* this one",
        ),
        (
            {"attributes": {**ATTRIBUTES, "polarization": "te"}},
            "holds cells with polarization None, and .* has 'te'",
        ),
        ({"fixed": {"frequency": np.linspace(0, 1.3, 500)}}, "holds cells with another `frequency`"),
        (
            {"variables": {name: VARIABLES[name] for name in NAMES[:-1]}},
            "of another kind: it differs in having dos_error",
        ),
    ],
)
def test_what_does_not_fit_is_not_appended_and_the_file_stays(change, message, tmp_path):
    path = tmp_path / "a.h5"
    append_to_dataset(path, arrays(1), **kind())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        append_to_dataset(path, arrays(1), **{**kind(), **change})
    assert path.read_bytes() == before


def test_what_the_readers_stumble_over_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    append_to_dataset(path, arrays(1), **kind())

    def stumble(*_):
        raise RuntimeError("unable to\nread an attribute")

    monkeypatch.setattr("data_gen.dataset._check_stored", stumble)
    with pytest.raises(ValueError, match=f"^{path} is damaged .*unable to read an attribute"):
        data_gen.open_dataset(path)


def test_an_append_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    append_to_dataset(path, arrays(1), **kind())
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("data_gen.dataset.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        append_to_dataset(path, arrays(1), **kind())
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.h5"]


def test_several_that_append_at_once_lose_nothing(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: append_to_dataset(tmp_path / "a.h5", arrays(1, seed), **kind()), range(8)))
    with data_gen.open_dataset(tmp_path / "a.h5") as dataset:
        stored = {float(row[0, 0]) for row in dataset["epsilon"].values}
    assert stored == {float(np.float32(arrays(1, seed)["epsilon"][0, 0, 0])) for seed in range(8)}
