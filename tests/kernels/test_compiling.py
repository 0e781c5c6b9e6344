"""Compiled kernels are kept on disk, and work where the disk cannot be written; each test starts processes of its own."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from nnshop.kernels import compiling

FIT = """
import nnabla as nn, numpy as np, nnshop
cell = nnshop.SimpleRNNCell(5, w_init=np.full((4, 5), 0.1), recurrent_w_init=np.full((5, 5), 0.2))
found = []
for way in ("fused", "unrolled"):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 3, 4), need_grad=True)
    ys, _ = nnshop.run(cell, x, way=way)
    x.grad.zero()
    ys.forward()
    ys.backward()
    found += [round(float((ys.d**2).sum()), 3), round(float((x.g**2).sum()), 3)]
print(*found)
"""


def in_a_process(program: str, warned: int = 0, **environment: object) -> str:
    """The last line that it prints, with the folders of this process unless they are given, and so many warnings."""
    variables = {name: v for name, v in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    variables.update({name: str(v) for name, v in environment.items()}, OMP_NUM_THREADS="1")
    command = [sys.executable, "-W", "always", "-c", program]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Warning: ") == warned, done.stderr
    return done.stdout.strip().splitlines()[-1]


def compiled_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file below a folder, when it was written, and its number on the disk."""
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.rglob("*") if p.is_file()}


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    first = in_a_process(FIT, NUMBA_CACHE_DIR=tmp_path / "kernels", HOME=tmp_path)
    assert first.split()[:2] == first.split()[2:]  # fused, and unrolled
    files = compiled_files(tmp_path)
    kept = [name for name in files if name.endswith(".nbc")]
    assert any("simple_rnn" in name for name in kept)
    assert any("gemm" in name for name in kept)
    assert all(name.startswith("kernels/nnshop/") for name in files)
    assert in_a_process(FIT, NUMBA_CACHE_DIR=tmp_path / "kernels", HOME=tmp_path) == first
    assert compiled_files(tmp_path) == files


def test_numba_is_told_not_to_compile() -> None:
    found = in_a_process(FIT.replace("fused", "auto"), warned=1, NUMBA_DISABLE_JIT=1).split()
    assert found[:2] == found[2:]


COMPILE = """
import numpy as np
from nnshop.kernels.compiling import cache_folder, compiled, compiled_once

@compiled_once("ii")
def inner(a, b):
    pass

@compiled("vi")
def double(x, n):
    inner(n, n)
    for i in range(x.size):
        x[i] *= 2

x = np.arange(3, dtype=np.float32)
double(x, 1)
print(cache_folder(), x.tolist())
"""


def test_nothing_can_be_written(tmp_path: Path) -> None:
    """A folder below a regular file cannot be made, not by root either; compiled each time then."""
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "folder"
    assert in_a_process(COMPILE, HOME=nowhere, XDG_CACHE_HOME=nowhere, NUMBA_CACHE_DIR=nowhere) == "None [0.0, 2.0, 4.0]"
    assert list(compiled_files(tmp_path)) == ["file"]


@pytest.fixture
def _look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "cache_folder", compiling.cache_folder.__wrapped__)
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _look_again: None) -> Callable[[int], None]:
    """Runs the program from a file, as numba keeps nothing of what was typed in, and counts the warnings."""
    (tmp_path / "program.py").write_text(COMPILE)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))

    def run(warned: int) -> None:
        monkeypatch.setattr(compiling, "_FAILURES", [])
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            assert runpy.run_path(str(tmp_path / "program.py"), run_name="program")["x"].tolist() == [0, 2, 4]
        assert len(found) == warned

    return run


def test_damaged_files_are_made_anew(tmp_path: Path, keeping: Callable[[int], None]) -> None:
    keeping(0)
    of_double, of_inner = (next((tmp_path / "kept").rglob(f"program.{name}-*.nbc")) for name in ("double", "inner"))
    index, other = (file.with_suffix("").with_suffix(".nbi") for file in (of_inner, of_double))
    for file, content, warned in [
        (index, index.read_bytes()[:20], 1),
        (index, b"", 1),
        (index, other.read_bytes(), 0),
        (of_double, of_double.read_bytes()[:1000], 1),
        (of_double, b"", 1),
        (of_double, b"hello", 1),
        (of_inner, of_double.read_bytes(), 1),
    ]:
        file.write_bytes(content)
        keeping(warned)
        files = compiled_files(tmp_path / "kept")
        keeping(0)
        assert compiled_files(tmp_path / "kept") == files


def test_the_disk_is_full(tmp_path: Path, keeping: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile._save_data", fail)
    keeping(1)
    assert not list((tmp_path / "kept").rglob("*.nbc"))


@pytest.mark.usefixtures("_look_again")
def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    digests = set()

    def below(folder: Path) -> bool:
        found = compiling.cache_folder()
        assert found is not None
        assert found.is_dir()
        assert not list(found.iterdir())
        digests.add(found.name)
        return found.parent == folder / "nnshop"

    assert below(tmp_path / "home" / ".cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert below(tmp_path / "xdg")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert below(tmp_path / "numba")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "numba"))
    assert below(tmp_path / "xdg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "xdg"))
    assert compiling.cache_folder() is None
    assert len(digests) == 1


@pytest.mark.usefixtures("_look_again")
def test_another_text_of_a_kernel_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    sources = tmp_path / "kernels"
    sources.mkdir()
    for source in Path(compiling.__file__).parent.glob("*.py"):
        (sources / source.name).write_bytes(source.read_bytes())
    before = compiling.cache_folder()
    monkeypatch.setattr(compiling, "__file__", str(sources / "compiling.py"))
    assert compiling.cache_folder() == before
    with (sources / "activations.py").open("a") as file:
        file.write("# changed\n")
    assert compiling.cache_folder() != before


@pytest.mark.usefixtures("_look_again")
def test_another_machine_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where numba is told to compile for any, as the width of our vectors is that of the machine."""
    import numba
    from llvmlite import binding

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "CPU_NAME", "generic")
    before = compiling.cache_folder()
    features = binding.get_host_cpu_features()
    features["avx512f"] = not features["avx512f"]
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
    other = compiling.cache_folder()
    monkeypatch.setattr(numba.config, "CPU_NAME", None)
    assert len({before, other, compiling.cache_folder()}) == 3


def test_numba_s_own_folder_setting_is_put_back() -> None:
    import numba

    before = numba.config.CACHE_DIR
    doubled = compiling.compiled("v")(double)
    assert numba.config.CACHE_DIR == before
    x = np.arange(3, dtype=np.float32)
    doubled(x)
    assert x.tolist() == [0, 2, 4]


def double(x: np.ndarray) -> None:
    for i in range(x.size):
        x[i] *= 2
