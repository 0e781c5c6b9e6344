"""Where NNabla computes: on the CPU, or on a CUDA device.

NNabla takes a hand-made CUDA context without the extension and computes on the CPU, saying nothing. Here, what was asked
for is what runs, or there is an error that names the cause and the fix.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType, TracebackType

import nnabla as nn
import nnabla.context
import nnabla.functions as F
import nnabla_ext.cpu
import numpy as np
from nnabla.utils.nvml import NVMLError

CONTEXTS = ("auto", "cpu", "cuda", "cudnn")
# NNabla has "mixed_half" too, but no function of it in 1.39: it would compute in another precision, saying nothing.
TYPE_CONFIGS = ("float", "half")

# What nnabla-ext-cuda120 is linked against or opens later, each after those that it needs itself. Exact versions: beside
# them may lie those of another package, for another CUDA.
_LIBRARIES = (
    "libcudart.so.12",
    "libnvrtc.so.12",
    "libnvJitLink.so.12",
    "libcublasLt.so.12",
    "libcublas.so.12",
    "libcusolver.so.11",
    "libcurand.so.10",
    "libcufft.so.11",
    "libcudnn.so.8",
    "libnccl.so.2",  # for several GPUs
)
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE of the driver's interface
_CPU_INSTEAD = "Or use context='cpu'."


class ContextError(RuntimeError):
    """The context that was asked for cannot compute here; the message says why, and what to do."""


class ContextInUse:
    """What `use_context` set; as a `with` block, it sets back the context that was there before the call.

    Attributes:
        name (str): "cpu", "cuda" or "cudnn".
        context (nnabla.Context): NNabla's own, for `nn.context_scope` and the like.
        note (str): Why "auto" took the CPU; else empty.
    """

    def __init__(self, name: str, context: nn.Context, note: str = "") -> None:
        self.name, self.context, self.note = name, context, note
        self._previous = nn.get_current_context()
        self._entered = False
        nn.set_default_context(context)

    def __enter__(self) -> ContextInUse:
        if self._entered:
            raise ContextError(f"{self} is good for one `with` block. Call use_context again for another.")
        self._entered = True
        nn.set_default_context(self.context)  # the call did that, but another one may have come between
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        nn.set_default_context(self._previous)

    def __repr__(self) -> str:
        device = f", device {self.context.device_id}" if self.name != "cpu" else ""
        return f"<{self.context.backend[0]}{device}{self.note and f': {self.note}'}>"


def use_context(context: str = "auto", device_id: int | str = "0", type_config: str = "float") -> ContextInUse:
    """Sets where NNabla computes, for the whole process, from this call on; as a `with` block, until its end.

    A CUDA context is tried by a small computation before it is set. The shared libraries of NVIDIA's wheels are loaded from
    where pip put them, so `LD_LIBRARY_PATH` is not needed.

    Args:
        context (str): "cpu"; "cudnn", CUDA with cuDNN; "cuda", CUDA without it; "auto", cudnn where a CUDA device answers,
            else cpu.
        device_id (int or str): Which of the CUDA devices that the driver shows; "auto" ignores it where it takes the CPU.
        type_config (str): "float", or "half" for 16 bits. The CPU computes in half too, but hundreds of times slower.

    Returns:
        ContextInUse: Shows what is in use, has the NNabla Context as `.context`, and is a context manager.

    Raises:
        ValueError: An unknown context, type_config or device_id, or a device_id for the CPU.
        ContextError: CUDA was asked for and cannot be used; or "auto" found a CUDA device that cannot be used; or "auto" with
            "half" found no CUDA; or the call is inside `nn.context_scope`.

    Example:
        >>> from nnshop.context import use_context
        >>> with use_context("cpu") as used:
        ...     print(used, used.context.backend)
        <cpu:float> ['cpu:float']
    """
    device = _check_arguments(context, device_id, type_config)
    absence = "" if context == "cpu" else why_not_cuda()
    if absence:
        _check_cpu_will_do(context, type_config, absence)
    if context == "cpu" or absence:
        return ContextInUse("cpu", nnabla_ext.cpu.context(type_config=type_config), absence)
    name = "cudnn" if context == "auto" else context
    return ContextInUse(name, _cuda_context(name, device, type_config))


def on_host(context: nn.Context) -> bool:
    """Whether what a context computes lies in the memory that NumPy reads."""
    return context.backend[0].startswith("cpu")


def in_half(context: nn.Context) -> bool:
    """Whether a context computes in 16 bits."""
    return context.backend[0].endswith(":half")


def in_float32(wanted: bool = True) -> AbstractContextManager:
    """Makes a block whose functions compute in 32 bits, in a context of 16 too: for ids, counts and sums.

    16 bits hold whole numbers up to 2048 only, and sums up to 65504.

    Args:
        wanted (bool): Else the block changes nothing.

    Example:
        >>> from nnshop.context import in_float32, use_context
        >>> ids = nn.Variable.from_numpy_array(np.array([2049.]))
        >>> with use_context("cpu", type_config="half"), in_float32():
        ...     y = ids * 1
        >>> y.forward(); float(y.d[0])
        2049.0
    """
    current = nn.get_current_context()
    if not wanted or not in_half(current):
        return nullcontext()
    backend = [name.replace(":half", ":float") for name in current.backend]
    return nn.context_scope(nn.Context(backend, current.array_class, current.device_id))


def _check_arguments(context: str, device_id: int | str, type_config: str) -> str:
    """Returns the device id in NNabla's form."""
    if context not in CONTEXTS:
        raise ValueError(f"context must be one of {', '.join(map(repr, CONTEXTS))}; got {context!r}.")
    if type_config not in TYPE_CONFIGS:
        raise ValueError(f"type_config must be one of {', '.join(map(repr, TYPE_CONFIGS))}; got {type_config!r}.")
    digits = str(device_id)
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"device_id must be a whole number from 0, as int or str, such as '0'; got {device_id!r}.")
    if context == "cpu" and int(digits):
        raise ValueError(f"device_id chooses a CUDA device, the CPU has none; got device_id={device_id!r}. Leave it out.")
    if nnabla.context.context_level:
        raise ContextError(
            "use_context sets NNabla's default context, which cannot be done inside nn.context_scope. Call it before, or "
            "write `with use_context(...):` in place of nn.context_scope."
        )
    return str(int(digits))


