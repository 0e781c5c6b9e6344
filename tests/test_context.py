"""The context switch: what it sets and sets back, and every way in which CUDA can fail, by stand-ins for what is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from nnabla.utils import nvml

from nnshop import context as module
from nnshop.context import ContextError, ContextInUse, use_context

WORKING = """
import nnabla as nn

def context(device_id, type_config):
    backends = [f"@NAME@:{type_config}", "cpu:float"]  # NNabla takes the first that it has, here the CPU's
    return nn.Context(backends, "CpuCachedArray", device_id=device_id)
"""


def backend() -> str:
    return nn.get_current_context().backend[0]


def small_sum() -> np.ndarray:
    """1 + 1e-4: 1 in half precision."""
    y = F.add_scalar(nn.Variable.from_numpy_array(np.ones(1)), 1e-4)
    y.forward()
    return y.d


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable]:
    """Puts an extension of the given source beside NNabla's own, and a driver that shows some devices."""

    def install(source: str = WORKING, devices: int | Exception = 1) -> None:
        for name in ("cuda", "cudnn"):
            monkeypatch.delitem(sys.modules, f"nnabla_ext.{name}", raising=False)
            folder = tmp_path / "nnabla_ext" / name
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(source.replace("@NAME@", name))
        monkeypatch.syspath_prepend(str(tmp_path))

        def device_count() -> int:
            if isinstance(devices, Exception):
                raise devices
            return devices

        monkeypatch.setattr(module, "_device_count", device_count)
        monkeypatch.setattr(module, "_load_libraries", list)

    yield install
    for name in ("cuda", "cudnn"):  # before monkeypatch puts the real ones back
        sys.modules.pop(f"nnabla_ext.{name}", None)


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnabla_ext.cudnn", None)


class Driver:
    """The driver's library, as far as it is called."""

    def __init__(self, status: int, devices: int = 0, error: bytes | None = None) -> None:
        self.status, self.devices, self.error = status, devices, error

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0

    def cuGetErrorName(self, status: int, name: Any) -> int:
        name._obj.value = self.error
        return 0


# ------------------------------------------------------------------------------------------------------------ the switch


def test_call_sets_the_default_context() -> None:
    used = use_context("cpu", type_config="half")
    assert nn.get_current_context() is used.context
    assert used.name == "cpu"
    assert used.context.backend == ["cpu:half", "cpu:float"]
    assert used.context.array_class == "CpuCachedArray"


def test_cpu_computes_in_the_precision_asked_for() -> None:
    use_context("cpu")
    np.testing.assert_array_equal(small_sum(), np.float32([1.0001]))
    use_context("cpu", type_config="half")
    half = small_sum()
    assert half.dtype == np.float16
    assert half[0] == 1


def test_block_sets_the_previous_context_back() -> None:
    before = nn.get_current_context()
    with use_context("cpu", type_config="half") as used:
        assert isinstance(used, ContextInUse)
        assert small_sum().dtype == np.float16
    assert nn.get_current_context() is before
    assert small_sum().dtype == np.float32


def test_block_sets_it_back_after_an_exception() -> None:
    before = nn.get_current_context()
    with pytest.raises(ZeroDivisionError), use_context("cpu", type_config="half"):
        raise ZeroDivisionError
    assert nn.get_current_context() is before


def test_blocks_nest() -> None:
    seen = []
    use_context("cpu")
    with use_context("cpu", type_config="half"):
        seen.append(backend())
        with use_context("cpu"):
            seen.append(backend())
        seen.append(backend())
        use_context("cpu")  # a call inside ends with the block
        seen.append(backend())
    use_context("cpu", type_config="half")
    with use_context("cpu"):
        pass
    assert seen == ["cpu:half", "cpu:float", "cpu:half", "cpu:float"]
    assert backend() == "cpu:half"


def test_block_has_its_context_when_another_call_came_between() -> None:
    used = use_context("cpu", type_config="half")
    use_context("cpu")
    with used:
        assert backend() == "cpu:half"


def test_one_block_for_each_call() -> None:
    used = use_context("cpu")
    with used:
        pass
    with pytest.raises(ContextError, match=r"<cpu:float> is good for one `with` block\. Call use_context again"), used:
        pass


def test_nnabla_s_scope_is_refused_before_anything_is_set() -> None:
    scope = nn.Context(["cpu:half", "cpu:float"], "CpuCachedArray", "")
    with nn.context_scope(scope):
        with pytest.raises(ContextError, match=r"cannot be done inside nn\.context_scope\. Call it before, or"):
            use_context("cpu")
        assert nn.get_current_context() is scope
    with use_context("cpu"), nn.context_scope(scope):  # the other way round is fine
        assert backend() == "cpu:half"


