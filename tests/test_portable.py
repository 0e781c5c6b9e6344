"""What `portable()` builds computes the same, has higher gradients, and comes back from an `.nnp` file as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest
from measuring import assert_same, constant, inputs, measure, prepare, randomize, runs, values, variable
from nnabla.utils.nnp_graph import NnpLoader

from nnshop import (
    AbstractCell,
    CarriedState,
    GRUCell,
    LSTMCell,
    RecurrentSequential,
    SimpleRNNCell,
    TimeDistributed,
    attend,
    bidirectional,
    gru,
    lstm,
    no_new_parameters,
    run,
    sequence_loss,
    stack,
    tree_leaves,
)
from nnshop.export import save_nnp
from nnshop.functions import length_mask, where
from nnshop.graphs import functions_of
from nnshop.kernels.array_function import ArrayFunction, array_of
from nnshop.portable import is_portable, portable
from nnshop.recurrentshop import l2, penalized
from nnshop.running import Fused
from nnshop.running.recurrence import Recurrence
from nnshop.seq2seq.encoder_decoder import Started

B, T, D, H = 4, 7, 3, 5
MASK = np.array([[1] * 7, [1, 1, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0, 1], [0] * 7])
CELLS = {
    "lstm": LSTMCell(H),
    "gru": GRUCell(H),
    "gru before": GRUCell(H, reset_after=False),
    "simple rnn": SimpleRNNCell(H),
    "stack": stack(LSTMCell(H), F.tanh, GRUCell(H)),
}
each_cell = pytest.mark.parametrize("kind", CELLS)

# The functions that the C runtime has, by its doc/SUPPORT_STATUS.md, as far as a network of ours may hold them.
C_RUNTIME = set(
    "Affine Sigmoid Swish Tanh ReLU LeakyReLU Softmax ELU SELU CReLU CELU PReLU BatchNormalization Sum Dropout "
    "Add2 Sub2 Mul2 Div2 Pow2 AddScalar MulScalar PowScalar RSubScalar RDivScalar RPowScalar Abs Exp Log Identity Round "
    "Sign Minimum2 Maximum2 MinimumScalar MaximumScalar BatchMatmul "
    "Concatenate Split Stack Slice Pad Transpose Flip Shift Reshape".split()
)


class Double(ArrayFunction):
    """A function in Python, as what is compiled is."""

    @property
    def name(self) -> str:
        return "Tanh"  # a name that NNabla knows: it would load another function

    def setup_impl(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: Sequence[nn.Variable], outputs: Sequence[nn.Variable]) -> None:
        outputs[0].data.cast(np.float32)[...] = 2 * array_of(inputs[0])


def kinds_above(*outputs: nn.Variable) -> set[str]:
    """The types of the functions that compute these; "Callback" where Python does."""
    found: set[str] = set()
    for y in outputs:
        y.visit(lambda f: found.add("Callback" if f.name == "Callback" else f.info.type_name))
    return found


def load(path: Path) -> Any:
    """The network of a file, in a parameter scope of its own."""
    with nn.parameter_scope("", scope={}):
        return NnpLoader(str(path)).get_network("network")


def compute(network: Any, feed: dict[str, nn.Variable]) -> dict[str, np.ndarray]:
    assert set(network.inputs) == set(feed)
    for name, v in feed.items():
        network.inputs[name].d = v.d
    return dict(zip(network.outputs, values(*network.outputs.values())))


def assert_comes_back(path: Path, inputs: dict[str, nn.Variable], outputs: dict[str, nn.Variable], **options: Any) -> Any:
    """Saves, loads, and compares on the present data, and on other data; returns the loaded network."""
    save_nnp(path, inputs, outputs, **options)
    network = load(path)
    for _ in range(2):
        expected = dict(zip(outputs, values(*outputs.values())))
        found = compute(network, inputs)
        assert set(found) == set(outputs)
        assert_same(found, expected, rtol=1e-6)
        for v in inputs.values():
            v.d = np.random.randn(*v.shape)
    return network


# The block


def test_blocks_nest_and_end_with_an_exception() -> None:
    assert not is_portable()
    with portable():
        with pytest.raises(ZeroDivisionError), portable():
            1 / 0  # noqa: B018
        assert is_portable()
    assert not is_portable()


def test_a_block_counts_for_its_own_thread() -> None:
    found = []
    with portable():
        thread = threading.Thread(target=lambda: found.append(is_portable()))
        thread.start()
        thread.join()
    assert found == [False]


def test_blocks_of_generators_end_in_any_order() -> None:
    def work() -> Iterator[bool]:
        with portable():
            yield is_portable()
            yield is_portable()

    first, second = work(), work()
    assert next(first)
    assert next(second)
    first.close()
    assert next(second)  # still in its block
    second.close()
    assert not is_portable()


def test_a_block_that_another_thread_ends_ends_in_both() -> None:
    def work() -> Iterator[None]:
        with portable():
            yield

    found: list[bool] = []

    def end() -> None:
        generator.close()
        with portable():
            found.append(is_portable())
        found.append(is_portable())

    generator = work()
    next(generator)
    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert found == [True, False]
    assert not is_portable()


# What is built in it


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_where_is_the_same_in_value_and_gradient(shape: tuple[int, ...]) -> None:
    condition = constant(np.array([2, 0, -0.5]) if shape == (3,) else np.random.randint(-1, 2, shape))
    found = []
    for block in (False, True):
        yes, no = variable(3, 4, 2, seed=1), variable(3, 4, 2, seed=2)
        if block:
            with portable():
                y = where(condition, yes, no)
        else:
            y = where(condition, yes, no)
        yes.grad.zero()
        no.grad.zero()
        y.forward()
        y.backward(variable(3, 4, 2, seed=3).d)
        found.append((y.d.copy(), yes.g.copy(), no.g.copy()))
    assert_same(found[1], found[0], rtol=1e-7)
    assert kinds_above(y) <= C_RUNTIME


@each_cell
@pytest.mark.parametrize("mask", [None, MASK * 2.0], ids=["all", "masked"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("auto_forward", [False, True])
def test_values_and_gradients_are_the_same(kind: str, mask: Any, reverse: bool, auto_forward: bool) -> None:
    cell = CELLS[kind]
    prepare(cell, D)
    given = inputs(cell, D, B, T)
    build = runs(cell, reverse=reverse, mask=None if mask is None else constant(mask))

    def in_block(x: Any, state: Any) -> Any:
        with portable():
            ys, after = build(x, state)
        assert "Callback" not in kinds_above(ys, *tree_leaves(after))
        return ys, after

    assert_same(measure(in_block, *given, auto_forward=auto_forward), measure(build, *given), rtol=2e-5)


def test_a_fused_way_is_refused_in_it() -> None:
    with portable(), pytest.raises(ValueError, match=r"portable\(\) allows NNabla's own functions only|llvmlite"):
        Recurrence(Fused(), LSTMCell(H), variable(B, T, D), LSTMCell(H).initial_state(B), T, batch_major=True).run()


def test_a_gradient_of_a_gradient() -> None:
    """`nn.grad` through an unrolled GRU, as gradient penalties need it; the penalty's slope by finite differences."""
    x = variable(2, 3, D)
    with portable():
        y = gru(x, H)
    (slope,) = nn.grad([F.sum(y)], [x])
    penalty = F.sum(slope**2)
    randomize()

    def at(array: np.ndarray) -> float:
        x.d = array
        penalty.forward()
        return float(penalty.d)

    point = x.d.copy()
    x.grad.zero()
    for parameter in nn.get_parameters().values():
        parameter.grad.zero()
    at(point)
    penalty.backward()
    direction = np.random.RandomState(1).randn(*point.shape)
    step = 1e-2 * direction
    expected = (at(point + step) - at(point - step)) / 2e-2
    assert float(np.sum(x.g * direction)) == pytest.approx(expected, rel=1e-2)
    assert any(np.abs(p.g).max() > 0 for p in nn.get_parameters().values())


