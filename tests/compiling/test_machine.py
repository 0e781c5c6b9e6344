"""Programs from text: compiled once, kept as long as somebody uses them, and the same from the disk."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")

from nnshop.compiling import machine, store


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "_warned", False)
    monkeypatch.setenv("NNSHOP_CACHE_DIR", str(tmp_path))
    forget()
    return store.folder()


def adding(number: float, name: str = "f") -> str:
    """A module with a function that adds a number, which stands in memory, to a float32; `twin` does so twice."""
    return f"""
@number = internal constant float {number:e}
define void @{name}(ptr %x) {{
  %a = load float, ptr %x
  %b = load float, ptr @number
  %c = fadd float %a, %b
  store float %c, ptr %x
  ret void
}}
define void @twin(ptr %x) {{
  call void @{name}(ptr %x)
  call void @{name}(ptr %x)
  ret void
}}
"""


def result(function) -> float:
    number = ctypes.c_float(1)
    function(ctypes.addressof(number))
    return number.value


def compiled(text: str, *names: str) -> list[float]:
    program = machine.load(text, names)
    return [result(program.function(name, ctypes.c_int64)) for name in names]


@pytest.fixture
def _nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(machine, "_compile", refuse)


def forget() -> None:
    """What nobody holds is no longer in memory."""
    machine._recent.clear()
    gc.collect()


def test_functions_compute() -> None:
    assert compiled(adding(2.5), "f", "twin") == [3.5, 6.0]


def test_a_text_is_compiled_once() -> None:
    first = machine.load(adding(1), ["f", "twin"])
    assert machine.load(adding(1), ["f", "twin"]) is first
    assert machine.load(adding(2), ["f", "twin"])["f"] != first["f"]


def test_programs_come_from_the_disk(place: Path, request: pytest.FixtureRequest) -> None:
    assert compiled(adding(4), "f", "twin") == [5.0, 9.0]
    (path,) = place.iterdir()
    before = path.stat().st_ino
    forget()
    request.getfixturevalue("_nothing_compiles")
    assert compiled(adding(4), "f", "twin") == [5.0, 9.0]
    assert path.stat().st_ino == before


def test_all_that_the_code_depends_on_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {machine._digest(adding(4)), machine._digest(adding(5))}
    target = machine._target()
    for changed in (target._replace(features=""), target._replace(lanes=2), target._replace(has_fma=not target.has_fma)):
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_target", lambda changed=changed: changed)
            names.add(machine._digest(adding(4)))
    for module, name in ((machine, "__version__"), (machine.llvmlite, "__version__"), (machine.llvm, "llvm_version_info")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, "another")
            names.add(machine._digest(adding(4)))
    assert len(names) == 8


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "zeroed", "foreign"])
def test_a_damaged_object_is_compiled_anew(damage: str, place: Path) -> None:
    assert compiled(adding(6), "f") == [7.0]
    (path,) = place.iterdir()
    raw = path.read_bytes()
    flipped = raw[:200] + bytes([raw[200] ^ 4]) + raw[201:]
    changed = {"empty": b"", "half": raw[: len(raw) // 2], "flipped": flipped, "zeroed": bytes(len(raw)), "foreign": b"x" * 900}
    path.write_bytes(changed[damage])
    forget()
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert compiled(adding(6), "f") == [7.0]
    assert path.read_bytes() == raw


def test_where_nothing_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NNSHOP_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="compiled anew"):
        assert compiled(adding(7), "f") == [8.0]
    forget()
    assert compiled(adding(7), "f") == [8.0]


def test_a_program_in_use_stays_and_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "KEPT", 3)
    held = machine.load(adding(100), ["f"]).function("f", ctypes.c_int64)
    alive = [weakref.ref(machine.load(adding(number), ["f"])) for number in range(6)]
    gc.collect()
    assert [made() is not None for made in alive] == [False, False, False, True, True, True]
    assert len(machine._recent) == 3
    assert result(held) == 101.0
    assert machine.load(adding(100), ["f"]) is held.program


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("define void @f() { ret float 3 }", "integer constant must have integer type"),
        ("define float @f(float %x) {\n  br label %b\nb:\n  %y = fadd float %z, %x\n  %z = fadd float %x, %x\n"
         "  ret float %y\n}", "dominate"),
        ("declare void @nnshop_nobody()\ndefine void @f() {\n  call void @nnshop_nobody()\n  ret void\n}", "f"),
        ("define void @g() {\n  ret void\n}", "not found: .*f"),
    ],
)  # fmt: skip
def test_errors_are_raised(text: str, message: str) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            machine.load(text, ["f"])


def test_a_function_that_is_provided_is_called() -> None:
    seen: list[int] = []
    told = ctypes.CFUNCTYPE(None, ctypes.c_int64)(seen.append)
    asked: list[str] = []

    def address() -> int:
        asked.append("asked")
        return ctypes.cast(told, ctypes.c_void_p).value or 0

    machine.provide("nnshop_test_tell", address)
    assert compiled(adding(8), "f") == [9.0]
    assert not asked  # this program does not call it
    text = "declare void @nnshop_test_tell(i64)\ndefine void @f(i64 %x) {\n  call void @nnshop_test_tell(i64 %x)\n  ret void\n}"
    for _ in range(2):
        machine.load(text, ["f"]).function("f", ctypes.c_int64)(17)
        forget()
    assert seen == [17, 17]
    machine._provided.pop("nnshop_test_tell")


def test_functions_of_the_c_library_are_found() -> None:
    text = """
declare float @llvm.log.f32(float)
define void @f(ptr %x) {
  %a = load float, ptr %x
  %b = call float @llvm.log.f32(float %a)
  store float %b, ptr %x
  ret void
}
"""
    number = ctypes.c_float(2)
    machine.load(text, ["f"]).function("f", ctypes.c_int64)(ctypes.addressof(number))
    assert abs(number.value - 0.6931472) < 1e-7


def test_threads_at_once() -> None:
    found: list[tuple[int, list[float]]] = []

    def work(first: int) -> None:
        for number in range(first, first + 12):
            found.append((number % 10, compiled(adding(200 + number % 10), "f", "twin")))

    threads = [threading.Thread(target=work, args=(3 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 72
    assert all(values == [201.0 + n, 401.0 + 2 * n] for n, values in found)


SAYS = "from nnshop.compiling import machine as m; print(m.lanes(), m.has_fma(), m._target().features)"


@pytest.mark.parametrize("wanted", ["4", "8"])
def test_the_target_can_be_restricted(wanted: str) -> None:
    if int(wanted) > machine.lanes():
        pytest.skip(f"this processor has vectors of {machine.lanes()} numbers")
    done = in_a_process(SAYS, wanted)
    full = int(wanted) == machine.lanes()
    assert full or done.stdout.split("\n")[-2] == {"4": "4 False ", "8": "8 True +avx2,+fma"}[wanted]


@pytest.mark.parametrize("wanted", ["32", "-4", "wide", "2"])
def test_a_target_that_is_not_there(wanted: str) -> None:
    """In this process: a new one would cost two seconds for each."""
    known = os.environ.get("NNSHOP_LANES")
    os.environ["NNSHOP_LANES"] = wanted
    try:
        with pytest.raises(ValueError, match=f"NNSHOP_LANES.*{wanted}"):
            machine._target.__wrapped__()
    finally:
        del os.environ["NNSHOP_LANES"]
        if known is not None:
            os.environ["NNSHOP_LANES"] = known


def in_a_process(program: str, lanes: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NNSHOP_LANES": lanes, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
