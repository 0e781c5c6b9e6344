"""What NNabla does with its own functions only, gradient graphs and files: for ours it says the way out.

NNabla looks both up by a function's name. Ours have names of their own, since it would take another `LSTM` for its own.
"""

from __future__ import annotations

from functools import partial, wraps
from typing import Any, NoReturn

from nnabla.backward_functions import register
from nnabla.core.graph_def import ProtoNetwork

_PREFIX = "nnshop."
_WAY_OUT = "in `with nnshop.portable():`, or run the cell with way='unrolled'"


def own_name(kind: type) -> str:
    """The name that NNabla knows a function by."""
    return _PREFIX + kind.__name__.removesuffix("Function")


def refuse_gradient_graphs(name: str) -> None:
    """Lets `nn.grad` refuse the function of this name."""
    register(name, partial(_refuse_gradient_graph, name))


def _refuse_gradient_graph(name: str, *_: Any, **__: Any) -> NoReturn:
    raise ValueError(
        f"nn.grad makes a graph of gradients, and {name}, which is computed in Python, has none. For gradients of gradients "
        f"build the graph {_WAY_OUT}; for gradients alone call y.backward()."
    )


def _refuse_files() -> None:
    """Lets NNabla's writer of `.nnp` files refuse our functions, which it could not load again."""
    as_proto = ProtoNetwork.as_proto

    @wraps(as_proto)
    def checked(self: Any, **options: Any) -> Any:
        own = sorted({function.type for function in self.functions.values() if function.type.startswith(_PREFIX)})
        if own:
            raise ValueError(
                f"a file cannot hold {', '.join(own)}, computed in Python: NNabla could not load the network again. Build the "
                f"graph {_WAY_OUT}; nnshop.save_nnp saves what is built so."
            )
        return as_proto(self, **options)

    ProtoNetwork.as_proto = checked


_refuse_files()