# Networks that come back


@each_cell
def test_an_unrolled_network_comes_back(kind: str, tmp_path: Path) -> None:
    """From the initial state zero, which is no input."""
    x, mask = variable(B, T, D), constant(MASK)
    with portable():
        ys, state = run(CELLS[kind], x, mask=mask)
        y = TimeDistributed(PF.affine)(ys, 6)
    randomize()
    states = {f"state{i}": leaf for i, leaf in enumerate(tree_leaves(state))}
    network = assert_comes_back(tmp_path / "a.nnp", {"x": x, "mask": mask}, {"y": y, **states})
    assert kinds_above(*network.outputs.values()) <= C_RUNTIME


@each_cell
def test_one_step_comes_back(kind: str, tmp_path: Path) -> None:
    """An LSTM's output is its state h, which another output depends on; all three are outputs of the file."""
    x, cell = variable(B, D), CELLS[kind]
    before = cell.initial_state(B)
    with portable():
        h, after = cell(x, before)
        y = PF.affine(h, 6)
    randomize()
    states_in = {f"in{i}": leaf for i, leaf in enumerate(tree_leaves(before))}
    states_out = {f"out{i}": leaf for i, leaf in enumerate(tree_leaves(after))}
    network = assert_comes_back(tmp_path / "a.nnp", {"x": x, **states_in}, {"h": h, "y": y, **states_out})
    assert kinds_above(*network.outputs.values()) <= C_RUNTIME
    assert not [name for name in network.variables if name.startswith("constant")]


