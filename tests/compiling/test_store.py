"""The cache on the disk: nothing that is damaged, or that others could have written, is used, and no fault stops a program."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnshop.compiling import store

KEY, CONTENT = "a" * 64, bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs are kept; each test hears its own warning."""
    monkeypatch.setattr(store, "_warned", False)
    monkeypatch.setenv("NNSHOP_CACHE_DIR", str(tmp_path / "cache"))
    return store.folder()


def kept(place: Path) -> Path:
    """The file of KEY, once it is written."""
    store.write(KEY, CONTENT)
    assert store.read(KEY) == CONTENT
    return place / KEY


def test_what_was_written_is_read(place: Path) -> None:
    assert store.read(KEY) is None
    kept(place)
    store.write(KEY, b"")
    assert store.read(KEY) == b""
    assert os.listdir(place) == [KEY]


def test_others_get_no_access(place: Path) -> None:
    path = kept(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def damaged(raw: bytes) -> dict[str, bytes]:
    flipped = [bytearray(raw) for _ in range(4)]
    for i, place in enumerate((0, 20, len(raw) // 2, len(raw) - 1)):
        flipped[i][place] ^= 1 << i
    return {
        "empty": b"", "one byte": raw[:1], "header": raw[:17], "half": raw[: len(raw) // 2], "cut": raw[:-1],
        "longer": raw + b"\0",         "zeroed": bytes(len(raw)), "end zeroed": raw[:-100] + bytes(100),
        "foreign": b"\x7fELF" + os.urandom(5000), "text": b"hello\n",
        **{f"flipped {i}": bytes(bits) for i, bits in enumerate(flipped)},
    }  # fmt: skip


@pytest.mark.parametrize("kind", damaged(b"0" * 1000))
def test_what_is_damaged_is_refused_and_replaced(kind: str, place: Path) -> None:
    path = kept(place)
    path.write_bytes(damaged(path.read_bytes())[kind])
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert store.read(KEY) is None
    kept(place)


def test_what_belongs_to_another_key_is_refused(place: Path) -> None:
    kept(place).rename(place / ("b" * 64))
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert store.read("b" * 64) is None


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_write_to_is_refused(mode: int, place: Path) -> None:
    kept(place)
    place.chmod(mode)
    with pytest.warns(RuntimeWarning, match="others may write"):
        assert store.read(KEY) is None
    before = (place / KEY).stat().st_ino
    store.write(KEY, CONTENT)
    assert (place / KEY).stat().st_ino == before


def test_a_file_that_others_write_to_is_refused(place: Path) -> None:
    kept(place).chmod(0o666)
    with pytest.warns(RuntimeWarning, match="others may write"):
        assert store.read(KEY) is None


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_belongs_to_another_user_is_refused(what: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept(place)
    if os.geteuid() == 0:
        os.chown(path if what == "file" else place, 4242, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.warns(RuntimeWarning, match="another user"):
        assert store.read(KEY) is None


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_not_a_file_is_not_read(kind: str, place: Path, tmp_path: Path) -> None:
    path = kept(place)
    path.rename(tmp_path / "elsewhere")
    {"link": lambda: path.symlink_to(tmp_path / "elsewhere"), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert store.read(KEY) is None


def test_a_place_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NNSHOP_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        store.write(KEY, CONTENT)
    assert store.read(KEY) is None


def test_one_warning_for_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NNSHOP_CACHE_DIR", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(3):
            store.write(KEY, CONTENT)
    assert len(heard) == 1


def test_where_programs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.folder().parent == tmp_path / "cache"
    monkeypatch.delenv("NNSHOP_CACHE_DIR")
    assert store.folder().parent == tmp_path / "xdg"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert store.folder().parent == tmp_path / "home" / ".cache"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NNSHOP_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.warns(RuntimeWarning, match="home directory"):
        assert store.read(KEY) is None
    store.write(KEY, CONTENT)


def test_what_was_not_used_for_long_goes_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LIMIT", 6000)
    for i, key in enumerate("abcde"):
        store.write(key, bytes(1900))
        os.utime(place / key, (1000 + i, 1000 + i))
        if key == "b":
            (place / "a").exists()
            assert store.read("a") is not None  # used: now it is younger than b
    assert sorted(os.listdir(place)) == ["a", "d", "e"]
    assert sum(path.stat().st_size for path in place.iterdir()) <= 6000


def test_what_was_never_finished_is_removed(place: Path) -> None:
    kept(place)
    for name, age in (("old.1234", 7200), ("new.1234", 60)):
        (place / name).write_bytes(b"half")
        os.utime(place / name, (time.time() - age,) * 2)
    kept(place)
    assert sorted(os.listdir(place)) == [KEY, "new.1234"]


LIMITED = """
import resource, sys, warnings
from pathlib import Path
from nnshop.compiling import store
store.write("small", b"x")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    store.write("large", bytes(5000))
    store.write("large", bytes(5000))
names = sorted(path.name for path in store.folder().iterdir())
print(len(heard), heard[0].category.__name__, names, store.read("small"), store.read("large"))
"""


def test_a_full_disk(place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n")[-2] == "1 RuntimeWarning ['small'] b'x' None", done.stderr


READ_ONLY = """
import os, warnings
from nnshop.compiling import store
if os.geteuid() == 0:  # root may write anywhere
    os.chown(store.folder(), 65534, 65534)
    os.chown(store.folder() / "key", 65534, 65534)
    os.setuid(65534)
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    found = store.read("key")
    store.write("other", b"x")
    store.write("other", b"x")
print(found, [str(w.message)[:50] for w in heard])
"""


def test_a_read_only_folder_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)  # the other user walks through it
        monkeypatch.setenv("NNSHOP_CACHE_DIR", base)
        store.write("key", b"content")
        store.folder().chmod(0o500)
        done = subprocess.run([sys.executable, "-c", READ_ONLY], capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.split("\n")[-2] == "b'content' ['The cache of compiled programs cannot be written (']", done.stderr
        store.folder().chmod(0o700)


TWO = """
import sys
from nnshop.compiling import store
print("ready", flush=True)
sys.stdin.readline()
for i in range(400):
    store.write("key", bytes([i % 251]) * 20000)
    found = store.read("key")
    assert found is not None and len(set(found)) == 1 and len(found) == 20000
print("done")
"""


def test_two_processes_at_once(place: Path) -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", TWO]
    both = [subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
    for process in both:
        out, error = process.communicate("go\n", timeout=120)
        assert out.endswith("done\n"), error
    assert os.listdir(place) == ["key"]


def test_a_file_that_another_process_renames_meanwhile_is_passed_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(place)
    scandir = os.scandir

    @contextlib.contextmanager
    def vanishing(folder: int) -> Iterator[list[os.DirEntry]]:
        """The entries of a folder, of which one is gone when it is looked at."""
        os.close(os.open("gone", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=folder))
        entries = [*scandir(folder)]
        os.unlink("gone", dir_fd=folder)
        yield entries

    monkeypatch.setattr(os, "scandir", vanishing)
    store.write("b" * 64, CONTENT)  # without the warning that the cache cannot be written
    assert store.read("b" * 64) == CONTENT
