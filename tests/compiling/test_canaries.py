"""No program reads or writes beyond its buffers: the recorded cells, with guards around all memory. The laws run so too."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from conftest import GUARD, Guarded

from nnshop import Cell, run, tree_leaves

FOLDER = Path(__file__).parents[3] / "shared" / "reference" / "cells"


def recorded() -> dict[str, Any]:
    """The cells of the literature as users wrote them."""
    if not FOLDER.exists():
        return {}
    spec = importlib.util.spec_from_file_location("recorded_cells", FOLDER / "cells.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CELLS


CELLS = recorded()


@pytest.mark.skipif(not CELLS, reason=f"{FOLDER} is not there")
@pytest.mark.parametrize("name", CELLS)
def test_recorded_cells_leave_guards_alone(name: str, guards: Guarded) -> None:
    function, state, *_ = CELLS[name]
    with np.load(FOLDER / "vectors.npz") as vectors:
        x = nn.Variable.from_numpy_array(vectors[f"{name}/x"][:, :5], need_grad=True)
    ys, after = run(Cell(function, state), x, way="compiled", lengths=[5, 2, 4])
    loss = sum((F.sum(v) for v in tree_leaves(after)), F.sum(ys))
    loss.forward()
    loss.backward()
    for v in [ys, x.grad, *(p.grad for p in nn.get_parameters().values())]:
        assert np.isfinite(v.d if isinstance(v, nn.Variable) else v.data).all()


def test_what_is_written_beyond_a_buffer_is_seen() -> None:
    for place in (-1, 7 + GUARD):
        guarded = Guarded()
        array = guarded.empty((7,))
        guarded.check()
        guarded.made[0][GUARD + place if place < 0 else place] = 0
        assert array.shape == (7,)
        with pytest.raises(AssertionError, match="beyond a buffer of 7"):
            guarded.check()