def test_a_bidirectional_network_with_backward_layers_comes_back(tmp_path: Path) -> None:
    x, mask = variable(B, T, D), constant(MASK)
    with portable():
        y = bidirectional(x, LSTMCell(H), mask=mask)
        y = lstm(y, H, go_backwards=True, return_sequences=True)
    randomize()
    network = assert_comes_back(tmp_path / "a.nnp", {"x": x, "mask": mask}, {"y": y})
    assert kinds_above(*network.outputs.values()) <= C_RUNTIME


def test_lengths_as_numbers_are_frozen_where_one_says_so(tmp_path: Path) -> None:
    x = variable(B, T, D)
    with portable():
        y = lstm(x, H, lengths=[7, 2, 5, 0])
    with pytest.raises(ValueError, match=r"shape \(4,\), such as a mask, lengths.*`inputs`; or freeze=True"):
        save_nnp(tmp_path / "a.nnp", {"x": x}, {"y": y})
    network = assert_comes_back(tmp_path / "a.nnp", {"x": x}, {"y": y}, freeze=True)
    assert kinds_above(*network.outputs.values()) <= C_RUNTIME  # the comparison is computed


def test_auto_forward_mode(tmp_path: Path) -> None:
    x = variable(B, T, D)
    with nn.auto_forward(), portable():
        y = lstm(x, H)
    assert_comes_back(tmp_path / "a.nnp", {"x": x}, {"y": y})


def test_saving_leaves_the_graph_alone(tmp_path: Path) -> None:
    x = variable(B, T, D)
    with portable():
        y = F.dropout(PF.batch_normalization(lstm(x, H)), 0.5)  # its running statistics change when it is computed
    (before,) = values(y)
    kept = y.parent.inputs[0].d.copy()
    parameters = {name: v.d.copy() for name, v in nn.get_parameters(grad_only=False).items()}
    save_nnp(tmp_path / "a.nnp", {"x": x}, {"y": y})
    np.testing.assert_array_equal(y.d, before)
    np.testing.assert_array_equal(y.parent.inputs[0].d, kept)
    assert_same({name: v.d for name, v in nn.get_parameters(grad_only=False).items()}, parameters)
    y.backward()


