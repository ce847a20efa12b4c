"""The sparse file, version 2: round trips, an independent decoder, a golden file, damage."""

from __future__ import annotations

import math
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import small_decoder
from small_decoder import File

from pruning.file import container, rans
from pruning.file.coding import CodedReader, CodedWriter, as_grid
from pruning.file.container import decode, encode, read
from pruning.file.probabilities import PARTS, bits_of, log2_steps, probabilities
from pruning.file.rounding import Rounded, round_weight
from pruning.file.stored_form import to_stored_form_
from pruning.file.versions import write_sparse
from pruning.sparse_file import DamagedFile, encode_state, read_version_1
from spaces.cost.coded_header import Constant, FloatForm, Floats, Integers, write_header

GOLDEN = Path(__file__).parents[2] / "golden" / "model-v2.sparse"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES = ((5, 3, 3, 2), (40, 7), (33,), (), (0, 4), (1, 1, 9), (70, 2, 1))


def golden_state() -> tuple[dict[str, torch.Tensor], dict[str, Rounded]]:
    """A tensor of every kind: few weights, so that a reader can follow them by hand."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 4, 3, 3, generator=generator) * (torch.arange(216).reshape(6, 4, 3, 3) % 3 == 0)
    weight[2] = 0
    rounded = {"stem.weight": round_weight(weight, 4), "up.weight": round_weight(weight[:, :2], 2, dim=1)}
    floats = torch.zeros(9, 5)
    floats[[0, 3, 8], [1, 1, 4]] = torch.tensor([1.5, -0.375, 1e-40])
    state = {
        "stem.weight": rounded["stem.weight"].weight(),
        "bn.weight": torch.tensor([1.0, 0.5, -0.25, 0.0, 1.75, 1.125]),
        "bn.bias": torch.tensor([0.125, 0.5, -3.0, 0.75, 0.25, 1.0]),
        "bn.running_mean": torch.zeros(6),
        "bn.running_var": torch.ones(6),
        "bn.num_batches_tracked": torch.tensor(20),
        "up.weight": rounded["up.weight"].weight(),
        "head.weight": floats,
        "head.bias": torch.tensor([0.5, -1.25, 3.0], dtype=torch.float64),
        "half": torch.tensor([[1.0, -2.5], [0.0, 65504.0]], dtype=torch.float16),
        "steps": torch.tensor([7, -9, 4]),
        "flags": torch.tensor([True, False, True]),
        "minus": torch.full((2, 2), -5, dtype=torch.int32),
    }
    state["tied.weight"] = state["head.weight"]
    return state, rounded


def numbers(tensor: torch.Tensor) -> list[float]:
    return tensor.double().flatten().tolist()


def with_checksum(content: bytes) -> bytes:
    return content[:4] + zlib.crc32(content[8:]).to_bytes(4, "little") + content[8:]


class TestGolden:
    def test_bytes(self):
        assert encode(*golden_state()) == GOLDEN.read_bytes()

    def test_reads_back(self):
        found, (state, rounded) = read(GOLDEN, golden_state()[0]), golden_state()
        assert list(found.state) == list(state)
        for name, tensor in state.items():
            assert found.state[name].dtype == tensor.dtype
            assert torch.equal(found.state[name], tensor), name
        for name, one in rounded.items():
            assert torch.equal(found.rounded[name].integers, one.integers)
            assert torch.equal(found.rounded[name].scales, one.scales)
            assert (found.rounded[name].bits, found.rounded[name].dim) == (one.bits, one.dim)
        assert found.state["tied.weight"] is found.state["head.weight"]

    def test_an_independent_decoder_reads_the_same(self):
        found, state = File(GOLDEN.read_bytes()).decode(), golden_state()[0]
        raw = {"steps": torch.tensor([7, -9, 4]).view(torch.uint8), "flags": torch.tensor([1, 0, 1])}
        assert found == {name: numbers(raw.get(name, tensor)) for name, tensor in state.items()}

    def test_a_reader_of_version_1_refuses_it_in_one_line(self):
        with pytest.raises(
            DamagedFile, match=r"^model-v2.sparse does not decode: it is a sparse file of version 2[^\n]+$"
        ):
            read_version_1(GOLDEN)


@st.composite
def states(draw):
    """Tensors of any type and shape, some pruned, some rounded; none, some or all of their values are zero."""
    state, rounded = {}, {}
    for number in range(draw(st.integers(1, 4))):
        shape, seed = draw(st.sampled_from(SHAPES)), draw(st.integers(0, 2**32 - 1))
        generator = np.random.default_rng(seed)
        kept = generator.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
        bits, spread = draw(st.sampled_from([2, 3, 4, 8, 13, 16, 32])), draw(st.sampled_from([0.0, 1.0, 30.0]))
        values = torch.from_numpy(
            np.asarray(generator.standard_normal(shape) * np.exp(spread * generator.random(shape)) * kept)
        )
        name = draw(st.sampled_from(["a.weight", "b.bias", "b.c.weight", "ü", "d"])) + str(number) * (number > 2)
        dtype = draw(st.sampled_from(FLOATS))
        values = values.clamp(-6e4, 6e4).to(dtype)
        if bits < 32 and len(shape) and spread < 30:
            rounded[name] = round_weight(values, bits, dim=draw(st.integers(0, min(1, len(shape) - 1))))
            values = rounded[name].weight(dtype)
        else:
            rounded.pop(name, None)
        state[name] = values
    return state, rounded


class TestRoundTrip:
    @settings(deadline=None, max_examples=40, derandomize=True)
    @given(given=states())
    @example(given=({}, {}))
    def test_any_state_comes_back_and_the_independent_decoder_agrees(self, given):
        state, rounded = given
        content = encode(state, rounded)
        assert content == encode(state, rounded)
        found = decode(content, state)
        for name, tensor in state.items():
            assert found.state[name].dtype == tensor.dtype
            assert torch.equal(found.state[name], tensor)
        theirs = File(content).decode()
        for name, tensor in found.state.items():
            wide = found.rounded[name].weight(torch.float64) if name in found.rounded else tensor
            assert theirs[name] == numbers(wide)

    def test_special_floats(self):
        values = torch.tensor([math.nan, math.inf, -math.inf, 1e-45, -1e-38, 3e38, 0.0])
        found = decode(encode({"w": values})).state["w"]
        assert torch.equal(found.view(torch.int32), values.view(torch.int32))

    def test_zeros_lose_their_sign(self):
        assert not torch.signbit(decode(encode({"w": torch.tensor([-0.0, 1.5])})).state["w"]).any()

    def test_many_states_and_one_hold_the_same(self):
        generator = np.random.default_rng(1)
        chances, bits = generator.integers(1, PARTS, 5000), generator.random(5000) < 0.3
        for lanes in (1, 7, 64):
            coded = rans.encode(chances, bits, lanes)
            assert len(coded) * 8 <= bits_of(chances, bits) + lanes * 48 + 16
            decoder, at = rans.Decoder(coded, lanes), 0
            for count in (1, 6, 0, 100, 4893):
                assert (decoder.bits(chances[at : at + count]) == bits[at : at + count]).all()
                at += count
            decoder.end()
            with pytest.raises(ValueError, match="do not end"):
                rans.Decoder(coded, lanes).end()
            short = rans.Decoder(coded[:-2], lanes)
            with pytest.raises(ValueError, match="end too early"):
                short.bits(chances)

    def test_a_rounded_weight_must_be_the_one_in_the_state(self):
        one = round_weight(torch.tensor([[1.0, 2.0]]), 4)
        with pytest.raises(ValueError, match="'w' is not the one in the state dict"):
            encode({"w": torch.tensor([[1.0, 3.0]])}, {"w": one})

    def test_bytes_do_not_depend_on_memory_layout(self):
        weight = torch.randn(24, 16, 3, 3, generator=torch.Generator().manual_seed(0))
        last = weight.to(memory_format=torch.channels_last)
        assert encode({"w": weight}) == encode({"w": last})


class TestDamage:
    def test_every_changed_byte_is_noticed(self, tmp_path):
        content, path = GOLDEN.read_bytes(), tmp_path / "m.sparse"
        for place in range(0, len(content), 3):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
            with pytest.raises(DamagedFile, match=r"^m.sparse does not decode: [^\n]+; export the trial again$"):
                read(path)

    @pytest.mark.parametrize("cut", [0, 3, 7, 8, 9, 60, -1])
    def test_a_cut_file(self, cut, tmp_path):
        (tmp_path / "m").write_bytes(GOLDEN.read_bytes()[:cut])
        with pytest.raises(DamagedFile):
            read(tmp_path / "m")

    def test_trailing_bytes(self):
        with pytest.raises(ValueError, match="plain bits"):
            decode(with_checksum(GOLDEN.read_bytes() + b"\0\0"))

    def test_a_later_version_says_so(self):
        with pytest.raises(ValueError, match=r"is of version b'3'.*update prunefront"):
            decode(GOLDEN.read_bytes().replace(b"PRF2", b"PRF3", 1))

    def test_whatever_else_is_changed_ends_in_a_value_error(self):
        """Checksums set right: what a stranger, not an accident, would send."""
        content, generator = GOLDEN.read_bytes(), np.random.default_rng(5)
        refused = 0
        for _ in range(200):
            own = bytearray(content)
            for place in generator.integers(8, len(own), generator.integers(1, 4)):
                own[place] = generator.integers(256)
            try:
                decode(with_checksum(bytes(own)))
            except ValueError as error:
                refused += 1
                assert len(str(error)) < 500
        assert refused > 130  # others change values alone

    @pytest.mark.parametrize(
        "record",
        [
            Constant("w", (2**24, 2**24), "F32", 1),
            Constant("w", (2**40,), "BOOL", 1),
            Floats("w", (2**20, 2**10), "F64", FloatForm(0, 0, 1023, 0)),
            Integers("w", (2**16, 2**16), "F32", 4, 0, FloatForm(0, 0, 0)),
            Integers("w", (2**31, 0), "F32", 4, 0, FloatForm(0, 0, 0)),
            Floats("w", (0, 2**31), "F32", FloatForm(0, 0, 0, 0)),
        ],
    )
    def test_a_huge_claim_is_refused_before_anything_is_made_of_it(self, record, monkeypatch):
        header = write_header([record])
        monkeypatch.setattr(container, "CodedReader", None)
        content = with_checksum(b"PRF2...." + bytes([len(header)]) + header + b"\0\0")
        with pytest.raises(ValueError, match=r"of \d+ bytes, it claims to be \d+ bytes"):
            decode(content)

    def test_other_tensors_than_the_networks(self):
        state, rounded = golden_state()
        content = encode(state, rounded)
        with pytest.raises(ValueError, match="tensor 'flags' is none of the network"):
            decode(content, {name: t for name, t in state.items() if name != "flags"})
        with pytest.raises(ValueError, match="tensor 'steps' is of I64 and shape"):
            decode(content, state | {"steps": torch.zeros(4)})

    def test_a_name_of_a_tensor_that_the_networks_is_not(self, tmp_path):
        """Of either version; only the network may say which of its tensors are one."""
        shared = nn.Parameter(torch.ones(3, 2))
        like = {"a": torch.ones(3, 2), "b": torch.ones(2, 3)}
        for write in (encode, encode_state):
            (tmp_path / "m").write_bytes(write({"a": shared, "b": shared}))
            assert torch.equal(read(tmp_path / "m", dict.fromkeys("ab", shared)).state["b"], shared)
            with pytest.raises(DamagedFile, match="tensor 'b' is of F32 and shape"):
                read(tmp_path / "m", like)

    def test_a_name_twice(self):
        header = write_header([Constant("w", (1,), "U8", 1), Constant("w", (2,), "U8", 1)])
        with pytest.raises(ValueError, match="holds 'w' twice"):
            decode(with_checksum(b"PRF2...." + bytes([len(header)]) + header + b"\0\0"))

    def test_no_such_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no file"):
            read(tmp_path / "none")

    def test_version_1_is_read_as_well(self, tmp_path):
        model = nn.Linear(4, 3)
        write_sparse(model, tmp_path / "m")
        found = read(tmp_path / "m", model.state_dict())
        assert found.rounded == {}
        assert torch.equal(found.state["weight"], model.weight)

    def test_more_elements_than_counts_have_room_for(self):
        with pytest.raises(
            ValueError, match=r"a tensor of 536870913 elements is above the 536870912 that can be coded"
        ):
            as_grid((2**29 + 1,))


class TestProbabilities:
    def test_logarithms_are_the_independent_decoders(self):
        generator = np.random.default_rng(0)
        numbers = (2.0 ** generator.uniform(0, 62.9, 2000)).astype(np.int64)
        edges = [2**k - 1 for k in range(1, 64)] + [2**k for k in range(63)]
        given = np.array([*numbers.tolist(), *edges])
        assert log2_steps(given).tolist() == [small_decoder.log2(int(number)) for number in given]

    def test_chances_are_the_independent_decoders(self):
        odds = np.arange(-3200, 3201)
        assert probabilities(odds).tolist() == [small_decoder.chance(int(one)) for one in odds]

    def test_no_entry_of_the_tables_is_near_a_tie(self):
        """Another machine's logarithm may differ in its last bits."""
        places, odds = np.arange(2048), np.arange(-3072, 3073)
        for exact in (256 * np.log2(1 + places / 2048), 65536 / (1 + 2.0 ** (-odds / 256))):
            assert np.abs(exact % 1 - 0.5).min() > 1e-6