# ---------------------------------------------------------------------------------------------------------- the arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpu",), r"context must be one of 'auto', 'cpu', 'cuda', 'cudnn'; got 'gpu'\."),
        ((None,), r"context must be one of .*; got None\."),
        (("cpu", 0, "double"), r"type_config must be one of 'float', 'half'; got 'double'\."),
        (("cpu", 0, "mixed_half"), r"type_config must be one of 'float', 'half'; got 'mixed_half'\."),
        (("auto", -1), r"device_id must be a whole number from 0, as int or str, such as '0'; got -1\."),
        (("auto", "one"), r"device_id must .*; got 'one'\."),
        (("auto", ""), r"device_id must .*; got ''\."),
        (("auto", "²"), r"device_id must .*; got '²'\."),
        (("auto", 1.0), r"device_id must .*; got 1\.0\."),
        (("auto", True), r"device_id must .*; got True\."),
        (("auto", None), r"device_id must .*; got None\."),
        (("cpu", 1), r"the CPU has none; got device_id=1\. Leave it out\."),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    before = nn.get_current_context()
    with pytest.raises(ValueError, match=message):
        use_context(*arguments)
    assert nn.get_current_context() is before


@pytest.mark.parametrize("device_id", [0, "0", "00", np.int64(0)])
def test_cpu_takes_the_default_device_id(device_id: Any) -> None:
    assert use_context("cpu", device_id).name == "cpu"


# -------------------------------------------------------------------------------------------------------- a working device


@pytest.mark.parametrize(("asked", "name"), [("auto", "cudnn"), ("cudnn", "cudnn"), ("cuda", "cuda")])
def test_cuda_that_answers_is_used(install: Callable, asked: str, name: str) -> None:
    install(devices=2)
    used = use_context(asked, device_id=1)
    assert nn.get_current_context() is used.context
    assert (used.name, used.note) == (name, "")
    assert used.context.backend[0] == f"{name}:float"
    assert used.context.device_id == "1"
    assert repr(used) == f"<{name}:float, device 1>"


@pytest.mark.parametrize("context", ["auto", "cudnn", "cuda"])
def test_half_reaches_the_device(install: Callable, context: str) -> None:
    install()
    assert use_context(context, "0", "half").context.backend[0].endswith(":half")


@pytest.mark.parametrize("auto_forward", [False, True])
def test_trying_the_device_works_in_both_modes_and_leaves_nothing(install: Callable, auto_forward: bool) -> None:
    install()
    nn.set_auto_forward(auto_forward)
    use_context("cudnn")
    assert nn.get_auto_forward() is auto_forward
    assert not nn.get_parameters()


# ------------------------------------------------------------------------------------------------------------ CUDA absent


def absent(message: str) -> None:
    before = nn.get_current_context()
    for name in ("cuda", "cudnn"):
        with pytest.raises(ContextError, match=f"^context='{name}' needs a CUDA device, but {message}.*Or use context='cpu'"):
            use_context(name)
        assert nn.get_current_context() is before
    with pytest.raises(ContextError, match=f"^type_config='half' with context='auto' needs .* but {message}.*'float'"):
        use_context("auto", type_config="half")
    assert nn.get_current_context() is before
    used = use_context("auto", device_id=1)
    assert (used.name, used.context.backend) == ("cpu", ["cpu:float"])
    assert nn.get_current_context() is used.context
    assert repr(used).startswith("<cpu:float: ")
    assert used.note in repr(used)
    small_sum()


def test_no_extension(no_extension: None) -> None:
    absent(r"NNabla's CUDA extension is not installed: `pip install 'nnshop\[cuda120\]'`")


def test_no_driver(install: Callable) -> None:
    install("raise AssertionError('imported')", OSError("libcuda.so.1: cannot open shared object file"))
    absent(r"there is no NVIDIA driver \(libcuda.so.1: cannot open shared object file\): install it;")