def test_only_parameters_that_are_used_and_by_their_full_names(tmp_path: Path) -> None:
    x = variable(B, D)
    PF.affine(x, 2, name="unused")
    with nn.parameter_scope("net"):
        y = PF.affine(x, 2, name="out", fix_parameters=True) * 3
        with nn.parameter_scope("deeper"):  # an open scope makes no difference
            network = assert_comes_back(tmp_path / "a.nnp", {"x": x}, {"y": y})
    assert {"net/out/affine/W", "net/out/affine/b"} <= set(network.variables)
    assert not [name for name in network.variables if "unused" in name]
    assert set(nn.get_parameters(grad_only=False)) == {f"{a}/affine/{b}" for a in ("unused", "net/out") for b in "Wb"}


def test_parameters_in_a_dictionary_of_ones_own(tmp_path: Path) -> None:
    x = variable(B, D)
    with nn.parameter_scope("", scope={}):
        y = PF.affine(x, 2)
        network = assert_comes_back(tmp_path / "a.nnp", {"x": x}, {"y": y})
    assert "affine/W" in network.variables


def test_two_parameters_of_one_name(tmp_path: Path) -> None:
    x = variable(B, D)
    inner = PF.affine(x, 2)
    with nn.parameter_scope("", scope={}):
        y = inner + PF.affine(x, 2)
        with pytest.raises(ValueError, match=r"two parameters of the name affine/W"):
            save_nnp(tmp_path / "a.nnp", {"x": x}, {"y": y})


def test_a_computed_input_cuts_the_graph(tmp_path: Path) -> None:
    """So an embedding stays outside, where the C runtime has none; even one that is computed in Python."""
    ids = constant([[1, 0, 2]])
    embedded = Double()(PF.embed(ids, 4, D))
    with portable():
        y = lstm(embedded, H)
    network = assert_comes_back(tmp_path / "a.nnp", {"embedded": embedded}, {"y": y})
    assert "embed/W" not in network.variables


def test_a_computed_input_beside_what_else_its_function_computes(tmp_path: Path) -> None:
    x = variable(B, 2, D)
    a, b = F.split(x, axis=1)
    y = 2 * a + b
    save_nnp(tmp_path / "a.nnp", {"x": x, "a": a}, {"y": y})
    (expected,) = values(y)
    found = compute(load(tmp_path / "a.nnp"), {"x": x, "a": constant(a.d + 1)})
    assert_same(found["y"], expected + 2, rtol=1e-6)


def test_an_embedding_may_stay_inside_for_nnabla(tmp_path: Path) -> None:
    ids = constant([[1, 0, 2]])
    with portable():
        y = lstm(PF.embed(ids, 4, D), H)
    save_nnp(tmp_path / "a.nnp", {"ids": ids}, {"y": y})
    assert_same(compute(load(tmp_path / "a.nnp"), {"ids": ids})["y"], values(y)[0], rtol=1e-7)


def test_outputs_that_are_inputs_doubles_and_constants(tmp_path: Path) -> None:
    x = variable(B, D)
    y = F.tanh(x)
    assert_comes_back(tmp_path / "a.nnp", {"x": x}, {"x again": x, "y": y, "y again": y, "two": F.constant(2, (3,))})


def test_what_is_random_stays_random(tmp_path: Path) -> None:
    x = variable(1)
    y = x + F.rand(shape=(1000,)) + F.dropout(F.constant(1, (1000,)), 0.5)
    save_nnp(tmp_path / "a.nnp", {"x": x}, {"y": y})
    network = load(tmp_path / "a.nnp")
    assert {"Rand", "Dropout"} <= kinds_above(network.outputs["y"])


def test_constants_are_computed_once_and_saved_once(tmp_path: Path) -> None:
    x, start = variable(B, D), constant(np.zeros((B, D)))
    zero = F.constant(0, (B, D))
    one = F.add_scalar(zero, 1.0, inplace=True)
    y = x * one + start + F.constant(0, (B, D)) + F.reshape(one * 0, (D, B)).reshape((B, D))
    network = assert_comes_back(tmp_path / "a.nnp", {"x": x}, {"y": y})
    constants = {name: network.variables[name].d for name in network.variables if name.startswith("constant")}
    assert sorted(float(value.flat[0]) for value in constants.values()) == [0, 1]


