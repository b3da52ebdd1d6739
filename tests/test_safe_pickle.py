"""Pickles are read without running what they say."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_diffrl.demonstrations.safe_pickle import (
    Record,
    UnsafePickleError,
    load_npy,
    load_pickle,
)

VALUES: dict[str, Any] = {
    "float64": np.linspace(0, 1, 12).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big_endian": np.arange(4, dtype=">i4"),
    "bool": np.array([True, False]),
    "strings": np.array(["open the drawer", "é"]),
    "bytes": np.array([b"a", b"bc"]),
    "empty": np.zeros((0, 3)),
    "zero_dimensional": np.array(2.5),
    "view": np.arange(10.0)[::2],
    "objects": np.array([{"a": np.arange(3)}, None, "x"], dtype=object),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_arrays_of_all_protocols_and_both_numpys(
    tmp_path: Path, protocol: int, core: bytes
) -> None:
    file = tmp_path / "a.pkl"
    written = pickle.dumps({**VALUES, "scalar": np.float32(1.5), "raw": b"\x00\xff"}, protocol)
    if core == b"core" and protocol < 4:  # module names are lines, not counted strings
        written = written.replace(b"numpy._core.", b"numpy.core.")
        assert b"_core" not in written
    file.write_bytes(written)
    read = load_pickle(file)
    for key, value in VALUES.items():
        assert read[key].dtype.newbyteorder("=") == value.dtype.newbyteorder("="), key
        assert read[key].shape == value.shape, key
        if key != "objects":
            np.testing.assert_array_equal(read[key], value)
    np.testing.assert_array_equal(read["objects"][0]["a"], [0, 1, 2])
    assert read["scalar"] == np.float32(1.5) and read["raw"] == b"\x00\xff"


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [eval, exec, OrderedDict, np.load, np.testing.assert_equal])
def test_other_names_are_refused_and_not_called(
    tmp_path: Path, protocol: int, function: Any
) -> None:
    file = tmp_path / "bad.pkl"
    marker = tmp_path / "ran"
    file.write_bytes(pickle.dumps(Attack(function, f"open({str(marker)!r}, 'w')"), protocol))
    with pytest.raises(UnsafePickleError, match=r"bad\.pkl: the pickle refers to \w+"):
        load_pickle(file)
    assert not marker.exists()


def test_numpys_own_functions_get_no_arguments_from_a_file(tmp_path: Path) -> None:
    """An array of objects over raw bytes would be pointers that the file chose."""
    file = tmp_path / "bad.pkl"
    module = np.zeros(1).__reduce__()[0].__module__.replace("numeric", "multiarray")
    frames = {
        "ndarray is called": "cnumpy\nndarray\n(I1\ntR.",
        "a huge array": f"c{module}\n_reconstruct\n(cnumpy\nndarray\n(I999999999\ntS'b'\ntR.",
        "objects as bytes": f"c{module}\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'aaaaaaaa'\ntR.",
        "a structured type": "cnumpy\ndtype\n(S'f4,O'\ntR.",
        "an attribute of a builder": "cnumpy\ndtype.__init__\n.",
        "persistent": "Pabc\n.",
        "a memo of gigabytes": "Nr\x00\x00\x00\x70.",
        "a function is altered": f"c{module}\n_reconstruct\n(N(S'__defaults__'\n(I1\ntdtb.",
    }
    for name, text in frames.items():
        file.write_bytes(text.encode())
        with pytest.raises(ValueError, match=r"bad\.pkl"):
            load_pickle(file)
            pytest.fail(name)


@pytest.mark.parametrize("protocol", [2, 5])
def test_damaged_files_raise_one_error(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "damaged.pkl"
    good = pickle.dumps({"a": np.arange(5.0), "o": np.array([None, "x"]), "t": (1, [2])}, protocol)
    generator = np.random.default_rng(protocol)
    refused = 0
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(int(generator.integers(1, 4))):
            damaged[generator.integers(len(good))] = generator.integers(256)
        file.write_bytes(damaged)
        try:
            load_pickle(file)
        except ValueError as error:
            assert str(error).startswith(f"{file}: ")
            refused += 1
    assert refused > 100


class Demo(Record):
    """A stand-in."""

    data: np.ndarray


class Original:
    def __init__(self) -> None:
        self.data = np.arange(3)


def test_classes_are_replaced_by_stand_ins(tmp_path: Path) -> None:
    file = tmp_path / "demo.pkl"
    file.write_bytes(pickle.dumps(Original()))
    name = f"{Original.__module__}.Original"
    read = load_pickle(file, {name: Demo})
    assert type(read) is Demo
    np.testing.assert_array_equal(read.data, [0, 1, 2])
    with pytest.raises(UnsafePickleError, match=r"demo\.pkl: the pickle refers to .*Original"):
        load_pickle(file, {"elsewhere.Original": Demo})


@pytest.mark.parametrize("cut", [1, 20, 60, -1])
def test_truncated_files(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "cut.pkl"
    file.write_bytes(pickle.dumps(VALUES)[:cut])
    with pytest.raises(ValueError, match=r"cut\.pkl: truncated or corrupt"):
        load_pickle(file)


def test_files_too_large(tmp_path: Path) -> None:
    file = tmp_path / "large.pkl"
    file.write_bytes(pickle.dumps(b"0" * 100))
    with pytest.raises(ValueError, match=r"large\.pkl: \d+ bytes, more than the 50"):
        load_pickle(file, max_bytes=50)


def test_npy_of_one_dictionary(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, {"ann": ["push"], "emb": np.ones((1, 1, 3))}, allow_pickle=True)  # type: ignore[arg-type]
    read = load_npy(file).item()
    assert read["ann"] == ["push"] and read["emb"].shape == (1, 1, 3)
    np.save(file, np.array([Attack(eval, "1")], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafePickleError, match=r"a\.npy: the pickle refers to builtins\.eval"):
        load_npy(file)
    np.save(file, np.arange(100))
    np.testing.assert_array_equal(load_npy(file), np.arange(100))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a\.npy: truncated"):
        load_npy(file)
    file.write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"a\.npy: not an \.npy"):
        load_npy(file)
