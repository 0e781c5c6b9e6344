"""A network from one sequence of ids to another: what it learns by is what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.solvers as S
import numpy as np
import pytest
from measuring import constant, randomize

from nnshop import (
    Cell,
    GRUCell,
    LSTMCell,
    RecurrentSequential,
    SimpleRNNCell,
    StateSpec,
    no_new_parameters,
    residual,
    run,
    stack,
)  # fmt: skip
from nnshop.archive import ArchiveError, read_archive, write_archive
from nnshop.recurrentshop import config
from nnshop.scores import Concat
from nnshop.seq2seq import EncoderDecoder

START, END = 7, 8
SOURCE = np.array([[1, 4, 2, 3, 5], [2, 2, 1, 0, 0], [5, 0, 0, 0, 0]])
LENGTHS = [5, 3, 1]
TARGET = np.array([[3, 1, 2, 6], [4, 0, 0, 0], [0, 0, 0, 0]])
TARGET_LENGTHS = [4, 1, 0]

NETWORKS: dict[str, dict[str, Any]] = {
    "attention": {},
    "no attention": {"attention": None},
    "no bridge": {"bridge": None},
    "copy": {"bridge": "copy", "encoder": LSTMCell(3), "decoder": LSTMCell(6)},
    "copy, one direction": {"bridge": "copy", "encoder": GRUCell(6), "decoder": GRUCell(6), "bidirectional": False},
    "input feeding": {"input_feeding": True, "attention_width": 5},
    "concat": {"attention": Concat(units=4)},
    "location": {"attention": "location"},
    "shared and tied": {"shared": True, "source_size": 9, "tied": True, "attention_width": 4},
    "tied": {"tied": True, "attention": None, "decoder": LSTMCell(4)},
    "deep": {
        "encoder": (GRUCell(3), SimpleRNNCell(4)),
        "decoder": stack(LSTMCell(5), residual(LSTMCell(5))),
        "attention_width": 3,
    },
    "dropout": {"dropout": 0.3},
}
each_network = pytest.mark.parametrize("kind", NETWORKS)


def network(kind: str = "attention", **options: Any) -> EncoderDecoder:
    """A network with random weights."""
    settings = {"encoder": GRUCell(3), "decoder": GRUCell(4), "width": 4, "source_size": 6, **NETWORKS[kind], **options}
    made = EncoderDecoder(settings.pop("source_size"), 9, START, END, **settings)
    made.loss(*map(nn.Variable, ((1, 1), (1, 1))))
    randomize(scale=0.7)
    return made


def losses(made: EncoderDecoder, source: Any = SOURCE, target: Any = TARGET, **options: Any) -> np.ndarray:
    options = {"source_lengths": LENGTHS, "target_lengths": TARGET_LENGTHS, "training": False, "reduction": "none", **options}
    loss = made.loss(constant(source), constant(target), **options)
    loss.forward()
    return loss.d.copy()


@each_network
@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_the_score_of_what_it_says_is_its_loss(kind: str, method: str) -> None:
    """So the graphs of training and of generating are one network."""
    made = network(kind)
    options = {"beam": {"width": 3}, "sample": {"seed": 1}}.get(method, {})
    said = made.generate(SOURCE, LENGTHS, method, max_length=6, **options)
    found = -losses(made, target=said.ids, target_lengths=said.lengths)
    counts = np.minimum(said.lengths + 1, 6)  # the end token, unless it was not reached
    for score, row, count in zip(said.scores, found, counts):
        np.testing.assert_allclose(score, row[:count].sum(), rtol=1e-4, atol=1e-5)


@each_network
def test_a_batch_is_its_rows(kind: str) -> None:
    """Which also means that what stands beyond the lengths does not matter."""
    made = network(kind)
    together = losses(made)
    said = made.generate(SOURCE, LENGTHS, max_length=6)
    for row, (length, target_length) in enumerate(zip(LENGTHS, TARGET_LENGTHS)):
        one = slice(row, row + 1)
        alone = losses(
            made,
            SOURCE[one, :length],
            TARGET[one, : max(1, target_length)],
            source_lengths=[length],
            target_lengths=[target_length],
        )
        np.testing.assert_allclose(together[row, : target_length + 1], alone[0, : target_length + 1], rtol=1e-4, atol=1e-5)
        assert np.all(together[row, target_length + 1 :] == 0)
        alone_said = made.generate([SOURCE[row, :length].tolist()], max_length=6)
        assert said.ids[row, : said.lengths[row]].tolist() == alone_said.ids[0, : alone_said.lengths[0]].tolist()
        np.testing.assert_allclose(said.scores[row], alone_said.scores[0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["attention", "no attention", "location", "input feeding"])
def test_padding_changes_neither_values_nor_gradients(kind: str) -> None:
    made = network(kind)
    found = []
    for filler in (0, 5, 10**6):  # ids beyond the vocabulary too
        source = np.where(np.arange(5) < np.array(LENGTHS)[:, None], SOURCE, filler)
        target = np.where(np.arange(4) < np.array(TARGET_LENGTHS)[:, None], TARGET, filler)
        for v in nn.get_parameters().values():
            v.grad.zero()
        loss = made.loss(constant(source), constant(target), LENGTHS, TARGET_LENGTHS, training=False)
        loss.forward()
        loss.backward()
        found.append([loss.d.copy(), *(v.g.copy() for v in nn.get_parameters().values())])
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)
    assert np.isfinite(found[0][0])


def test_lengths_may_be_variables() -> None:
    made = network()
    given = {"source_lengths": constant(LENGTHS), "target_lengths": constant(TARGET_LENGTHS)}
    np.testing.assert_array_equal(losses(made, **given), losses(made))


def test_the_targets_end_with_the_end_token() -> None:
    """An empty target has one loss, that of the end token after the start token."""
    made = network()
    one = losses(made)[2]
    assert one[0] > 0
    assert np.all(one[1:] == 0)
    whole = losses(made, SOURCE[:1], TARGET[:1], source_lengths=None, target_lengths=None)
    np.testing.assert_allclose(whole[0], losses(made)[0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "no attention", "input feeding"])
def test_scheduled_sampling(kind: str) -> None:
    """With probability 0 it is the loss with the targets; with 1 the decoder hears itself, as it does when it generates."""
    made = network(kind)
    share = nn.Variable((1,))
    loss = made.loss(constant(SOURCE), constant(TARGET), LENGTHS, training=False, sampling_probability=share, reduction="none")
    share.d = 0
    loss.forward()
    np.testing.assert_allclose(loss.d, losses(made, target_lengths=None), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses(made, sampling_probability=share), losses(made), rtol=1e-4, atol=1e-5)
    share.d = 1
    loss.forward()
    said = made.generate(SOURCE, LENGTHS, max_length=4)
    for row, length in enumerate(said.lengths):  # its own words before each target
        for t in range(1, min(length, 3) + 1):
            spoken = np.r_[said.ids[row, :t], TARGET[row, t : t + 1]]
            expected = losses(made, SOURCE[row : row + 1], spoken[None], source_lengths=[LENGTHS[row]], target_lengths=None)
            np.testing.assert_allclose(loss.d[row, t], expected[0, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "dropout", "tied", "deep"])
def test_it_learns(kind: str) -> None:
    """To turn four symbols around."""
    wide = {"encoder": GRUCell(16), "decoder": LSTMCell(12), "width": 12}
    made = network(kind, **({} if kind == "deep" else wide))
    rng = np.random.RandomState(0)
    source, target = nn.Variable((16, 3)), nn.Variable((16, 3))
    loss = made.loss(source, target)
    solver = S.Adam(0.02)
    solver.set_parameters(nn.get_parameters())
    history = []
    for _ in range(60):
        source.d = rng.randint(4, size=(16, 3))
        target.d = source.d[:, ::-1]
        solver.zero_grad()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        solver.update()
        history.append(float(loss.d))
    assert np.mean(history[-5:]) < 0.6 * np.mean(history[:5])


NEW_PROCESS = """
import sys, numpy as np
from nnshop.seq2seq import EncoderDecoder
made = EncoderDecoder.load(sys.argv[1])
said = made.generate(np.load(sys.argv[2]), [5, 3, 1], "beam", max_length=6, width=3)
np.savez(sys.argv[3], ids=said.ids, scores=said.scores)
"""


@pytest.mark.parametrize("kind", ["attention", "deep", "concat", "shared and tied"])
def test_saved_and_loaded_in_a_new_process_it_says_the_same(kind: str, tmp_path: Path) -> None:
    made = network(kind)
    made.save(tmp_path / "model.npz")
    np.save(tmp_path / "source.npy", SOURCE)
    files = [str(tmp_path / name) for name in ("model.npz", "source.npy", "said.npz")]
    subprocess.run([sys.executable, "-c", NEW_PROCESS, *files], check=True)
    said = made.generate(SOURCE, LENGTHS, "beam", max_length=6, width=3)
    with np.load(files[2]) as again:
        np.testing.assert_array_equal(again["ids"], said.ids)
        np.testing.assert_array_equal(again["scores"], said.scores)


def test_loading_twice_and_elsewhere(tmp_path: Path) -> None:
    made = network()
    made.save(tmp_path / "a.npz")
    before = losses(made)
    for v in nn.get_parameters().values():
        v.d = 0
    again = EncoderDecoder.load(tmp_path / "a.npz")
    assert again == made
    np.testing.assert_array_equal(losses(again), before)
    with nn.parameter_scope("elsewhere"):
        other = EncoderDecoder.load(tmp_path / "a.npz")
        with no_new_parameters():
            np.testing.assert_array_equal(losses(other), before)


def test_loading_over_another_network_changes_nothing(tmp_path: Path) -> None:
    network().save(tmp_path / "a.npz")
    for options in ({"decoder": LSTMCell(4)}, {"bridge": None}):
        nn.clear_parameters()
        network(**options)
        before = {name: v.d.copy() for name, v in nn.get_parameters().items()}
        with pytest.raises(ValueError, match=r"a\.npz: is of encoder_decoder, and there are weights of another network"):
            EncoderDecoder.load(tmp_path / "a.npz")
        assert before.keys() == nn.get_parameters().keys()
        for name, v in nn.get_parameters().items():
            np.testing.assert_array_equal(v.d, before[name])


def test_a_cell_of_one_s_own_is_saved_by_name(tmp_path: Path) -> None:
    own = Cell(lambda x, h: (x + h, h), StateSpec((4,)))
    made = network(decoder=own)
    with pytest.raises(ValueError, match="custom_objects"):
        made.save(tmp_path / "a.npz")
    made.save(tmp_path / "a.npz", {"own": own})
    assert EncoderDecoder.load(tmp_path / "a.npz", {"own": own}) == made
    with pytest.raises(ValueError, match=r"'own'.*custom_objects"):
        EncoderDecoder.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 3), (3, 3)), {}, "source and target need one batch size"),
        (((2, 3), (2, 3, 1)), {}, r"the target must be ids of shape \(B, T\)"),
        (((2, 3), (2, 3)), {"source_lengths": [3]}, "source_lengths must be one number for each of 2 rows"),
        (((2, 3), (2, 3)), {"target_lengths": nn.Variable((3,))}, "target_lengths must be one number for each of 2 rows"),
    ],
)
def test_bad_batches_are_named(shapes: tuple, options: dict, message: str) -> None:
    made = EncoderDecoder(6, 9, START, END, [GRUCell(3)], GRUCell(4), width=4)
    with pytest.raises(ValueError, match=message):
        made.loss(*map(nn.Variable, shapes), **options)
    assert not nn.get_parameters()


def test_what_is_no_variable_is_named() -> None:
    made = EncoderDecoder(6, 9, START, END, GRUCell(3), GRUCell(4), width=4)
    with pytest.raises(TypeError, match="the source must be a Variable; got ndarray"):
        made.loss(SOURCE, TARGET)
    with pytest.raises(TypeError, match=r"sampling_probability must be a Variable of shape \(1,\); got 0.5"):
        made.loss(constant(SOURCE), constant(TARGET), sampling_probability=0.5)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"none\.npz: there is no such encoder-decoder"):
        EncoderDecoder.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ArchiveError, match=r"text\.npz: is not a whole encoder-decoder"):
        EncoderDecoder.load(tmp_path / "text.npz")
    made = network()
    made.save(tmp_path / "whole.npz")
    data = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArchiveError, match=r"half\.npz: is not a whole encoder-decoder"):
        EncoderDecoder.load(tmp_path / "half.npz")
    np.savez(tmp_path / "foreign.npz", a=np.ones(3))
    with pytest.raises(ArchiveError, match=r"foreign\.npz: is not a whole encoder-decoder"):
        EncoderDecoder.load(tmp_path / "foreign.npz")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("output/b", np.array(["x"] * 9), "output/b is of <U1"),
        ("output/b", np.ones(9, complex), "output/b is of complex128"),
        ("output/b/x", np.ones(9, np.float32), "a scope and a parameter of one name"),  # below a weight
        ("//", np.ones(9, np.float32), "is no name of a parameter"),
    ],
)
def test_weights_that_are_none_leave_no_others_behind(tmp_path: Path, name: str, value: np.ndarray, message: str) -> None:
    network().save(tmp_path / "a.npz")
    meta, weights = read_archive(tmp_path / "a.npz", "encoder-decoder")
    write_archive(tmp_path / "a.npz", "encoder-decoder", meta, {**weights, name: value})
    nn.clear_parameters()
    with pytest.raises(ArchiveError, match=rf"a\.npz: is not a whole encoder-decoder .*{message}"):
        EncoderDecoder.load(tmp_path / "a.npz")
    assert not nn.get_parameters()


def damaged_settings(path: Path, **changes: object) -> None:
    """A whole file, but for what its settings say."""
    meta, weights = read_archive(path, "encoder-decoder")
    write_archive(path, "encoder-decoder", {"settings": {**meta["settings"], **changes}}, weights)


@pytest.mark.parametrize(
    "changes",
    [
        {"source_size": 7},
        {"target_size": 10**9},
        {"width": 5},
        {"bidirectional": False},
        {"attention": "concat"},
        {"attention": None},
        {"input_feeding": True},
        {"tied": True},
        {"decoder": config.encode(GRUCell(10**9))},
        {"decoder": config.encode(LSTMCell(4))},
        {"encoder": config.encode((GRUCell(3), GRUCell(3)))},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_weights_are_refused(tmp_path: Path, changes: dict) -> None:
    network().save(tmp_path / "a.npz")
    damaged_settings(tmp_path / "a.npz", **changes)
    nn.clear_parameters()
    with pytest.raises(
        ArchiveError, match=r"a\.npz: is not a whole encoder-decoder .*(do not fit its weights|is beyond a network)"
    ):
        EncoderDecoder.load(tmp_path / "a.npz")
    assert not nn.get_parameters()
    assert not nn.parameter.get_current_parameter_scope()  # nor an empty scope


def test_names_thousands_of_scopes_deep_are_refused(tmp_path: Path) -> None:
    network().save(tmp_path / "a.npz")
    damaged_settings(tmp_path / "a.npz", name="a/" * 2000 + "a")
    nn.clear_parameters()
    with pytest.raises(ArchiveError, match=r"name must be that of a scope, of at most 100"):
        EncoderDecoder.load(tmp_path / "a.npz")
    meta, weights = read_archive(tmp_path / "a.npz", "encoder-decoder")
    settings = {**meta["settings"], "name": "a"}
    write_archive(tmp_path / "a.npz", "encoder-decoder", {"settings": settings}, {**weights, "a/" * 2000 + "a": np.ones(2)})
    with pytest.raises(ArchiveError, match=r"is no name of a parameter"):
        EncoderDecoder.load(tmp_path / "a.npz")
    assert not nn.parameter.get_current_parameter_scope()
    run(GRUCell(3), nn.Variable((2, 3, 4)))  # nothing deep is left behind


def test_what_else_is_in_the_scope_is_not_saved_with_it(tmp_path: Path) -> None:
    made = network()
    with nn.parameter_scope(made.name):
        nn.parameter.get_parameter_or_create("mine", (2,))
    with pytest.raises(ValueError, match="there is no use for the weights encoder_decoder/mine"):
        made.save(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_nothing_is_saved_before_there_are_weights(tmp_path: Path) -> None:
    made = EncoderDecoder(6, 9, START, END, GRUCell(3), GRUCell(4), width=4)
    with pytest.raises(ValueError, match="encoder_decoder has no weights here: build its loss"):
        made.save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="encoder_decoder has no weights here: build its loss"):
        made.generate([[1, 2]], max_length=3)
    assert not nn.get_parameters()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_size": 0}, "needs source_size >= 1, a whole number; got 0"),
        ({"start": 9}, "start must be one of the target's 9 ids, from 0; got 9"),
        ({"end": -1}, "end must be one of the target's 9 ids, from 0; got -1"),
        ({"end": START}, "start and end must differ; both are 7"),
        ({"bridge": "sum"}, "bridge must be 'dense', 'copy' or None; got 'sum'"),
        ({"bridge": None, "attention": None}, "know nothing of the source"),
        ({"shared": True}, "shared=True needs one size on both sides; got 6 and 9"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1; got 1.0"),
        ({"dropout": "0.1"}, "dropout must be from 0 to below 1; got '0.1'"),
        ({"start": 7.0}, "start must be one of the target's 9 ids, from 0; got 7.0"),
        ({"encoder": ()}, "needs a cell for its encoder, or several"),
        ({"width": 2.5}, "needs width >= 1, a whole number; got 2.5"),
        ({"attention": "luong"}, "luong"),
        ({"attention_width": 0}, "attention_width >= 1"),
        ({"attention": None, "input_feeding": True}, "with attention=None there is none"),
    ],
)
def test_bad_settings_are_named(options: dict, message: str) -> None:
    settings = {"source_size": 6, "target_size": 9, "start": START, "end": END, "encoder": GRUCell(3), "decoder": GRUCell(4)}
    with pytest.raises(ValueError, match=message):
        EncoderDecoder(**{**settings, **options})


def test_widths_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"bridge='copy' needs final states .* \[\(4,\)\]; they are \[\(6,\)\], both directions"
    ):
        network(bridge="copy")
    assert not nn.get_parameters()
    with pytest.raises(ValueError, match=r"tied=True needs a decoder whose output has the embeddings' width 4; it has 10"):
        network(tied=True)
    with pytest.raises(ValueError, match=r"4.*6|6.*4"):
        network(attention="dot")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([[1, 6]], {}, r"source ids must be from 0 to 5; got \[6\]"),
        ([[1, -1]], {}, r"source ids must be from 0 to 5; got \[-1\]"),
        (np.ones((2, 3)), {}, r"whole numbers \(B, S\)"),
        ([], {}, "at least one row"),
        ([[1]], {"method": "best"}, "method must be one of greedy, sample, beam; got 'best'"),
        ([[1]], {"method": "beam", "width": 10}, "10"),
        ([[1]], {"method": "sample", "temperature": 0}, "temperature"),
        (SOURCE, {"lengths": [6, 1, 1]}, "between 0 and"),
        (SOURCE, {"lengths": [5, 1]}, "a whole number for each of 3 rows"),
        (SOURCE, {"lengths": [5.0, 1.0, 1.0]}, "a whole number for each of 3 rows"),
        ([[1.5, 2.0]], {}, "whole numbers"),
        ([1, 2], {}, "whole numbers"),
        (["ab"], {}, "whole numbers"),
        (np.zeros((2, 0), int), {}, "whole numbers"),
        ([[1]], {"method": "beam", "width": 2.5}, "width must be a whole number, 1 or more; got 2.5"),
    ],
)
def test_bad_sources_are_named(source: Any, options: dict, message: str) -> None:
    made = network()
    with pytest.raises(ValueError, match=message):
        made.generate(source, max_length=3, **options)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_parts_that_own_their_weights_are_of_different_layers(bidirectional: bool) -> None:
    rnn = RecurrentSequential()
    rnn.add(GRUCell(8))
    one = rnn.get_cell()
    decoder = GRUCell(8) if bidirectional else residual(one)
    with pytest.raises(ValueError, match="EncoderDecoder: two of its cells are of RecurrentSequential"):
        EncoderDecoder(20, 12, start=10, end=11, encoder=one, decoder=decoder, bidirectional=bidirectional)
