"""Files of arrays and JSON: what was written comes back, or an error names the file."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnshop.archive import ArchiveError, atomic_write, read_archive, read_json, write_archive

ARRAYS = {"a/W": np.arange(6.0).reshape(2, 3), "b": np.array(3, np.int32), "empty": np.zeros((0, 2), np.float32)}
META = {"words": ["ä", "日"], "number": 1.5, "nothing": None}


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.npz", "test", META, ARRAYS)
    meta, arrays = read_archive(tmp_path / "a.npz", "test")
    assert {key: meta[key] for key in META} == META
    assert list(arrays) == list(ARRAYS)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert array.dtype == ARRAYS[name].dtype
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_another_kind_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.npz", "test", {}, {})
    with pytest.raises(ArchiveError, match=r"a\.npz: is a test of format 1; a checkpoint of format 1 is wanted"):
        read_archive(tmp_path / "a.npz", "checkpoint")


@pytest.mark.parametrize("meta", ["{}", json.dumps({"format": 1}), json.dumps({"kind": "test"})])
def test_a_file_of_another_program_is_refused(tmp_path: Path, meta: str) -> None:
    np.savez(tmp_path / "a.npz", meta=np.array(meta))
    with pytest.raises(ArchiveError, match=r"a\.npz: is no test of this nnshop"):
        read_archive(tmp_path / "a.npz", "test")


def test_an_array_alone_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.zeros(2))
    with pytest.raises(ArchiveError, match=r"a\.npz: is not a whole test"):
        read_archive(tmp_path / "a.npz", "test")


@pytest.mark.parametrize("meta", [None, "no JSON", "[]", "[" * 100_000], ids=["none", "no JSON", "list", "deep"])
def test_a_file_without_its_data_is_refused(tmp_path: Path, meta: str | None) -> None:
    np.savez(tmp_path / "a.npz", **({} if meta is None else {"meta": np.array(meta)}))
    with pytest.raises(ArchiveError, match=r"a\.npz: is not a whole test"):
        read_archive(tmp_path / "a.npz", "test")


@pytest.mark.parametrize(
    ("shape", "rest"), [((2**40,), 8), ((2**30, 2**40), 8), ((-1,), 8), ((-1, -2), 8), ((0, 2**62), 8), ((3,), 8)]
)
def test_a_size_that_is_only_claimed_takes_no_memory(tmp_path: Path, shape: tuple[int, ...], rest: int) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file, file.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        member.write(bytes(rest))
    assert memory_of_a_refusal(path) < 1_000_000


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10_000_000))
    assert memory_of_a_refusal(tmp_path / "a.npz") < 1_000_000


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("other", ["meta.npy", "meta"])
def test_two_arrays_of_one_name_are_refused(tmp_path: Path, other: str) -> None:
    write_archive(tmp_path / "a.npz", "test", META, ARRAYS)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr(other, file.read("meta.npy"))
    with pytest.raises(ArchiveError, match="two arrays have one name"):
        read_archive(tmp_path / "a.npz", "test")


def test_what_is_compressed_is_not_unpacked(tmp_path: Path) -> None:
    """The decoders of zip have errors and memory of their own."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.npy", bytes(range(100)))
    with pytest.raises(ArchiveError, match="its arrays are compressed"):
        read_archive(tmp_path / "a.npz", "test")


def memory_of_a_refusal(path: Path) -> int:
    """The most bytes that were held on the way to the error."""
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=r"a\.npz: is not a whole test"):
            read_archive(path, "test")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def one_array(path: Path, descr: str, shape: tuple[int, ...], data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file, file.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": descr, "fortran_order": False, "shape": shape})
        member.write(data)


@pytest.mark.parametrize("shape", [(-1,), (0,), (3,), (2**62,), ()])
@pytest.mark.parametrize("descr", ["<U0", "|S0", "|V0"])
def test_an_array_of_nothing_is_refused(tmp_path: Path, descr: str, shape: tuple[int, ...]) -> None:
    """Of any shape it has the right number of bytes; of (-1,) NumPy would end the process."""
    one_array(tmp_path / "a.npz", descr, shape, b"")
    with pytest.raises(ArchiveError, match="an array holds nothing"):
        read_archive(tmp_path / "a.npz", "test")


@pytest.mark.parametrize("shape", [(-1, 0), (0, -5), (-2, -3)])
def test_a_negative_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    one_array(tmp_path / "a.npz", "<f4", shape, bytes(24 if 0 not in shape else 0))
    with pytest.raises(ArchiveError, match="an array claims the shape"):
        read_archive(tmp_path / "a.npz", "test")


NO_FILES = {"FIFO": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}


@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
@pytest.mark.parametrize("read", [read_archive, read_json], ids=["archive", "JSON"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, read: Any, make: Any) -> None:
    make(tmp_path / "a")
    with pytest.raises(ArchiveError, match=r"a: cannot be read as a test: (Not a regular file|Is a directory)"):
        read(tmp_path / "a", "test")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, "[" * 201 + "]" * 201, '{"a":' * 500 + "1" + "}" * 500]
)
def test_deep_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ArchiveError, match=r"a\.json: is not a whole test .*nested more than 200 levels"):
        read_json(tmp_path / "a.json", "test")
    (tmp_path / "a.json").write_text("[" * 199 + "]" * 199)
    assert read_json(tmp_path / "a.json", "test")