def test_no_device(install: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    install("raise AssertionError('imported')", 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    absent(r"the NVIDIA driver shows no device: `nvidia-smi` lists what it has\.")


def test_hidden_device(install: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    install(devices=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ContextError, match=r"shows no device: .*, and CUDA_VISIBLE_DEVICES='' may hide one: unset it\."):
        use_context("cudnn")


# --------------------------------------------------------------------------------- CUDA there and broken: "auto" says so too


def broken(message: str) -> None:
    before = nn.get_current_context()
    for name in ("auto", "cudnn", "cuda"):
        with pytest.raises(ContextError, match=message):
            use_context(name)
        assert nn.get_current_context() is before


def test_missing_library(install: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    install("raise ImportError('libcublas.so.12: cannot open shared object file')")
    broken(
        r"is installed, but does not load: ImportError: libcublas\.so\.12: cannot open shared object file\. Install .*"
        r"`pip install 'nnshop\[cuda120\]'`\. Or use context='cpu'\."
    )
    monkeypatch.setattr(module, "_load_libraries", lambda: ["libcublas.so.12: file too short", "libcudnn.so.8: bad"])
    broken(r"shared object file\. \(Loading libcublas\.so\.12: file too short; libcudnn\.so\.8: bad\) Install")


def test_library_that_the_extension_fails_to_load_itself(install: Callable) -> None:
    install("raise OSError('libnnabla_cuda-120_8.so: undefined symbol: x')")
    broken(r"does not load: OSError: libnnabla_cuda-120_8\.so: undefined symbol: x\. Install")


def test_a_module_that_is_missing_inside_the_extension(install: Callable) -> None:
    install("import no_such_module")
    broken(r"is installed, but does not load: ModuleNotFoundError: No module named 'no_such_module'\. Install")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("IndexError('list index out of range')", r"IndexError: list index out of range\."),
        (f"nvml.NVMLError({nvml.NVML_ERROR_LIBRARY_NOT_FOUND})", r"NVMLError: NVML Shared Library Not Found\."),
        ("RuntimeError('error in x\\n/a/b.cpp:30\\nout of memory.\\n')", r"RuntimeError: out of memory\. Check"),
        ("RuntimeError()", r"RuntimeError: no message\."),
    ],
)
def test_device_that_gives_no_context(install: Callable, error: str, message: str) -> None:
    install(f"from nnabla.utils import nvml\ndef context(device_id, type_config): raise {error}")
    broken(rf"^CUDA device 0 does not compute: {message}.*`nvidia-smi`.*Or use context='cpu'\.$")


def test_device_that_cannot_compute(install: Callable) -> None:
    install("import nnabla as nn\ndef context(device_id, type_config): return nn.Context(['cudnn:float'], '', device_id)")
    broken(r"^CUDA device 0 does not compute: RuntimeError: .*\[cudnn:float\] could not be found in")


def test_device_that_computes_wrong_numbers(install: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setattr(F, "tanh", lambda x: F.mul_scalar(x, 0.0))
    broken(r"CUDA device 0 computes wrong numbers: tanh\(1\) gave 0\.0\.")


@pytest.mark.parametrize(("devices", "shown"), [(1, "only device_id='0' is there"), (3, "device_id='0' to '2' are there")])
def test_device_id_that_is_not_there(install: Callable, devices: int, shown: str) -> None:
    install(devices=devices)
    for name in ("auto", "cudnn", "cuda"):
        with pytest.raises(ContextError, match=rf"There is no CUDA device 3: {shown}\. CUDA_VISIBLE_DEVICES"):
            use_context(name, device_id="3")


# ---------------------------------------------------------------------------------------------- the driver and the libraries


def test_driver_counts_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name) or Driver(0, devices=3))
    assert module._device_count() == 3
    assert asked == ["libcuda.so.1"]


def test_driver_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(100))
    assert module._device_count() == 0


@pytest.mark.parametrize(
    ("error", "shown"), [(b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "CUDA_ERROR_SYSTEM_D.*"), (None, "unknown")]
)
def test_driver_that_does_not_work(install: Callable, monkeypatch: pytest.MonkeyPatch, error: bytes | None, shown: str) -> None:
    count = module._device_count
    install()
    monkeypatch.setattr(module, "_device_count", count)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(803, error=error))
    broken(rf"^The NVIDIA driver does not work: {shown} \(803\)\. Check it with `nvidia-smi`; .*Or use context='cpu'")


def test_libraries_of_the_wheels_are_loaded_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = ["cuda_runtime/lib/libcudart.so.12", "cublas/lib/libcublasLt.so.12", "cudnn/lib/libcudnn.so.8"]
    for name in [*reversed(wanted), "cudnn/lib/libcudnn.so.9", "cublas/lib/libnvblas.so.12", "cu13/lib/libcudart.so.13"]:
        path = tmp_path / "nvidia" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    loaded = []
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", loaded.append)
        assert module._load_libraries() == []
    assert loaded == [str(tmp_path / "nvidia" / name) for name in wanted]
    problems = module._load_libraries()  # with the real loader: the files are empty
    assert [problem.split(":")[0] for problem in problems] == ["libcudart.so.12", "libcublasLt.so.12", "libcudnn.so.8"]
    assert "file too short" in problems[0]


def test_no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    assert module._load_libraries() == []


# ------------------------------------------------------------------------------------------------------------ the real thing


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


has_extension = importlib.util.find_spec("nnabla_ext.cudnn") is not None


@pytest.mark.skipif(not has_extension, reason="nnabla-ext-cuda120 is not installed")
@pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver")
def test_real_extension_without_a_driver() -> None:
    with pytest.raises(ContextError, match=r"there is no NVIDIA driver \(libcuda\.so\.1: cannot open shared object file"):
        use_context("cudnn")
    assert use_context("auto").name == "cpu"
    with pytest.raises(ContextError, match=r"does not load: ImportError: libcuda\.so\.1: cannot open"):
        module._import_extension("cudnn")  # nothing else is missing: the wheels' libraries are loaded
    assert module._load_libraries() == []


@pytest.mark.skipif(has_extension, reason="nnabla-ext-cuda120 is installed")
def test_real_absence_of_the_extension() -> None:
    with pytest.raises(ContextError, match="CUDA extension is not installed"):
        use_context("cudnn")