# In other processes, and other languages

GREEDY = """
import sys, numpy as np, nnabla as nn
from nnabla.utils.nnp_graph import NnpLoader

network = NnpLoader(sys.argv[1]).get_network("network", batch_size=1)
table = np.load(sys.argv[2])
word, words, carried = 0, [], {name: 0 for name in network.inputs if name != "x"}
for _ in range(12):
    network.inputs["x"].d = table[word]
    for name, value in carried.items():
        network.inputs[name].d = value
    nn.forward_all(list(network.outputs.values()))
    word = int(network.outputs["logits"].d.argmax())
    carried = {name: network.outputs["new_" + name].d.copy() for name in carried}
    words.append(word)
print(words, network.outputs["logits"].d.ravel().tolist())
assert "nnshop" not in sys.modules
"""


def test_a_trained_language_model_writes_the_same_in_a_new_process(tmp_path: Path) -> None:
    """Trained in the fast way, exported as one step: the embedding outside, the state in and out."""
    size, cell = 6, stack(LSTMCell(8), LSTMCell(8))
    text = np.tile([0, 1, 2, 0, 3, 4, 0, 5], 40)

    def logits_of(h: nn.Variable) -> nn.Variable:
        return PF.affine(h, size, name="output", base_axis=h.ndim - 1)

    words, targets = constant(text[:-1].reshape(1, -1)[:, :64]), constant(text[1:].reshape(1, -1)[:, :64])
    ys, _ = run(cell, PF.embed(words, size, 8))
    loss = sequence_loss(logits_of(ys), targets)
    solver = S.Adam(0.03)
    solver.set_parameters(nn.get_parameters())
    for _ in range(60):
        solver.zero_grad()
        loss.forward()
        loss.backward()
        solver.update()
    assert float(loss.d) < 0.3

    x, before = nn.Variable((1, 8)), cell.initial_state(1)
    with no_new_parameters(), portable():
        h, after = cell(x, before)
        logits = logits_of(h)
    states = {f"state{i}": leaf for i, leaf in enumerate(tree_leaves(before))}
    finals = {f"new_state{i}": leaf for i, leaf in enumerate(tree_leaves(after))}
    save_nnp(tmp_path / "step.nnp", {"x": x, **states}, {"logits": logits, **finals})
    assert kinds_above(*load(tmp_path / "step.nnp").outputs.values()) <= C_RUNTIME
    table = nn.get_parameters()["embed/W"].d.copy()
    np.save(tmp_path / "table.npy", table)

    # What the model says here, in the fast way, on the text that it writes there.
    told = python(GREEDY, tmp_path / "step.nnp", tmp_path / "table.npy")
    written, last = told.split("]", 1)
    written_words = [int(word) for word in written.strip("[").split(",")]
    assert written_words[:7] == [1, 2, 0, 3, 4, 0, 5]
    ys, _ = run(cell, constant(table[[0, *written_words[:-1]]][None]))
    (expected,) = values(logits_of(ys))
    assert [int(i) for i in expected[0].argmax(axis=1)] == written_words
    np.testing.assert_allclose(np.fromstring(last.strip().strip("[]"), sep=","), expected[0, -1], rtol=1e-4, atol=1e-4)


