from __future__ import annotations

import llvmlite.binding as llvm

from . import products

llvm.initialize_native_target(), llvm.initialize_native_asmprinter()
_M = None


def lanes():
    return 16


def machine():
    global _M
    if _M is None:
        _M = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit", opt=2, jit=True
        )
    return _M


class P(dict):
    pass


_mem = {}


def load(text, names):
    if text in _mem:
        return _mem[text]
    products.register()
    module = llvm.parse_assembly(text)
    module.verify()
    b = llvm.create_pass_builder(machine(), llvm.create_pipeline_tuning_options(speed_level=1))
    b.getModulePassManager().run(module, b)
    code = machine().emit_object(module)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    r = P({n: engine.get_function_address(n) for n in names})
    r.engine = engine
    _mem[text] = r
    return r
