"""Loading the original's weights; penalties and limits of weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest

from nnshop import lift
from nnshop.archive import ArchiveError
from nnshop.recurrentshop import (
    GRUCell,
    LSTMCell,
    MaxNorm,
    NonNegative,
    RecurrentModel,
    RecurrentSequential,
    UnitNorm,
    apply_constraints,
    keras_files,
    l1,
    l2,
    load_recurrentshop_weights,
    penalized,
    regularization_losses,
)
from nnshop.recurrentshop.initializers import find_initializer

X = np.random.RandomState(0).randn(2, 5, 3)


def network() -> RecurrentSequential:
    rnn = RecurrentSequential(name="rnn")
    rnn.add(LSTMCell(4, name="lstm"))
    rnn.add(PF.affine, 2)
    rnn(nn.Variable((2, 5, 3)))
    return rnn


def keras_arrays() -> list[np.ndarray]:
    rng = np.random.RandomState(1)
    return [rng.randn(*shape).astype(np.float32) for shape in ((3, 16), (16,), (4, 16), (4, 2), (2,))]


def test_gates_go_where_they_belong() -> None:
    load_recurrentshop_weights(network(), keras_arrays())
    f, i, o, g = np.split(keras_arrays()[0], 4, axis=1)
    parameters = nn.get_parameters()
    np.testing.assert_array_equal(parameters["rnn/lstm/x2h/W"].d, np.concatenate([i, f, g, o], axis=1))
    np.testing.assert_array_equal(parameters["rnn/1/affine/W"].d, keras_arrays()[3])


@pytest.mark.parametrize("whole_model", [False, True])
def test_a_file_by_keras_holds_them_in_its_own_order(tmp_path: Path, whole_model: bool) -> None:
    arrays = keras_arrays()
    with h5py.File(tmp_path / "w.h5", "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        root.attrs["layer_names"] = [b"input_1", b"recurrent_sequential_1"]
        root.create_group("input_1").attrs["weight_names"] = np.array([], dtype="S1")
        names = [f"recurrent_sequential_1/z{9 - i}:0".encode() for i in range(len(arrays))]  # not in the alphabet's order
        group = root.create_group("recurrent_sequential_1")
        group.attrs["weight_names"] = names
        for name, array in zip(names, arrays):
            group[name.decode()] = array
    rnn = network()
    load_recurrentshop_weights(rnn, tmp_path / "w.h5")
    loaded = {name: v.d.copy() for name, v in nn.get_parameters().items()}
    load_recurrentshop_weights(rnn, arrays)
    for name, v in nn.get_parameters().items():
        np.testing.assert_array_equal(v.d, loaded[name])


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_text("no file")
    with pytest.raises(ValueError, match=r"w\.h5: is not a whole file of weights by Keras .*OSError"):
        load_recurrentshop_weights(network(), tmp_path / "w.h5")


def keras_file(path: Path, arrays: list[np.ndarray]) -> h5py.File:
    """A file as Keras writes it, open."""
    file = h5py.File(path, "w")
    file.attrs["layer_names"] = [b"layer"]
    group = file.create_group("layer")
    group.attrs["weight_names"] = [f"w{i}".encode() for i in range(len(arrays))]
    for i, array in enumerate(arrays):
        group[f"w{i}"] = array
    return file


def replace_last(group: h5py.Group, **options: object) -> None:
    del group["w4"]
    group.create_dataset("w4", **options)


def link_last(group: h5py.Group, link: object) -> None:
    del group["w4"]
    group["w4"] = link


OUTSIDE = [("/etc/passwd", 0, 8)]
DAMAGES = {
    "text": (lambda g: link_last(g, np.array([b"ab", b"cd"])), "layer/w4|w4 is of"),
    "complex": (lambda g: link_last(g, np.ones(2, complex)), "w4 is of complex128"),
    "objects": (lambda g: replace_last(g, shape=(2,), dtype=h5py.string_dtype()), "w4 is of object"),
    "references": (lambda g: replace_last(g, shape=(2,), dtype=h5py.ref_dtype), "w4 is of object"),
    "huge": (
        lambda g: replace_last(g, shape=(10**10,), dtype="f4"),
        r"array 4 for rnn/1/affine/b has the shape \(10000000000,\)",
    ),
    "huge, in pieces": (lambda g: replace_last(g, shape=(10**10,), dtype="f4", chunks=(10**6,)), "in pieces"),
    "compressed": (lambda g: replace_last(g, data=np.ones(2), compression="gzip"), "in pieces"),
    "in another file": (lambda g: replace_last(g, shape=(2,), dtype="f4", external=OUTSIDE), "in other files"),
    "link to another file": (lambda g: link_last(g, h5py.ExternalLink("/etc/passwd", "/")), "w4 is not in it"),
    "link to a name": (lambda g: link_last(g, h5py.SoftLink("/layer/w3")), "w4 is not in it"),
    "a group": (lambda g: link_last(g, g.file.create_group("other")), "w4 is no array"),
    "beyond float32": (lambda g: link_last(g, np.array([1e300, 1.0])), "numbers that float32 has not"),
    "names that are numbers": (lambda g: g.attrs.__setitem__("weight_names", 5), "TypeError"),
    "names that are none": (lambda g: g.attrs.__setitem__("weight_names", np.array([b"\xff", b"/"])), "Unicode"),
    "layers that are numbers": (lambda g: g.file.attrs.__setitem__("layer_names", [1.5]), "AttributeError"),
    "no names": (lambda g: g.attrs.__delitem__("weight_names"), "KeyError"),
    "no layer": (lambda g: g.file.__delitem__("layer"), "layer is not in it"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_by_keras_changes_nothing(tmp_path: Path, damage: Callable, message: str) -> None:
    with keras_file(tmp_path / "w.h5", keras_arrays()) as file:
        damage(file["layer"])
    rnn = network()
    before = {name: v.d.copy() for name, v in nn.get_parameters().items()}
    with pytest.raises(ArchiveError, match=rf"w\.h5: .*({message})"):
        load_recurrentshop_weights(rnn, tmp_path / "w.h5")
    for name, v in nn.get_parameters().items():
        np.testing.assert_array_equal(v.d, before[name])


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir], ids=["FIFO", "device", "folder"]
)
def test_a_file_by_keras_is_a_regular_file(tmp_path: Path, make: Callable) -> None:
    make(tmp_path / "w.h5")
    with pytest.raises(ArchiveError, match=r"w\.h5: cannot be read as a file of weights by Keras"):
        load_recurrentshop_weights(network(), tmp_path / "w.h5")


@pytest.mark.parametrize(
    ("program", "message"), [("import os; os.abort()", "ended with -6"), ("while True: pass", "does not come to its end in 1")]
)
def test_where_hdf5_dies_or_hangs_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    """As it does on some that are damaged."""
    keras_file(tmp_path / "w.h5", keras_arrays()).close()
    (tmp_path / "reader.py").write_text(program)
    monkeypatch.setattr(keras_files, "READER", tmp_path / "reader.py")
    monkeypatch.setattr(keras_files, "SECONDS", 1)
    with pytest.raises(ArchiveError, match=rf"w\.h5: is not a whole file of weights by Keras: .*{message}"):
        load_recurrentshop_weights(network(), tmp_path / "w.h5")


@pytest.mark.parametrize("wrong", [np.array(["a", "b"]), np.ones(2, complex), np.array([1e300, 0])])
def test_arrays_that_are_no_weights_change_nothing(wrong: np.ndarray) -> None:
    rnn = network()
    before = {name: v.d.copy() for name, v in nn.get_parameters().items()}
    with pytest.raises(TypeError, match="array 4 for rnn/1/affine/b"):
        load_recurrentshop_weights(rnn, [*keras_arrays()[:-1], wrong])
    for name, v in nn.get_parameters().items():
        np.testing.assert_array_equal(v.d, before[name])


def test_weights_of_another_architecture_change_nothing() -> None:
    rnn = network()
    before = {name: v.d.copy() for name, v in nn.get_parameters().items()}
    arrays = keras_arrays()
    for wrong, match in (
        (arrays[:-1], r"rnn/1/affine/b is missing"),
        ([*arrays, arrays[0]], r"array 5 of shape \(3, 16\) is superfluous"),
        ([arrays[0].T, *arrays[1:]], r"array 0 for rnn/lstm/x2h/W has the shape \(16, 3\), not \(3, 16\)"),
    ):
        with pytest.raises(ValueError, match=match):
            load_recurrentshop_weights(rnn, wrong)
        for name, v in nn.get_parameters().items():
            np.testing.assert_array_equal(v.d, before[name])


def test_a_model_of_a_function_needs_the_order() -> None:
    def step(x: nn.Variable, h: nn.Variable) -> tuple:
        h = F.tanh(PF.affine(x, 4, name="x") + PF.affine(h, 4, name="h", with_bias=False))
        return h, h

    rnn = RecurrentModel(step, initial_states=[(4,)], name="m")
    with pytest.raises(ValueError, match="m: has no weights before its first call"):
        load_recurrentshop_weights(rnn, [])
    rnn(nn.Variable((2, 5, 3)))
    arrays = [np.ones((3, 4)), np.zeros(4), np.full((4, 4), 2.0)]
    with pytest.raises(ValueError, match=r"has no order of weights in Keras.*order=\[\.\.\.\]"):
        load_recurrentshop_weights(rnn, arrays)
    with pytest.raises(ValueError, match=r"there are no parameters m/y/affine/W"):
        load_recurrentshop_weights(rnn, arrays[:1], order=["m/y/affine/W"])
    load_recurrentshop_weights(rnn, arrays, order=["m/x/affine/W", "m/x/affine/b", "m/h/affine/W"])
    assert (nn.get_parameters()["m/h/affine/W"].d == 2).all()


def ruled(**rules: object) -> RecurrentSequential:
    rnn = RecurrentSequential(name="rnn")
    rnn.add(GRUCell(4, name="gru", **rules))
    rnn(nn.Variable((2, 5, 3)))
    return rnn


def test_penalties_by_hand_and_their_gradient() -> None:
    rnn = ruled(kernel_regularizer=l1(0.5), recurrent_regularizer=l2(0.25), bias_regularizer=l2(1.0))
    parameters = nn.get_parameters()
    penalties = regularization_losses(rnn)
    assert list(penalties) == ["rnn/gru/x2h/W", "rnn/gru/b", "rnn/gru/h2h/W"]
    nn.forward_all(list(penalties.values()))
    x2h, h2h = parameters["rnn/gru/x2h/W"], parameters["rnn/gru/h2h/W"]
    assert float(penalties["rnn/gru/x2h/W"].d) == pytest.approx(0.5 * np.abs(x2h.d).sum(), rel=1e-5)
    assert float(penalties["rnn/gru/h2h/W"].d) == pytest.approx(0.25 * (h2h.d**2).sum(), rel=1e-5)
    h2h.g = 0
    penalties["rnn/gru/h2h/W"].forward()
    penalties["rnn/gru/h2h/W"].backward()
    np.testing.assert_allclose(h2h.g, 0.5 * h2h.d, rtol=1e-5)


def test_each_weight_is_penalized_once_however_often_it_is_used() -> None:
    inner = RecurrentSequential(name="inner")
    inner.add(GRUCell(3, name="gru", kernel_regularizer=l2(1.0)))
    rnn = RecurrentSequential(name="outer")
    rnn.add(inner.get_cell())
    rnn.add(inner.get_cell())
    rnn.add(penalized(lift(PF.affine, 2), regularizers={"affine/W": l2(1.0)}))
    rnn(nn.Variable((2, 5, 3)))
    assert list(regularization_losses(rnn)) == ["outer/inner/gru/x2h/W", "outer/2/affine/W"]


def test_a_rule_for_a_parameter_that_is_not_there_is_named() -> None:
    rnn = RecurrentSequential(name="rnn")
    rnn.add(GRUCell(3))
    rnn.add(penalized(lift(PF.affine, 2), regularizers={"afine/W": l2(1.0)}))
    rnn(nn.Variable((2, 5, 3)))
    with pytest.raises(ValueError, match=r"there is no parameter rnn/1/afine/W for the regularizer of Penalized"):
        regularization_losses(rnn)


def test_constraints_hold_after_an_update() -> None:
    rnn = ruled(kernel_constraint=MaxNorm(0.5), recurrent_constraint=UnitNorm(), bias_constraint=NonNegative())
    x = nn.Variable.from_numpy_array(X)
    loss, solver = F.sum(rnn(x) ** 2), S.Sgd(1.0)
    solver.set_parameters(nn.get_parameters())
    solver.zero_grad()
    loss.forward()
    loss.backward()
    solver.update()
    parameters = nn.get_parameters()
    updated = {name: v.d.copy() for name, v in parameters.items()}
    apply_constraints(rnn)
    kernel = np.linalg.norm(parameters["rnn/gru/x2h/W"].d, axis=0)
    long = np.linalg.norm(updated["rnn/gru/x2h/W"], axis=0) > 0.5
    assert long.any()
    np.testing.assert_allclose(kernel[long], 0.5, rtol=1e-5)
    np.testing.assert_array_equal(parameters["rnn/gru/x2h/W"].d[:, ~long], updated["rnn/gru/x2h/W"][:, ~long])
    np.testing.assert_allclose(np.linalg.norm(parameters["rnn/gru/h2h/W"].d, axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(parameters["rnn/gru/b"].d, np.maximum(updated["rnn/gru/b"], 0))
    assert (updated["rnn/gru/b"] < 0).any()


def test_initializers_are_names_arrays_or_functions_of_the_shape() -> None:
    cell = LSTMCell(
        2,
        kernel_initializer=np.full((3, 8), 2.0),
        recurrent_initializer=lambda s: np.full(s, 3.0),
        bias_initializer="ones",
        name="c",
    )
    cell(nn.Variable((1, 3)), cell.initial_state(1))
    assert [float(nn.get_parameters()[f"c/{name}"].d.mean()) for name in ("x2h/W", "h2h/W", "b")] == [2, 3, 1]
    for wrong in (0, "one", None):
        with pytest.raises(
            ValueError, match=rf"an initializer is a function of the shape, an array, or one of zeros.*{wrong!r}"
        ):
            LSTMCell(2, bias_initializer=wrong)


def test_gates_of_the_cells_that_a_step_calls_are_put_right() -> None:
    lstm = LSTMCell(4, name="lstm")

    def step(x: nn.Variable, h: nn.Variable, c: nn.Variable) -> tuple:
        y, (h, c) = lstm(x, (h, c))
        return PF.affine(y, 2, name="out"), h, c

    model, layer = RecurrentModel(step, initial_states=[(4,), (4,)], name="m"), network()
    x = nn.Variable.from_numpy_array(X)
    ys, expected = model(x), layer(x)
    load_recurrentshop_weights(model, keras_arrays(), order=[lstm, "m/out/affine/W", "m/out/affine/b"])
    load_recurrentshop_weights(layer, keras_arrays())
    nn.forward_all([ys, expected])
    np.testing.assert_allclose(ys.d, expected.d, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("random_uniform", 0.1 / 12**0.5),
        ("random_normal", 0.05),
        ("truncated_normal", 0.05 * 0.8796),
        ("glorot_uniform", (2 / 500) ** 0.5),
        ("glorot_normal", (2 / 500) ** 0.5),
        ("he_uniform", (2 / 100) ** 0.5),
        ("he_normal", (2 / 100) ** 0.5),
        ("lecun_uniform", (1 / 100) ** 0.5),
        ("lecun_normal", (1 / 100) ** 0.5),
    ],
)
def test_random_initializers_have_the_deviation_of_keras(name: str, deviation: float) -> None:
    drawn = np.asarray(find_initializer(name)((100, 400)))
    assert drawn.std() == pytest.approx(deviation, rel=0.02)  # 40,000 draws: four standard errors
    assert abs(drawn.mean()) < 4 * deviation / 200
    nn.seed(1)
    first = find_initializer(name)((3, 4))
    nn.seed(1)
    np.testing.assert_array_equal(first, find_initializer(name)((3, 4)))


def test_initializers_that_are_not_random() -> None:
    np.testing.assert_array_equal(find_initializer("identity")((3, 3)), np.eye(3))
    q = find_initializer("orthogonal")((4, 8))
    np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-5)
    assert (np.broadcast_to(find_initializer("ones")((2,)), (2,)) == 1).all()
    assert (find_initializer("zeros")((2,)) == 0).all()


def test_dropout_of_a_weight_acts_in_training_only() -> None:
    def step(x: nn.Variable, h: nn.Variable) -> tuple:
        w = nn.parameter.get_parameter_or_create("w", (3, 3), np.eye(3))
        h = F.affine(x, F.dropout(w, 0.5)) + 0 * h
        return h, h

    rnn = RecurrentModel(step, initial_states=[(3,)], return_sequences=True)
    x = nn.Variable.from_numpy_array(X)
    dropped, calm = rnn(x), rnn(x, training=False)
    nn.forward_all([dropped, calm])
    np.testing.assert_allclose(calm.d, X, rtol=1e-6)
    assert not np.allclose(dropped.d, X)


def test_misuse_is_named() -> None:
    rnn = RecurrentSequential(name="rnn", stateful=True)
    rnn.add(GRUCell(4, name="gru"))
    for wrong, match in (
        (nn.Variable((2, 3)), r"rnn: needs sequences \(B, T, ...\); got \(2, 3\)"),
        (X, "a sequence must be a Variable; got ndarray"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            rnn(wrong)
    rnn(nn.Variable((2, 5, 3)))
    rnn.reset_states(7.0)
    with pytest.raises(ValueError, match=r"rows must be from 0 to 1; got \[2\]"):
        rnn.reset_states(rows=[2])
    with pytest.raises(ValueError, match=r"reset_states takes values of \[\(2, 4\)\]"):
        rnn.reset_states([np.zeros(3)])
    rnn.reset_states(0.0, rows=[1])  # what was wrong has changed nothing
    assert rnn._carried[0].get()[0][:, 0].tolist() == [7, 0]
    assert repr(rnn) == "RecurrentSequential('rnn')"
    inner = RecurrentSequential(name="inner")
    inner.add(GRUCell(4))
    inner.get_cell()
    with pytest.raises(ValueError, match=r"inner: add\(\) comes before the first call, and before get_cell\(\)"):
        inner.add(GRUCell(4))


def test_a_parameter_as_initial_state_cannot_be_carried_into() -> None:
    def learned(shape: tuple) -> nn.Variable:
        return nn.parameter.get_parameter_or_create("h0", shape, np.zeros(shape))

    rnn = RecurrentSequential(stateful=True, state_initializer=learned)
    rnn.add(GRUCell(4))
    with pytest.raises(ValueError, match="it cannot be stateful"):
        rnn(nn.Variable((2, 5, 3)))


def test_arrays_initialize_states() -> None:
    rnn = RecurrentSequential(state_initializer=[np.arange(4.0)], return_states=True)
    rnn.add(lift(F.mul_scalar, 0.0))
    rnn.add(GRUCell(4, kernel_initializer="zeros", recurrent_initializer="zeros"))
    _, h = rnn(nn.Variable.from_numpy_array(X[:, :1]))
    h.forward()
    np.testing.assert_allclose(h.d, np.tile(np.arange(4.0) / 2, (2, 1)), rtol=1e-6)  # z is one half
