"""Loads a script of examples/ as a module; the scripts are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load_example(name: str) -> ModuleType:
    """Imports `examples/NAME.py`, without running its `main`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_text(folder: Path, width: int) -> Path:
    """Writes 200 lines of so many random words, for the language model to train on."""
    words = np.random.RandomState(0).choice("the cat sat on a mat and so did dogs".split(), (200, width))
    path = folder / "text.txt"
    path.write_text("\n".join(" ".join(line) for line in words))
    return path