class TestCost:
    def test_as_few_batches_as_rounds_and_bits_ask_for(self):
        """What makes large files quick: NumPy is called for rounds, not for values."""
        calls = []

        class Counting:
            def code(self, chances, bits):
                calls.append(len(chances))
                return bits

        from pruning.file.tensor_model import Memory, code_places, code_values

        values = np.random.default_rng(0).integers(-7, 8, (128, 96, 9))
        code_places(Counting(), values.shape, int((values != 0).sum()), values != 0)
        assert (len(calls), sum(calls)) == (10, values.size)
        calls.clear()
        code_values(Counting(), values != 0, 7, Memory(), "w", values)
        assert len(calls) <= 10 * (1 + 2 + 2)
        assert sum(calls) <= 5 * np.count_nonzero(values)

    def test_within_one_percent_of_the_entropy_where_there_is_no_more_to_know(self):
        generator = np.random.default_rng(2)
        values = generator.integers(-7, 8, (96, 64, 9)) * (generator.random((96, 64, 9)) < 0.1)
        counts = np.unique(values, return_counts=True)[1]
        entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
        writer = CodedWriter()
        writer.integers(values, 4)
        assert entropy * 0.99 < len(writer.coded()[1]) < entropy * 1.01

    def test_structure_is_made_use_of(self):
        """Rows, columns and positions that are nearly empty cost less than chance has it."""
        generator = np.random.default_rng(3)
        rates = generator.random(64)[:, None, None] ** 3 * np.linspace(0, 0.5, 9)
        values = (generator.random((64, 48, 9)) < rates).astype(int)
        share = values.mean()
        entropy = -values.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
        writer = CodedWriter()
        writer.integers(values, 2)
        signs = values.sum() / 8
        assert len(writer.coded()[1]) - signs * 0.1 < 0.9 * entropy

    def test_flat_tensors_come_back(self, monkeypatch):
        """Values that no expectation fits are coded flat."""
        values = np.random.default_rng(4).integers(-7, 8, (3, 4))
        writer = CodedWriter()
        assert writer.integers(values, 4) in (True, False)
        lanes, coded = writer.coded()
        flat = CodedWriter()
        assert flat.integers(np.array([[7], [-1], [4]]), 4)
        lanes, coded = flat.coded()
        assert CodedReader(lanes, coded, b"").integers((3, 1), 4, 3, True).tolist() == [[7], [-1], [4]]


def test_a_whole_network_is_what_the_file_says(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2),
        nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    rounded = to_stored_form_(model, {"0.weight": 4, "3.weight": 3, "4.weight": 8})
    (tmp_path / "m").write_bytes(encode(model.state_dict(), rounded))
    found = read(tmp_path / "m", model.state_dict()).state
    assert list(found) == list(model.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