@pytest.mark.parametrize(
    ("meta", "arrays", "message"),
    [
        ({}, {"meta": np.ones(2)}, "'meta' is no name for an array"),
        ({}, {"a\0b": np.ones(2)}, "is no name for an array"),
        ({}, {"x" * 70_000: np.ones(2)}, "is no name for an array"),
        ({}, {"a": np.array([None])}, "an array holds objects"),
        ({}, {"a": np.zeros(2, "V0")}, "an array holds nothing"),
        ({}, {"a": np.zeros(2, [(f"{i}" * 50, "f4") for i in range(1000)])}, "version"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, meta: dict, arrays: dict, message: str) -> None:
    write_archive(tmp_path / "a.npz", "test", META, ARRAYS)
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(ValueError, match=message):
        write_archive(tmp_path / "a.npz", "test", meta, arrays)
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("descr", ["|O", "(2,)<f4"])
def test_no_object_is_made_of_bytes(tmp_path: Path, descr: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file, file.open("a.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": descr, "fortran_order": False, "shape": (1,)})
        member.write(bytes(range(8)))
    with pytest.raises(ArchiveError, match="an array holds objects or arrays"):
        read_archive(tmp_path / "a.npz", "test")


def test_a_file_lists_its_arrays(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.npz", "test", META, ARRAYS)
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file)
    arrays["c"] = arrays.pop("b")
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ArchiveError, match="missing or too many: b, c"):
        read_archive(tmp_path / "a.npz", "test")


def test_columns_first(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.npz", "test", {}, {"a": np.asfortranarray(ARRAYS["a/W"])})
    np.testing.assert_array_equal(read_archive(tmp_path / "a.npz", "test")[1]["a"], ARRAYS["a/W"])


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"none\.npz: there is no such test"):
        read_archive(tmp_path / "none.npz", "test")
    with pytest.raises(ArchiveError, match="cannot be read as a test: Is a directory"):
        read_archive(tmp_path, "test")


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.npz", "test", META, ARRAYS)
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(TypeError):
        write_archive(tmp_path / "a.npz", "test", {"what": object()}, ARRAYS)
    with pytest.raises(ZeroDivisionError):
        write_half(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def write_half(target: Path) -> None:
    with atomic_write(target) as path:
        path.write_text("half")
        raise ZeroDivisionError


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """Bytes changed, removed or put in, at places from 0 to 1."""
    kinds = st.sampled_from(["change", "remove", "insert", "cut"])
    return draw(st.lists(st.tuples(kinds, st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage())
def test_damaged_files_are_named_or_load_as_they_were(tmp_path: Path, changes: list[tuple[str, float, int]]) -> None:
    path = tmp_path / "a.npz"
    if not path.exists():
        write_archive(path, "test", META, ARRAYS)
    data = bytearray(path.read_bytes())
    for kind, where, byte in changes:
        at = int(where * len(data))
        if kind == "cut":
            del data[at:]
        elif kind == "insert":
            data.insert(at, byte)
        elif at < len(data):
            data[at : at + 1] = bytes([byte]) if kind == "change" else b""
    (tmp_path / "damaged.npz").write_bytes(data)
    try:
        meta, arrays = read_archive(tmp_path / "damaged.npz", "test")
    except ArchiveError:
        return
    assert {key: meta[key] for key in META} == META
    for name in set(arrays) & set(ARRAYS):  # a name stands outside of what has a checksum
        np.testing.assert_array_equal(arrays[name], ARRAYS[name])