def python(program: str, *arguments: Any) -> str:
    """What a program prints, in a process of its own that knows nothing of this one."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_nnablas_cpp_program_computes_the_same(tmp_path: Path) -> None:
    programs = Path(nn.__file__).parent / "bin"
    if not (programs / "nbla").exists():
        pytest.skip("this NNabla comes without its program nbla")
    x, mask = variable(B, T, D), constant(MASK)
    with portable():
        y, (h, c) = lstm(x, H, return_sequences=True, return_state=True, mask=mask)
    outputs = {"y": y, "h": h, "c": c}
    save_nnp(tmp_path / "a.nnp", {"x": x, "mask": mask}, outputs)
    for name, v in {"x": x, "mask": mask}.items():
        v.d.astype(np.float32).tofile(tmp_path / f"{name}.bin")
    command = [programs / "nbla", "infer", "-e", "runtime", "-b", str(B), "-o", "out", "a.nnp", "x.bin", "mask.bin"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env={**os.environ, "LD_LIBRARY_PATH": str(programs)})
    for i, expected in enumerate(values(*outputs.values())):
        found = np.fromfile(tmp_path / f"out_{i}.bin", np.float32).reshape(expected.shape)
        assert_same(found, expected, rtol=1e-6)


# Refusals


def doubled(x: nn.Variable) -> nn.Variable:
    return F.relu(Double()(F.tanh(x)))


def fresh(x: nn.Variable) -> nn.Variable:
    return x + nn.Variable((B, D))


def nameless(x: nn.Variable) -> nn.Variable:
    return F.affine(x, variable(D, 2))


def forgotten_mask(x: nn.Variable) -> nn.Variable:
    return x * constant(np.arange(B)[:, None])


def carried(x: nn.Variable) -> nn.Variable:
    state = CarriedState(GRUCell(H), B)
    state.initial.d = np.random.randn(B, H)
    return GRUCell(H)(x, state.initial)[0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (doubled, r"Tanh.* computed in Python.*Build the graph inside `with nnshop.portable\(\)"),
        (fresh, r"shape \(4, 3\) that never held a value must be named in `inputs`"),
        (nameless, r"trainable Variable of shape \(3, 2\) is in no parameter scope.*build it again; or name it"),
        (forgotten_mask, r"shape \(4, 1\), such as a mask.*Name it in `inputs`; or freeze=True"),
        (carried, r"shape \(4, 5\), such as a mask, lengths or a state"),
    ],
)
def test_what_could_not_be_loaded_is_refused(build: Callable, message: str, tmp_path: Path) -> None:
    x = variable(B, D)
    with pytest.raises(ValueError, match=message):
        save_nnp(tmp_path / "a.nnp", {"x": x}, {"y": build(x)})
    assert not list(tmp_path.iterdir())


def test_what_is_compiled_is_refused_outside_of_the_block(tmp_path: Path) -> None:
    pytest.importorskip("llvmlite")
    x = variable(B, T, D)
    with pytest.raises(ValueError, match=r"Compiled.* computed in Python.*portable\(\)"):
        save_nnp(tmp_path / "a.nnp", {"x": x}, {"y": lstm(x, H)})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: ("a.nnp", {"x": x, "z": y}, {"y": F.tanh(x)}), ValueError, r"no output depends on the inputs \['z'\]"),
        (lambda x, y: ("a.h5", {"x": x}, {"y": y}), ValueError, r"end in .nnp.*a.h5"),
        (lambda x, y: ("no/a.nnp", {"x": x}, {"y": y}), FileNotFoundError, "there is no folder"),
        (lambda x, y: ("a.nnp", {"x": x.d}, {"y": y}), TypeError, "'x' is ndarray"),
        (lambda x, y: ("a.nnp", {"x": x}, {}), ValueError, "an output at least"),
        (lambda x, y: ("a.nnp", {"x": x}, {"x": y}), ValueError, "names that differ"),
        (lambda x, y: ("a.nnp", {"x": x, "z": x}, {"y": y}), ValueError, "each input once"),
        (lambda x, y: ("a.nnp", {"affine/W": x}, {"y": y}), ValueError, r"must not be named as parameters.*affine/W"),
        (lambda x, y: ("a.nnp", {"@network/Affine_out": x}, {"y": y}), ValueError, "begin with @"),
    ],
)
def test_wrong_arguments(call: Callable, error: type, message: str, tmp_path: Path) -> None:
    x = variable(B, D)
    path, inputs, outputs = call(x, PF.affine(x, 2))
    with pytest.raises(error, match=message):
        save_nnp(tmp_path / path, inputs, outputs)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = variable(B, D), tmp_path / "a.nnp"
    save_nnp(path, {"x": x}, {"y": F.tanh(x)})
    former = path.read_bytes()
    with pytest.raises(ValueError, match="Python"):
        save_nnp(path, {"x": x}, {"y": doubled(x)})

    def fail(self: Any, name: str) -> None:
        raise KeyError("a function of a newer NNabla")

    monkeypatch.setattr(NnpLoader, "get_network", fail)
    with pytest.raises(ValueError, match="cannot load it: 'a function of a newer NNabla'"):
        save_nnp(path, {"x": x}, {"y": F.sigmoid(x)})
    assert path.read_bytes() == former
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_loads_as_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else that check could not fail."""
    x, other = variable(B, D), tmp_path / "other.nnp"
    save_nnp(other, {"x": x}, {"y": F.sigmoid(x)})
    loaded = load(other)
    monkeypatch.setattr(NnpLoader, "get_network", lambda self, name: loaded)
    with pytest.raises(ValueError, match="another graph"):
        save_nnp(tmp_path / "a.nnp", {"x": x}, {"y": F.tanh(x)})
    with pytest.raises(ValueError, match=r"without the outputs \['z'\]"):
        save_nnp(tmp_path / "a.nnp", {"x": x}, {"z": F.sigmoid(x)})