def _check_cpu_will_do(context: str, type_config: str, absence: str) -> None:
    """Raises ContextError where CUDA is absent, and the CPU is not what the caller would want in its place."""
    if context != "auto":
        raise ContextError(f"context={context!r} needs a CUDA device, but {absence}. {_CPU_INSTEAD}")
    if type_config == "half":
        raise ContextError(
            f"type_config='half' with context='auto' needs a CUDA device, but {absence}. Use type_config='float'; or, if you "
            f"do want half precision on the CPU, hundreds of times slower, context='cpu'."
        )


def why_not_cuda() -> str:
    """Tells why there is no CUDA here, and what to do; empty where the driver shows a device.

    Raises:
        ContextError: There is a driver, and it does not work.

    Example:
        >>> from nnshop.context import why_not_cuda
        >>> isinstance(why_not_cuda(), str)
        True
    """
    # Asks the driver itself: importing the extension is slow, prints, and succeeds where there is a driver but no device.
    if importlib.util.find_spec("nnabla_ext.cudnn") is None:
        return "NNabla's CUDA extension is not installed: `pip install 'nnshop[cuda120]'`"
    try:
        count = _device_count()
    except OSError as error:
        return (
            f"there is no NVIDIA driver ({error}): install it; in a container, let the host's in (`docker run --gpus all`); "
            f"`nvidia-smi` shows whether it works"
        )
    if count:
        return ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f", and CUDA_VISIBLE_DEVICES={visible!r} may hide one: unset it"
    return f"the NVIDIA driver shows no device: `nvidia-smi` lists what it has{hidden}"


def _device_count() -> int:
    """Asks the NVIDIA driver for the number of devices; OSError where there is no driver."""
    driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, _NO_DEVICE):
        name = ctypes.c_char_p(b"unknown")
        driver.cuGetErrorName(status, ctypes.byref(name))
        raise ContextError(
            f"The NVIDIA driver does not work: {(name.value or b'unknown').decode()} ({status}). Check it with `nvidia-smi`; "
            f"after an update of the driver, restart the machine. {_CPU_INSTEAD}"
        )
    return count.value


def _cuda_context(name: str, device: str, type_config: str) -> nn.Context:
    """Makes the context of a device that is there, and tries it."""
    count = _device_count()
    if int(device) >= count:
        shown = "only device_id='0' is" if count == 1 else f"device_id='0' to '{count - 1}' are"
        raise ContextError(f"There is no CUDA device {device}: {shown} there. CUDA_VISIBLE_DEVICES changes what is shown.")
    extension = _import_extension(name)
    try:
        context = extension.context(device_id=device, type_config=type_config)
        result = _tanh_of_one(context)
    except (IndexError, NVMLError, RuntimeError) as error:
        raise ContextError(
            f"CUDA device {device} does not compute: {_short(error)} Check it with `nvidia-smi`: its memory may be full, or "
            f"its driver older than CUDA 12.0. {_CPU_INSTEAD}"
        ) from error
    if not np.allclose(result, np.tanh(1), atol=1e-3):
        raise ContextError(f"CUDA device {device} computes wrong numbers: tanh(1) gave {result}. {_CPU_INSTEAD}")
    return context


def _tanh_of_one(context: nn.Context) -> float:
    with nn.context_scope(context):
        y = F.tanh(nn.Variable.from_numpy_array(np.ones(1)))
        y.forward()
    return float(y.d[0])


def _import_extension(name: str) -> ModuleType:
    problems = _load_libraries()
    try:
        return importlib.import_module(f"nnabla_ext.{name}")
    except (ImportError, OSError) as error:
        notes = f" (Loading {'; '.join(problems)})" if problems else ""
        raise ContextError(
            f"NNabla's CUDA extension is installed, but does not load: {_short(error)}{notes} Install it together with the "
            f"CUDA libraries that it was built for: `pip install 'nnshop[cuda120]'`. {_CPU_INSTEAD}"
        ) from error


def _load_libraries() -> list[str]:
    """Loads the shared libraries of NVIDIA's wheels, and returns what went wrong.

    The system's loader does not look into site-packages, but a library that is loaded already satisfies whatever asks for
    one of its name.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    problems = []
    for library in _LIBRARIES:
        for path in sorted(path for folder in folders for path in Path(folder).glob(f"*/lib/{library}")):
            try:
                ctypes.CDLL(str(path))
            except OSError as error:
                problems.append(f"{library}: {error}")
    return problems


def _short(error: Exception) -> str:
    """The kind of an error and its last line, as a sentence; NNabla's lines before it name source files."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1].rstrip('.')}."
