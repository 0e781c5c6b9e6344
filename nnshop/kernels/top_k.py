"""The largest numbers of each row, and the logarithm of the sum of all exponentials, in one pass over each."""

from __future__ import annotations

import numpy as np
from numba import float32 as f4

from .activations import exp
from .compiling import compiled

BLOCK = 128  # numbers that are compared at once: hardly any block holds one of the largest


@compiled("mimlvv")
def top_k(x, without, best, places, largest, log_sums):
    """Finds the k largest of each row of x (N, V), from the largest, the first of equals first.

    Args:
        without: A column that does not count among them, or -1.
        best: (N, k), to be written; -inf where a row has fewer numbers above that.
        places: (N * k,), their columns, to be written; 0 there.
        largest: (N,), to be written: of all columns.
        log_sums: (N,), to be written: log of the sum of exp(x - largest), over all columns.
    """
    k, columns = best.shape[1], x.shape[1]
    for row in range(x.shape[0]):
        a, top, at = x[row], best[row], places[row * k : row * k + k]
        top[:] = -np.inf
        at[:] = 0
        for start in range(0, columns, BLOCK):
            least, higher = top[k - 1], np.int32(0)
            if start + BLOCK <= columns:  # a loop of a fixed length is what becomes vector instructions
                block = a[start : start + BLOCK]
                for j in range(BLOCK):
                    higher += np.int32(1) if block[j] > least else np.int32(0)
                if higher == 0:
                    continue
            for j in range(start, min(start + BLOCK, columns)):
                if a[j] > top[k - 1] and j != without:
                    place = k - 1
                    while place > 0 and a[j] > top[place - 1]:
                        top[place], at[place] = top[place - 1], at[place - 1]
                        place -= 1
                    top[place], at[place] = a[j], j
        highest = max(top[0], a[without]) if without >= 0 else top[0]
        total = f4(0)
        for j in range(columns):
            total += exp(a[j] - highest)
        largest[row], log_sums[row] = highest, np.log(total)
