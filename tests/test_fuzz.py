"""Files and data that were damaged, by accident or by hand: each loads, or an error says which is wrong; no crash, no hang.

In an ordinary run 100 examples of each law; `make fuzz` runs 5,000 of each.
"""

from __future__ import annotations

import copy
import faulthandler
import io
import json
import math
import os
import signal
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import h5py
import nnabla as nn
import nnabla.functions as F
import nnabla.initializer as I
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np
import pytest
from example_loader import load_example
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nnshop
from nnshop.archive import ArchiveError, write_archive
from nnshop.data import EOS, PARTS, UNKNOWN, DataError, load_corpus
from nnshop.recurrentshop import (
    GRUCell,
    LSTMCell,
    MaxNorm,
    RecurrentSequential,
    RHNCell,
    SimpleRNNCell,
    basic_cells,
    from_config,
    keras_files,
    l2,
    load_recurrentshop_weights,
    penalized,
)
from nnshop.seq2seq import EncoderDecoder, Seq2Seq
from nnshop.training import CheckpointError, load_checkpoint, save_checkpoint

PATIENCE = 20  # seconds for one example, of which the slowest takes a fraction of one
damaged = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
rngs = st.builds(Random, st.integers(0, 2**63))  # what hypothesis reports is the seed of an example


@contextmanager
def patience() -> Iterator[None]:
    """Turns a hang into a failure; where that does not help, in a loop of C, into the end of the process with a traceback."""

    def give_up(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"not done after {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------------------------------------------- damage


def damage_bytes(rng: Random, data: bytes, other: bytes) -> bytes:
    """Changes bytes, or cuts, removes, repeats some, or puts some of another file in, at a few places."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randint(0, len(made)), rng.choice([1, 1, 2, 8, 64, 1000])
        kind = rng.choice(["flip", "flip", "cut", "remove", "insert", "repeat", "splice", "overwrite"])
        if kind == "flip" and at < len(made):
            made[at] ^= 1 << rng.randint(0, 7)
        elif kind == "cut":
            del made[at:]
        elif kind == "remove":
            del made[at : at + length]
        elif kind == "insert":
            made[at:at] = bytes(rng.randint(0, 255) for _ in range(min(length, 8)))
        elif kind == "repeat":
            made[at:at] = made[at : at + length]
        elif kind in ("splice", "overwrite"):
            start = rng.randint(0, len(other))
            made[at : at + (length if kind == "overwrite" else 0)] = other[start : start + length]
    return bytes(made)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


DEEP_NAME = "a/" * 2000 + "a"
STRANGE: list[Any] = [
    *(None, True, -1, 0, 1, 3, 1.5, math.nan, math.inf, 2**31, 2**63, 10**30, -(10**400), 1e300),
    *(
        "",
        "x",
        "3",
        "tanh",
        "a/b",
        "\ud800",
        "\x00",
        [],
        {},
        [1],
        [[]],
        {"a": 1},
        nested(30),
        nested(150),
        nested(250),
        DEEP_NAME,
    ),
]


def places(data: Any) -> list[tuple[Any, Any]]:
    """All `(container, key)` in JSON data."""
    found, level = [], [data]
    while level:
        here = [(v, k) for v in level for k in (v if isinstance(v, dict) else range(len(v)))]
        found += here
        level = [v[k] for v, k in here if isinstance(v[k], (dict, list))]
    return found


def damage_json(rng: Random, data: Any, strange: list[Any]) -> Any:
    """Changes, removes, renames, exchanges or doubles values at a few places."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = places(data)
        if not found:
            return rng.choice(strange)
        container, key = rng.choice(found)
        other, other_key = rng.choice(found)
        kind = rng.choice(["change", "change", "change", "remove", "rename", "copy"])
        if kind == "change":
            container[key] = copy.deepcopy(rng.choice(strange))
        elif kind == "remove":
            del container[key]
        elif kind == "rename" and isinstance(container, dict):
            container[rng.choice(["x", "name", "make", str(other_key), ""])] = container.pop(key)
        elif kind == "copy":
            container[key] = copy.deepcopy(other[other_key])
    return data


def damage_arrays(rng: Random, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes, renames, adds arrays, or gives them other types, shapes and values."""
    arrays = dict(arrays)
    for _ in range(rng.choice([0, 1, 1, 2])):
        name = rng.choice(sorted(arrays))
        array, kind = arrays[name], rng.choice(["remove", "rename", "add", "type", "shape", "nan", "zeros", "exchange"])
        if kind in ("remove", "rename"):
            del arrays[name]
        if kind in ("rename", "add"):
            new = [name + "x", name[:-1], f"{name}/x", name.replace(":", ""), "state:7", "solver:x", "", "/", "a//b", DEEP_NAME]
            arrays[rng.choice(new)] = array
        if kind == "type" and array.dtype.kind in "fu":
            with np.errstate(over="ignore", invalid="ignore"):
                arrays[name] = array.astype(rng.choice(["f2", "f8", ">f4", "i4", "c16", "U3", "S2", "?", "M8[s]"]))
        if kind == "shape":
            arrays[name] = rng.choice([array.ravel(), array[None], array[:0] if array.ndim else array, array.T])
        if kind == "nan" and array.dtype.kind == "f":
            arrays[name] = np.full_like(array, np.nan)
        if kind == "zeros":
            arrays[name] = np.zeros_like(array)
        if kind == "exchange":
            arrays[name] = arrays[rng.choice(sorted(arrays))]
    return arrays


def put_no_file(rng: Random, path: Path) -> None:
    """Puts there what is no regular file: one that never begins, one that never ends, a folder."""
    rng.choice([os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])(path)


def remove(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)


def damage_header(rng: Random, data: bytes) -> bytes:
    """Gives an `.npy` file a header that claims something else."""
    file = io.BytesIO()
    descr = rng.choice(["<f4", "<f8", "|O", "<U0", "|S0", "|V0", "<U99", "f4,f4", "(2,3)<f4", "x", ",,", "<i8"])
    huge = [(2**40,), (2**40, 2**40), (0, 2**62), (2**31, 0), (1,) * 70]
    shape = rng.choice([(), (0,), (-1,), (-1, 0), (-2, -3), (True, 3), (2, 3), *huge])
    header = {"descr": descr, "fortran_order": rng.random() < 0.5, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    rest = data[len(data) - rng.choice([0, 8 * rng.randint(0, len(data) // 8)]) :]
    return file.getvalue() + rest


def damage_members(rng: Random, data: bytes) -> bytes:
    """Writes a zip again, its checksums true, with members that are doubled, renamed, compressed, or claim something else."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    for _ in range(rng.randint(0, 2)):
        at = rng.randrange(len(members))
        name, content = members[at]
        kind = rng.choice(["double", "header", "header", "bytes", "rename", "remove"])
        if kind == "double":
            members.insert(rng.randint(0, len(members)), (name, members[rng.randrange(len(members))][1]))
        elif kind == "header":
            members[at] = (name, damage_header(rng, content))
        elif kind == "bytes":
            members[at] = (name, damage_bytes(rng, content, data))
        elif kind == "rename":
            members[at] = (rng.choice([name + "x", name[:-4], f"../{name}", "meta.npy", "meta", ""]), content)
        elif len(members) > 1:
            del members[at]
    out = io.BytesIO()
    compression = rng.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as file:
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return out.getvalue()


class Whole:
    """A file as it should be, and what `write_archive` was given for it; no dataclass, which hypothesis would print whole."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind, self.file = kind, path.read_bytes()
        meta, self.arrays = read_with_numpy(path)
        self.meta = {name: value for name, value in meta.items() if name not in ("format", "kind", "nnabla", "arrays")}


def damage_archive(rng: Random, path: Path, whole: Whole, other: bytes, strange: list[Any]) -> None:
    """Writes a file that is damaged in its bytes, its members, or in what `write_archive` was given."""
    meta, arrays = whole.meta, whole.arrays
    level = rng.choice(["bytes", "members", "data", "data", "data"]) if rng.random() < 0.98 else "no file"
    remove(path)
    if level == "no file":
        put_no_file(rng, path)
        return
    if level == "data":
        meta = damage_json(rng, meta, strange) if rng.random() < 0.7 else meta
        arrays = damage_arrays(rng, arrays) if rng.random() < 0.7 else arrays
    try:
        write_archive(path, whole.kind, meta if isinstance(meta, dict) else {}, arrays)
    except (ValueError, RecursionError):  # what is no archive at all is not written either
        path.write_bytes(whole.file)
    if level == "bytes":
        path.write_bytes(damage_bytes(rng, path.read_bytes(), other))
    elif level == "members":
        path.write_bytes(damage_members(rng, path.read_bytes()))


def read_with_numpy(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(path) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("meta"))), arrays


def parameters() -> dict[str, np.ndarray]:
    return {name: v.d.copy() for name, v in nn.get_parameters(grad_only=False).items()}


def assert_equal(a: Any, b: Any) -> None:
    """That nested data are equal, NaN to NaN."""
    np.testing.assert_equal(a, b)


def assert_says(error: Exception, what: str) -> None:
    assert what in str(error)


def assert_said_by_nnshop(error: Exception) -> None:
    """That the library raised it, not what it calls."""
    assert str(error)
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    assert Path(raised_in).is_relative_to(Path(nnshop.__file__).parent)


# ----------------------------------------------------------------------------------------------------------- checkpoints


class Regression:
    """A small training with Adam."""

    def __init__(self) -> None:
        nn.clear_parameters()
        x = nn.Variable.from_numpy_array(np.ones((2, 3)))
        self.loss = F.mean(PF.affine(F.tanh(PF.affine(x, 2, name="a")), 1, name="b") ** 2)
        self.solver = S.Adam(0.01)
        self.solver.set_parameters(nn.get_parameters())
        self.train()

    def train(self) -> None:
        self.solver.zero_grad()
        self.loss.forward()
        self.loss.backward()
        self.solver.update()

    def everything(self) -> dict[str, Any]:
        states = self.solver.get_states()
        return {
            "parameters": parameters(),
            "solver": {n: {k: v.data.data.copy() for k, v in s.pstate.items()} for n, s in states.items()},
            "t": {name: state.t for name, state in states.items()},
            "learning rate": self.solver.learning_rate(),
            "random": [np.random.get_state(), nn.random.prng.get_state()],
        }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    path = tmp_path_factory.mktemp("checkpoint") / "c.npz"
    progress = {"epoch": 1, "history": [[1, 2.5]], "settings": {"cell": "lstm"}}
    save_checkpoint(path, Regression().solver, progress, [np.ones((2, 3), np.float32)])
    return Whole(path, "checkpoint")


@damaged
@given(rng=rngs)
def test_a_damaged_checkpoint_changes_nothing_or_loads(checkpoint: Whole, network: Whole, tmp_path: Path, rng: Random) -> None:
    path = tmp_path / "damaged.npz"
    damage_archive(rng, path, checkpoint, network.file, STRANGE)
    training = Regression()
    before = training.everything()
    try:
        with patience():
            loaded = load_checkpoint(path)
            assert_equal(training.everything(), before)
            loaded.restore(training.solver)
    except CheckpointError as error:
        assert_says(error, str(path))
        assert_equal(training.everything(), before)
        return
    meta, arrays = read_with_numpy(path)
    after = training.everything()
    assert_equal(after["parameters"], {n[10:]: a for n, a in arrays.items() if n.startswith("parameter:")})
    assert_equal(after["t"], meta["solver"]["t"])
    assert_equal(after["learning rate"], float(np.float32(meta["solver"]["learning_rate"])))
    assert_equal([state[1] for state in after["random"]], [arrays["random:numpy"], arrays["random:nnabla"]])
    assert isinstance(loaded.progress, dict)
    with patience(), np.errstate(all="ignore"):
        np.random.randn(3)
        nn.random.prng.randn(3)
        training.train()


# -------------------------------------------------------------------------------------------------------- EncoderDecoder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    path = tmp_path_factory.mktemp("network") / "n.npz"
    nn.clear_parameters()
    cells = nnshop.stack(nnshop.LSTMCell(3), nnshop.residual(nnshop.GRUCell(3)))
    made = EncoderDecoder(6, 7, 5, 6, [nnshop.GRUCell(3)], cells, width=4, attention="concat", attention_width=3)
    made.loss(nn.Variable((1, 1)), nn.Variable((1, 1)))
    made.save(path)
    nn.clear_parameters()
    return Whole(path, "encoder-decoder")


def can_be_called(config: Any) -> bool:
    """Whether its numbers are small, and its functions are given what they were: of a width of 0 NNabla ends the process."""
    parts = [v[k] for v, k in places([config])]
    numbers = [part for part in parts if isinstance(part, (int, float))]
    return all(abs(number) < 1000 for number in numbers) and all(call in CALLS for call in calls(parts))


def calls(parts: list[Any]) -> list[Any]:
    """The functions among parts of a config, with what they are given."""
    lifted = [part.get("arguments") for part in parts if isinstance(part, dict) and part.get("make") == "nnshop.Lifted"]
    return [[part.get(name) for name in ("function", "arguments", "options")] for part in lifted if isinstance(part, dict)]


@damaged
@given(rng=rngs)
def test_a_damaged_network_leaves_nothing_or_loads(checkpoint: Whole, network: Whole, tmp_path: Path, rng: Random) -> None:
    path = tmp_path / "damaged.npz"
    damage_archive(rng, path, network, checkpoint.file, [*STRANGE, *CONFIG_PARTS])
    nn.clear_parameters()
    try:
        with patience():
            made = EncoderDecoder.load(path)
    except ArchiveError as error:
        assert_says(error, str(path))
        assert not parameters()
        return
    meta, arrays = read_with_numpy(path)
    with nn.parameter_scope(made.name):
        assert_equal(parameters(), arrays)
    if can_be_called(meta["settings"]):
        try:
            with patience():
                assert len(made.generate([[1, 2], [3]], max_length=2).ids) == 2
        except ValueError as error:  # weights of NaN
            assert_said_by_nnshop(error)
        with nn.parameter_scope(made.name):
            assert_equal(parameters(), arrays)


# What NNabla raises for arguments that do not fit, such as those of a function that a config names.
MISTAKES = (ValueError, TypeError, AssertionError, RuntimeError)


def works(call: Callable[[], Any]) -> None:
    """That a call gives something, or an error of its arguments that leaves no parameters behind."""
    names = set(parameters())
    try:
        with patience():
            call()
    except MISTAKES:
        assert set(parameters()) == names


# --------------------------------------------------------------------------------------------------------------- configs


def built(*cells: Any, **options: Any) -> RecurrentSequential:
    rnn = RecurrentSequential(name="rnn", **options)
    for cell in cells:
        rnn.add(cell)
    return rnn


LAYERS: dict[str, Callable[[], Any]] = {
    "stack": lambda: built(LSTMCell(4), nnshop.lift(PF.affine, 5), GRUCell(3), SimpleRNNCell(2), return_states=True),
    "settings": lambda: built(
        LSTMCell(4, activation="relu", kernel_initializer=I.UniformInitializer((-0.1, 0.1)), kernel_regularizer=l2(0.1)),
        GRUCell(3, recurrent_initializer=I.OrthogonalInitializer(0.5), bias_constraint=MaxNorm(1.0)),
        state_initializer=["ones", None, I.ConstantInitializer(0.5)],
    ),
    "sync": lambda: built(LSTMCell(3), LSTMCell(3), state_sync=True, unroll=True, return_states=True),
    "readout": lambda: built(RHNCell(3, recurrence_depth=2), readout="avg", readout_activation="tanh", go_backwards=True),
    "dropout": lambda: built(SimpleRNNCell(3), nnshop.lift(F.dropout, 0.3), penalized(nnshop.lift(PF.affine, 2), {"b": l2()})),
    "textbook": lambda: built(nnshop.LSTMCell(4, forget_bias=1.0), nnshop.residual(nnshop.GRUCell(4, name="top"))),
    "nested": lambda: built(built(basic_cells.LSTMCell(3), readout="mul").get_cell(), F.tanh, readout="add"),
    "layer": lambda: LSTMCell(4).get_layer(return_sequences=True),
    "model": lambda: Seq2Seq(output_dim=3, output_length=2, hidden_dim=3, depth=(2, 1), input_shape=(None, 3), name="model"),
}
CONFIGS = {kind: json.loads(json.dumps(make().get_config())) for kind, make in LAYERS.items()}
CONFIG_PARTS = [v[k] for config in CONFIGS.values() for v, k in places(config)]
CALLS = calls(CONFIG_PARTS)


@damaged
@given(rng=rngs, kind=st.sampled_from(sorted(CONFIGS)))
def test_a_damaged_config_is_refused_or_makes_a_layer(rng: Random, kind: str) -> None:
    config = damage_json(rng, CONFIGS[kind], [*STRANGE, *CONFIG_PARTS])
    nn.clear_parameters()
    try:
        with patience():
            rnn = from_config(config)
    except (ValueError, TypeError) as error:
        assert_said_by_nnshop(error)
        return
    described = json.dumps(rnn.get_config())
    assert json.dumps(from_config(json.loads(described)).get_config()) == described
    if can_be_called(config):
        works(lambda: rnn(nn.Variable((2, 4, 3)), training=False))


# --------------------------------------------------------------------------------------------------------- files by Keras


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("keras") / "w.h5"
    shapes = [(3, 16), (16,), (4, 16), (4, 2), (2,)]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"layer"]
        group = file.create_group("layer")
        group.attrs["weight_names"] = [f"layer/w{i}".encode() for i in range(len(shapes))]
        for i, shape in enumerate(shapes):
            group[f"layer/w{i}"] = np.ones(shape, np.float32)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def hdf5_gives_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_files, "SECONDS", PATIENCE / 2)


def damage_keras(rng: Random, path: Path) -> None:
    """Gives a file by Keras other names, arrays, links and storages."""
    size = rng.choice([0, 2, 16, 10**10, 2**40])
    options = rng.choice([{}, {}, {"chunks": True}, {"external": [("/etc/passwd", 0, 8)]}, {"compression": "gzip"}])
    links = [h5py.ExternalLink("/etc/passwd", "/x"), h5py.SoftLink("/layer"), h5py.SoftLink("/layer/layer/w1")]
    names = [
        5,
        1.5,
        [b"layer"],
        [b"layer"] * 1000,
        [b"layer/w0", b"\xff"],
        [b"/", b"."],
        b"layer",
        "layer",
        np.zeros(0),
        [[b"x"]],
    ]
    kind = rng.choice(["names", "link", "array", "remove"])
    with h5py.File(path, "r+") as file:
        group = file["layer/layer"]
        if kind == "names":
            rng.choice([file, file["layer"]]).attrs[rng.choice(["layer_names", "weight_names"])] = rng.choice(names)
            return
        place, name = rng.choice([*((group, f"w{i}") for i in range(5)), (file, "layer"), (file["layer"], "layer")])
        del place[name]
        if kind == "link":
            place[name] = rng.choice(links)
        elif kind == "array":
            types = ["f4", "f8", "i8", "?", "c8", "S3", h5py.string_dtype(), h5py.ref_dtype]
            place.create_dataset(name, rng.choice([(size,), (4, size), ()]), rng.choice(types), **options)


@settings(damaged, max_examples=settings.default.max_examples // 10)  # each starts a process
@given(rng=rngs)
def test_a_damaged_file_by_keras_changes_nothing_or_loads(keras: bytes, tmp_path: Path, rng: Random) -> None:
    path = tmp_path / "w.h5"
    remove(path)
    path.write_bytes(keras)
    kind = rng.choice(["contents"] * 8 + ["bytes"] * 8 + ["no file"])
    if kind == "contents":
        with suppress(TypeError, ValueError):  # not all options go together
            damage_keras(rng, path)
    elif kind == "bytes":
        path.write_bytes(damage_bytes(rng, keras, keras))
    else:
        remove(path)
        put_no_file(rng, path)
    nn.clear_parameters()
    rnn = built(LSTMCell(4), nnshop.lift(PF.affine, 2))
    rnn(nn.Variable((2, 4, 3)))
    before = parameters()
    try:
        with patience():
            load_recurrentshop_weights(rnn, path)
    except ArchiveError as error:
        assert_says(error, str(path))
        assert_equal(parameters(), before)


# --------------------------------------------------------------------------------------------------------------- corpora

LINES = [
    f"the {animal} sat on the {place}, and 3 more." for animal in ("cat", "dog", "bird") for place in ("mat", "roof", "sea")
]
TEXT = ("\n".join(LINES * 3) + "\n").encode()
SEPARATORS = [
    *("\r", "\n", "\x00", "\x0b", "\x1c", "\x85", "\u2028", "\ufeff", "\u00a0", "\u200b", "\u3000", "\U0001f600", "\u0130"),
    *("<unk>", "<eos>", " ", "é", "x" * 100_000, "a" * 10_000 + "'" * 10_000, "\n" * 1000),
]


def damage_text(rng: Random, text: bytes) -> bytes:
    for _ in range(rng.randint(0, 3)):
        strange = rng.choice(SEPARATORS).encode(rng.choice(["utf-8"] * 4 + ["utf-16", "utf-32"]))
        kind = rng.choice(["insert", "replace", "alone"])
        at = rng.choice([0, len(text), rng.randint(0, len(text))])
        if kind == "insert":
            text = text[:at] + strange + text[at:]
        else:
            text = text.replace(rng.choice([b"\n", b" "]), strange) if kind == "replace" and len(strange) < 100 else strange
    return damage_bytes(rng, text, TEXT) if rng.random() < 0.5 else text


def damaged_corpus(rng: Random, folder: Path) -> Path:
    """A text, or a folder of three parts, one of them damaged, missing, doubled, or no file."""
    if rng.random() < 0.5:
        (folder / "text.txt").write_bytes(damage_text(rng, TEXT))
        return folder / "text.txt"
    ptb = folder / "ptb"
    ptb.mkdir()
    for part in PARTS:
        (ptb / f"ptb.{part}.txt").write_bytes(TEXT)
    chosen, kind = ptb / f"ptb.{rng.choice(PARTS)}.txt", rng.choice(["damage"] * 6 + ["remove", "double", "no file"])
    if kind in ("remove", "no file"):
        chosen.unlink()
    if kind == "no file":
        put_no_file(rng, chosen)
    elif kind == "double":
        (ptb / f"other.{chosen.name}").write_bytes(TEXT)
    elif kind == "damage":
        chosen.write_bytes(damage_text(rng, TEXT))
    return ptb


@damaged
@given(rng=rngs, size=st.sampled_from([3, 4, 10, 1000]))
def test_a_damaged_text_is_named_or_is_a_corpus(tmp_path_factory: pytest.TempPathFactory, rng: Random, size: int) -> None:
    path = damaged_corpus(rng, tmp_path_factory.mktemp("corpus"))
    try:
        with patience():
            corpus = load_corpus(path, size)
    except DataError as error:
        assert_says(error, str(path))
        return
    words = corpus.vocabulary.words
    assert len(set(words)) == len(words) <= size
    assert {EOS, UNKNOWN} <= set(words)
    for part in PARTS:
        ids = getattr(corpus, part)
        assert ids.ndim == 1
        assert len(ids) >= 2
        assert 0 <= ids.min() <= ids.max() < len(words)
    assert str(corpus)


# ---------------------------------------------------------------------------------------------- the language model's files


MODEL_FILES = ("settings.json", "vocabulary.json", "best.npz")


@pytest.fixture(scope="module")
def example() -> Any:
    return load_example("language_model")


@pytest.fixture(scope="module")
def trained(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_bytes(TEXT)
    tiny = "--units 4 --layers 1 --batch-size 2 --num-steps 3 --epochs 1 --context cpu".split()
    assert example.main(["train", "--data", str(folder / "text.txt"), *tiny, "--output", str(folder)]) == 0
    return folder


@damaged
@given(rng=rngs)
def test_a_damaged_model_is_named_or_loads(example: Any, trained: Path, tmp_path: Path, rng: Random) -> None:
    files = {name: (trained / name).read_bytes() for name in MODEL_FILES if (trained / name).exists()}
    chosen = rng.choice(sorted(files))
    other = files[rng.choice(sorted(files))]
    if chosen.endswith(".json") and rng.random() < 0.7:
        files[chosen] = json.dumps(damage_json(rng, json.loads(files[chosen]), STRANGE)).encode()
    elif rng.random() < 0.05:
        files[chosen] = b"[" * rng.choice([150, 250, 100_000])
    else:
        files[chosen] = damage_bytes(rng, files[chosen], other)
    for name, content in files.items():
        remove(tmp_path / name)
        (tmp_path / name).write_bytes(content)
    if rng.random() < 0.02:
        remove(tmp_path / chosen)
        put_no_file(rng, tmp_path / chosen)
    try:
        with patience():
            made, vocabulary, _ = example.load_model(tmp_path)
    except CheckpointError as error:
        assert_says(error, str(tmp_path))
        return
    assert {EOS, UNKNOWN} <= set(vocabulary.words)
    assert example.generate_texts(made, vocabulary, [EOS], samples=1, length=2, temperature=1.0, seed=1)
