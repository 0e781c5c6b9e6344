"""Threads of the process that share the tasks of a job.

Compiled programs that declare it can call

    void @nnshop_parallel(ptr task, ptr arguments, i64 count)

which calls `task(arguments, i)` for each i below `count`, and returns when all are done. A thread takes the next task that
nobody has taken; so does the calling one. One job is shared at a time: who comes while another is under way, from another
thread of Python or from within a task, does its tasks alone. Between jobs, threads sleep in the kernel (`futex`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from ..threads import threads
from . import machine
from .text import module
from .writer import Writer

NAME = "nnshop_parallel"
PART = 20_000  # a thread pays for so many nanoseconds of work
_SPINS = 400  # so often a thread looks for work, or for its end, before it sleeps: some 20 microseconds
_FUTEX, _WAIT, _WAKE = 202, 128, 129  # the system call of x86-64, and its operations within one process
# One line of the cache each: whether a job is under way; tasks that nobody has taken, less one for each that looked for one
# in vain; those that are not done; the number of the job; threads that sleep; whether the caller sleeps; what to call.
_FIELDS = ("busy", "left", "pending", "job", "sleeping", "waiting", "task", "arguments")


class _Code(Writer):
    """A text with atomic operations on the fields of the pool."""

    def field(self, name: str) -> str:
        return f"getelementptr (i8, ptr @pool, i64 {64 * _FIELDS.index(name)})"

    def get(self, name: str, kind: str = "i32") -> str:
        return self.new(f"load atomic {kind}, ptr {self.field(name)} seq_cst, align 8")

    def set(self, name: str, value: str | int, kind: str = "i32") -> None:
        self.put(f"store atomic {kind} {value}, ptr {self.field(name)} seq_cst, align 8")

    def add(self, name: str, value: int, kind: str = "i32") -> str:
        """Adds to a field; what it was before."""
        return self.new(f"atomicrmw add ptr {self.field(name)}, {kind} {value} seq_cst")

    def system(self, operation: int, name: str, value: str | int) -> None:
        self.declared.add("declare i64 @syscall(i64, ...)")
        given = f"i64 {_FUTEX}, ptr {self.field(name)}, i32 {operation}, i32 {value}, ptr null, ptr null, i32 0"
        self.put(f"call i64 (i64, ...) @syscall({given})")

    def pause(self) -> None:
        self.declared.add("declare void @llvm.x86.sse2.pause()")
        self.put("call void @llvm.x86.sse2.pause()")

    def go_if(self, condition: str, yes: str, no: str) -> None:
        self.put(f"br i1 {condition}, label %{yes}, label %{no}")

    def spin(self, name: str, is_over: Callable[[], str], over: str, tired: str) -> None:
        """Looks `_SPINS` times whether something is so, and goes to the label `over`, or else to `tired`."""
        self.put(f"br label %{name}.before")
        self.label(f"{name}.before")
        self.put(f"br label %{name}")
        self.label(name)
        self.put(f"%{name}.n = phi i32 [0, %{name}.before], [%{name}.more, %{name}.again]")
        self.go_if(is_over(), over, f"{name}.not")
        self.label(f"{name}.not")
        self.pause()
        self.put(f"%{name}.more = add i32 %{name}.n, 1")
        self.go_if(self.new(f"icmp slt i32 %{name}.more, {_SPINS}"), f"{name}.again", tired)
        self.label(f"{name}.again")
        self.put(f"br label %{name}")


def _take_tasks() -> _Code:
    """Writes `take`: does tasks until all are taken. Only who has taken one reads what to call: it cannot change then."""
    text = _Code()
    text.put("br label %next")
    text.label("next")
    left = text.add("left", -1, "i64")
    text.go_if(text.is_true("sgt", left, 0), "do", "none")
    text.label("do")
    task, arguments = text.get("task", "ptr"), text.get("arguments", "ptr")
    text.put(f"call void {task}(ptr {arguments}, i64 {text.whole('sub', left, 1)})")
    last = text.new(f"icmp eq i32 {text.add('pending', -1)}, 1")
    text.go_if(last, "last", "next")
    text.label("last")
    text.go_if(text.new(f"icmp ne i32 {text.get('waiting')}, 0"), "wake", "next")
    text.label("wake")
    text.system(_WAKE, "pending", 1)
    text.put("br label %next")
    text.label("none")
    return text


def _work() -> _Code:
    """Writes `work`, which a thread of the pool never leaves."""
    text = _Code()
    text.put("br label %look")
    text.label("look")
    job = text.get("job")
    text.put("call void @take()")
    text.spin("spin", lambda: text.new(f"icmp ne i32 {text.get('job')}, {job}"), "look", "sleep")
    text.label("sleep")
    text.add("sleeping", 1)
    text.system(_WAIT, "job", job)  # returns at once if there is another job by now
    text.add("sleeping", -1)
    text.put("br label %look")
    text.label("never")
    return text


def _parallel() -> _Code:
    text = _Code()
    text.go_if(text.is_true("sgt", "%count", 1), "several", "alone")
    text.label("several")
    got = text.new(f"cmpxchg ptr {text.field('busy')}, i32 0, i32 1 seq_cst seq_cst")
    text.go_if(text.new(f"extractvalue {{ i32, i1 }} {got}, 1"), "share", "alone")
    text.label("alone")
    with text.loop("%count") as i:
        text.put(f"call void %task(ptr %arguments, i64 {i.index})")
    text.put("br label %end")
    text.label("share")
    text.set("task", "%task", "ptr")
    text.set("arguments", "%arguments", "ptr")
    text.set("waiting", 0)
    text.set("pending", text.new("trunc i64 %count to i32"))
    text.set("left", "%count", "i64")
    text.add("job", 1)
    sleeping = text.get("sleeping")
    text.go_if(text.new(f"icmp sgt i32 {sleeping}, 0"), "wake", "take")
    text.label("wake")
    text.system(_WAKE, "job", text.new(f"trunc i64 {text.whole('sub', '%count', 1)} to i32"))
    text.put("br label %take")
    text.label("take")
    text.put("call void @take()")
    text.spin("spin", lambda: text.new(f"icmp eq i32 {text.get('pending')}, 0"), "done", "tired")
    text.label("tired")
    text.set("waiting", 1)
    text.put("br label %sleep")
    text.label("sleep")
    pending = text.get("pending")
    text.go_if(text.new(f"icmp eq i32 {pending}, 0"), "done", "rest")
    text.label("rest")
    text.system(_WAIT, "pending", pending)
    text.put("br label %sleep")
    text.label("done")
    text.set("busy", 0)
    text.put("br label %end")
    text.label("end")
    return text


def _text() -> str:
    take, work, parallel = _take_tasks(), _work(), _parallel()
    size = 64 * len(_FIELDS)
    functions = [
        f"@pool = internal global [{size} x i8] zeroinitializer, align 64",
        take.function("take", ""),
        work.function("work", "", linkage=""),
        parallel.function("parallel", "ptr %task, ptr %arguments, i64 %count", linkage=""),
        f"define void @reset() {{\n  store [{size} x i8] zeroinitializer, ptr @pool\n  ret void\n}}",
    ]
    return module(functions, take.declared | work.declared | parallel.declared)


@cache
def _program() -> machine.Program:
    program = machine.load(_text(), ["work", "parallel", "reset"])
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(program))  # threads are in it to the end of the process
    return program


machine.provide(NAME, lambda: _program()["parallel"])

_lock = threading.Lock()
_started = 0


def parallel(task: int, arguments: int, count: int) -> None:
    """Calls a native function by its address; see above. What the arguments point to must stay until the call returns."""
    _function()(task, arguments, count)


@cache
def _function() -> Callable[[int, int, int], None]:
    return _program().function("parallel", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


def parts(nanoseconds: float, most: float) -> int:
    """How many threads pay for so much work, of at most so many parts; they are there then."""
    if nanoseconds < 2 * PART:
        return 1
    count = max(1, int(min(nanoseconds / PART, most, threads())))
    start(count)
    return count


def start(count: int) -> None:
    """Sees to it that so many threads, the calling one included, share jobs."""
    global _started
    if count - 1 > _started:
        with _lock:
            work = _program().function("work")
            while _started < count - 1:
                threading.Thread(target=_serve, args=(work,), name="nnshop", daemon=True).start()
                _started += 1


def _serve(work: Callable[[], Any]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # Ctrl-C is for the main thread
    work()


def _begin_again() -> None:
    """In a child of `fork` there are no threads but the one that forked, whatever the others were at."""
    global _started, _lock
    _lock, _started = threading.Lock(), 0
    if _program.cache_info().currsize:
        _program().function("reset")()


os.register_at_fork(after_in_child=_begin_again)
