"""Saving a graph to an `.nnp` file, from which NNabla loads the same network again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.utils import save
from nnabla.utils.nnp_graph import NnpLoader

from .archive import atomic_write
from .building import building
from .graphs import Rule, Traced, again, functions_of, rewrite
from .graphs.replaying import is_random
from .parameters import all_parameters, current_path

NETWORK = "network"  # its name in the file; NNabla calls what it holds `@network/...`


@building()
def save_nnp(
    path: str | Path,
    inputs: Mapping[str, nn.Variable],
    outputs: Mapping[str, nn.Variable],
    freeze: bool = False,
) -> None:
    """Saves a graph, with the parameters that it uses, as a network that has exactly these inputs.

    Build the graph in `portable()`. The file holds it at the batch size, and for the number of steps, that it was built for;
    other sizes need another graph, on the same weights, and another file. What depends on no input and no parameter, such as
    the initial state zero, is computed now and saved as a parameter `constant/0`, `constant/1`, ... It is loaded again before
    it gets its name, so a failure leaves the former file as it was.

    Args:
        path: The file; its name ends in `.nnp`.
        inputs: What is fed, by name. One that the graph computes is fed too: what lies before it, such as an embedding, is
            left out.
        outputs: What is computed, by name.
        freeze: Saves the present values of all other Variables, which are neither parameters nor computed. By default only
            those may be frozen that are filled with one number, since any other is more likely a batch's mask or truth.

    Raises:
        ValueError: The graph holds functions that are computed in Python; an input leads to no output; a Variable is not
            named that has to be; a parameter is in no scope; names that are not unique; another suffix; NNabla would not load
            the same network from the file.
        TypeError: An input or output is no Variable.

    Example:
        >>> import tempfile
        >>> from nnabla.utils.nnp_graph import NnpLoader
        >>> x = nn.Variable((4, 7, 3))
        >>> with nnshop.portable():
        ...     y, h = nnshop.gru(x, 8, return_state=True)
        >>> path = tempfile.mkdtemp() + "/gru.nnp"
        >>> save_nnp(path, {"x": x}, {"y": y, "h": h})
        >>> network = NnpLoader(path).get_network("network")
        >>> list(network.inputs), {name: v.shape for name, v in network.outputs.items()}
        (['x'], {'y': (4, 8), 'h': (4, 8)})
    """
    path = Path(path)
    if path.suffix != ".nnp":
        raise ValueError(f"save_nnp writes files whose names end in .nnp, by which NNabla knows their format; got {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save_nnp: there is no folder {path.parent} to write {path.name} in.")
    traced = _between(inputs, outputs)
    with nn.auto_forward(False):
        copy = _Copy(inputs, traced, outputs, freeze)
        with atomic_write(path) as temporary:
            copy.save(temporary)
            copy.check_that_it_loads(temporary)


def _between(inputs: Mapping[str, nn.Variable], outputs: Mapping[str, nn.Variable]) -> Traced:
    """The graph that leads from inputs to outputs, after all checks that need no copy."""
    for key, v in [*inputs.items(), *outputs.items()]:
        if not isinstance(v, nn.Variable):
            raise TypeError(f"save_nnp needs Variables by name, such as {{'x': x}}; {key!r} is {type(v).__name__}.")
    names = [*inputs, *outputs]
    if not outputs or len(set(names)) < len(names) or any(key.startswith("@") for key in names):
        raise ValueError(
            "save_nnp needs an output at least, and names that differ and do not begin with @, as NNabla's own do; "
            f"got inputs {list(inputs)} and outputs {list(outputs)}."
        )
    if len(set(inputs.values())) < len(inputs):
        raise ValueError(f"save_nnp needs each input once, since they are fed one by one; got {list(inputs)}.")
    given = set(inputs.values())
    functions = functions_of(outputs.values(), enters=lambda v: v not in given)
    traced = Traced(list(inputs.values()), list(outputs.values()), functions, {})
    # Only the class behind it tells: the function's own name may be that of one of NNabla's.
    foreign = sorted({function.info.type_name for function in functions if function.name == "Callback"})
    if foreign:
        raise ValueError(
            f"save_nnp: {', '.join(foreign)} are computed in Python, so NNabla could not load them again. "
            "Build the graph inside `with nnshop.portable():`; functions of your own must be made of NNabla's."
        )
    needed = traced.variables()
    unused = [key for key, v in inputs.items() if v not in needed]
    if unused:
        raise ValueError(f"save_nnp: no output depends on the inputs {unused}. Leave them out, or name what depends on them.")
    return traced


class _Copy(Rule):
    """A copy of a graph as it is to be saved: constants are computed, and what it uses of parameters has names.

    The copy leaves the graph alone: NNabla's writer sets the functions up again that it is given.

    Args:
        inputs: Where the copy starts, by name.
        traced: What is copied.
        outputs: What it computes, by name.
        freeze: As in `save_nnp`.
    """

    def __init__(
        self, inputs: Mapping[str, nn.Variable], traced: Traced, outputs: Mapping[str, nn.Variable], freeze: bool
    ) -> None:
        self.freeze = freeze
        self.known = _names_of_parameters()
        self.parameters: dict[str, nn.Variable] = {}
        self.constants: dict[tuple, nn.Variable] = {}  # by value: zeros of one shape are one constant
        self.names: dict[nn.Variable, str | None] = {}  # those of constants; given once something uses them
        self.inputs = {key: nn.Variable(v.shape) for key, v in inputs.items()}
        made = rewrite(traced, {v: self.inputs[key] for key, v in inputs.items()}, self)
        # An output of the file must be used by nothing else, and stand under one name only.
        self.outputs = {key: F.identity(self._use(v)) for key, v in zip(outputs, made)}
        if set(self.parameters) & {*inputs, *outputs}:
            raise ValueError(f"save_nnp: inputs and outputs must not be named as parameters, {list(self.parameters)}.")

    # The rule

    def wants(self, function: Any, depends: bool) -> bool:
        return True

    def leaf(self, v: nn.Variable) -> nn.Variable:
        """A parameter or a constant."""
        return self._parameter(v) if v.data in self.known else self._constant(self._value(v))

    def stopped(self, new: nn.Variable) -> nn.Variable:
        return new  # a file holds no gradients

    def apply(self, function: Any, given: list[nn.Variable]) -> list[nn.Variable]:
        if is_random(function) or any(v not in self.names for v in given):
            return again(function, [self._use(v) for v in given])
        with nn.auto_forward():
            return [self._constant(v.d) for v in again(function, given)]

    def _parameter(self, v: nn.Variable) -> nn.Variable:
        name = self.known[v.data]
        if self.parameters.setdefault(name, v).data != v.data:
            raise ValueError(f"save_nnp: the graph uses two parameters of the name {name}, from the root's scope and another.")
        return v

    def _value(self, v: nn.Variable) -> np.ndarray:
        """What a Variable that is nothing else is frozen to, where it may be."""
        if v.need_grad:
            raise ValueError(
                f"save_nnp: a trainable Variable of shape {v.shape} is in no parameter scope (any more), so it has no name to "
                "be saved under. Parameters were cleared, or loaded in its place, since the graph was built: build it again; "
                "or name it in `inputs`."
            )
        if v.data.modification_count == 0:
            raise ValueError(f"save_nnp: a Variable of shape {v.shape} that never held a value must be named in `inputs`.")
        value = v.d.copy()
        if not self.freeze and value.size and (value != value.flat[0]).any():
            raise ValueError(
                f"save_nnp: a Variable of shape {v.shape}, such as a mask, lengths or a state, is no parameter and not named. "
                "Name it in `inputs`; or freeze=True saves its present value."
            )
        return value

    def _constant(self, value: np.ndarray) -> nn.Variable:
        value = np.asarray(value, np.float32)
        v = self.constants.setdefault((value.shape, value.tobytes()), nn.Variable.from_numpy_array(value))
        self.names.setdefault(v, None)
        return v

    def _use(self, v: nn.Variable) -> nn.Variable:
        """Gives a constant a name, now that it is known to be needed; all else passes."""
        if v in self.names and self.names[v] is None:
            taken = {*self.parameters, *self.known.values()}
            name = next(f"constant/{i}" for i in count() if f"constant/{i}" not in taken)
            self.names[v], self.parameters[name] = name, v
        return v

    def save(self, path: Path) -> None:
        """Writes the file, in a parameter scope that holds what it needs and nothing else."""
        sizes = [v.shape[0] for v in self.inputs.values() if v.ndim]
        network = {
            "name": NETWORK,
            "batch_size": sizes[0] if sizes else 1,
            "names": self.inputs,
            "outputs": self.outputs,
        }
        run = {"name": "runtime", "network": NETWORK, "data": list(self.inputs), "output": list(self.outputs)}
        with nn.parameter_scope("", scope=OrderedDict()):
            for key, v in self.parameters.items():
                nn.parameter.set_parameter(key, v)
            # NNabla's way to a variable batch size asserts what holds for images, not for sequences.
            save.save(str(path), {"networks": [network], "executors": [run]}, variable_batch_size=False)

    def check_that_it_loads(self, path: Path) -> None:
        """Raises ValueError unless NNabla loads this network from the file."""
        with nn.parameter_scope("", scope=OrderedDict()):
            try:
                network = NnpLoader(str(path)).get_network(NETWORK)
            except Exception as error:
                raise ValueError(f"save_nnp: NNabla saves this graph, and cannot load it: {error}") from error
        shapes = {key: v.shape for key, v in network.inputs.items()}
        missing = [key for key in self.outputs if key not in network.outputs]
        if missing or shapes != {key: v.shape for key, v in self.inputs.items()}:
            raise ValueError(f"save_nnp: NNabla loads the file with inputs {shapes}, and without the outputs {missing}.")
        if _structure([network.outputs[key] for key in self.outputs]) != _structure(self.outputs.values()):
            raise ValueError("save_nnp: NNabla loads another graph than it saved. Give inputs and outputs other names.")


def _names_of_parameters() -> dict[nn.NdArray, str]:
    """The names of all parameters, by their data; also in a dictionary of the caller's own, where it is the open scope."""
    own = nn.get_parameters(grad_only=False) if current_path() is None else {}
    return {v.data: name for names in (own, all_parameters()) for name, v in names.items()}


def _structure(outputs: Iterable[nn.Variable]) -> list[tuple]:
    return [(f.info.type_name, [v.shape for v in (*f.inputs, *f.outputs)]) for f in functions_of(outputs)]