def test_a_mask_of_lengths_is_an_input_of_a_graph_too(tmp_path: Path) -> None:
    """NNabla computes the mask; the C runtime cannot compare, and is given the mask."""
    x, lengths = variable(B, T, D), constant([7, 2, 5, 0])
    with portable():
        y = lstm(x, H, mask=length_mask(lengths, T))
    save_nnp(tmp_path / "a.nnp", {"x": x, "lengths": lengths}, {"y": y}, freeze=True)
    assert_same(compute(load(tmp_path / "a.nnp"), {"x": x, "lengths": lengths})["y"], values(y)[0], rtol=1e-6)


# What a cell does for whole sequences at once, a wrapper that only passes on does too


def shop(*cells: AbstractCell) -> AbstractCell:
    rnn = RecurrentSequential(return_sequences=True, name="shop")
    for cell in cells:
        rnn.add(cell)
    return rnn.get_cell()


DELEGATES: dict[str, Callable[[AbstractCell], AbstractCell]] = {
    "regularized": lambda cell: penalized(cell, {"h2h/W": l2(0.1)}),
    "started": lambda cell: Started(cell, cell.initial_state(B)),
    "RecurrentSequential": shop,
    "twice": lambda cell: penalized(shop(penalized(cell))),
    "in a stack": lambda cell: stack(penalized(cell)),
}


def built_portably(cell: AbstractCell, x: nn.Variable) -> list[str]:
    """The functions of a run of it, by their names."""
    with portable():
        ys, after = run(cell, x)
    return [function.name for function in functions_of([ys, *tree_leaves(after)])]


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("delegate", DELEGATES)
def test_what_only_passes_on_keeps_the_fast_form(delegate: str, kind: str) -> None:
    """One product for the inputs of all steps, in place of one at each: the graph is as small as the cell's own."""
    wrapped = DELEGATES[delegate](CELLS[kind])
    assert built_portably(wrapped, variable(B, T, D)) == built_portably(CELLS[kind], variable(B, T, D))
    nn.clear_parameters()
    built_portably(wrapped, variable(B, T, D))
    randomize()
    x, state = inputs(wrapped, D, B, T)
    with portable():
        made = measure(runs(wrapped), x, state)
        assert_same(made, measure(runs(wrapped, way="unrolled"), x, state), rtol=2e-5)


def test_attention_after_a_started_decoder_keeps_the_fast_form() -> None:
    """As an EncoderDecoder with its default bridge has it."""
    memory, cell = variable(B, 6, H), LSTMCell(H)
    started = Started(cell, cell.initial_state(B))
    decoders = [stack(attend(inner, memory, input_feeding=False), name="decoder") for inner in (started, cell)]
    made = [built_portably(decoder, variable(B, T, D)) for decoder in decoders]
    assert made[0] == made[1]
    assert made[0].count("Affine") == T + 1
