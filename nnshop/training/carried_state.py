"""States that go on from batch to batch."""

from __future__ import annotations

import numpy as np

from .. import values
from ..core import AbstractCell, Tree, check_cell, check_state, tree_leaves


class CarriedState:
    """The state of a cell that goes on from batch to batch, as truncated backpropagation through time needs it.

    The initial states are Variables of the graph; `carry` copies the final states into them after a batch. Gradients are
    exact within each batch, and a second forward of the same batch advances nothing.

    Args:
        cell: Any cell.
        batch_size: B.

    Attributes:
        initial: The tree of Variables to start from.

    Example:
        >>> cell = nnshop.GRUCell(4)
        >>> state = CarriedState(cell, batch_size=2)
        >>> x = nn.Variable.from_numpy_array(np.ones((2, 5, 3)))
        >>> ys, final = nnshop.run(cell, x, state.initial)
        >>> state.follow(final)
        >>> F.sum(ys).forward()
        >>> state.carry()
        >>> bool(np.allclose(state.initial.d, ys.d[:, -1]))
        True
    """

    def __init__(self, cell: AbstractCell, batch_size: int) -> None:
        check_cell(cell)
        self.cell, self.batch_size = cell, batch_size
        self.initial = cell.initial_state(batch_size)
        if any(leaf.parent is not None or leaf.need_grad for leaf in tree_leaves(self.initial)):
            raise ValueError(f"{cell} computes its initial state, so nothing can be carried into it: it cannot be stateful.")
        self.final: Tree = None

    def follow(self, final: Tree) -> None:
        """Names the final state of the graph that starts from `initial`.

        Raises:
            ValueError: It has another structure or shapes than the cell's state.
        """
        check_state(self.cell, "carries", final, self.batch_size)
        values.expect(tree_leaves(final))
        self.final = final

    def carry(self) -> None:
        """Copies the final states into the initial ones; call it after a batch's forward (and backward).

        Raises:
            ValueError: `follow` was not called; or a final state has not been computed since then or since `reset`, because
                the graph has not run, or because what was forwarded does not depend on it.
        """
        if self.final is None and tree_leaves(self.initial):
            raise ValueError(
                "CarriedState.carry needs the graph's final state: call follow(state) with what nnshop.run returns."
            )
        way_out = "nn.forward_all([loss, *nnshop.tree_leaves(state.final)])"
        # Copies, never aliases: backward still needs the initial state while the final one is being written.
        values.check_computed(tree_leaves(self.final), "CarriedState.carry", way_out)
        values.copy(tree_leaves(self.final), tree_leaves(self.initial))

    @property
    def has_run(self) -> bool:
        """Whether the graph has computed a final state since `follow` or `reset`."""
        return any(map(values.is_computed, tree_leaves(self.final)))

    def reset(self) -> None:
        """Sets the initial states back to what the cell's initializers give."""
        self.set([leaf.d for leaf in tree_leaves(self.cell.initial_state(self.batch_size))])
        values.forget(tree_leaves(self.final))

    def get(self) -> list[np.ndarray]:
        """Copies the initial states out, as a checkpoint keeps them."""
        return [leaf.d.copy() for leaf in tree_leaves(self.initial)]

    def set(self, states: list[np.ndarray]) -> None:
        """Copies values in, in the order of `get`; ValueError where they are of other shapes."""
        leaves = tree_leaves(self.initial)
        if [value.shape for value in states] != [leaf.shape for leaf in leaves]:
            expected, got = [leaf.shape for leaf in leaves], [value.shape for value in states]
            raise ValueError(f"{self.cell} carries states of shapes {expected}; got {got}.")
        for leaf, value in zip(leaves, states):
            leaf.d = value
