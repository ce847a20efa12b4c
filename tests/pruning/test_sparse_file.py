"""The sparse file: round trips, bytes by hand, another library's reading, damaged files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuse
from small_net import MODEL, broken
from torch import nn

from pruning import apply_masks_, encode_model, make_mask, read_sparse, write_sparse
from pruning.modules import prunable_weights
from pruning.sparse_file import DTYPE_CODES, DamagedFile, encode_state
from spaces import GRANULARITIES

GOLDEN = Path(__file__).parents[1] / "golden" / "model-v1.sparse.safetensors"
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def header_of(content: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(content: bytes, change) -> bytes:
    """The file with its header changed and its length set right."""
    header, data = header_of(content)
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def golden_state() -> dict[str, torch.Tensor]:
    """One weight for every encoding, a tied one, buffers of other types."""
    mask = torch.arange(24).reshape(4, 6) % 3 == 0
    gaps = torch.zeros(1, 1300)
    gaps[0, [0, 255, 511, 1022]] = torch.tensor([1.0, -2.5, 3.0, 0.125])
    dense = torch.arange(6.0).reshape(2, 3) + 1
    return {
        "bits.weight": (torch.arange(24.0).reshape(4, 6) + 0.5) * mask,
        "gaps.weight": gaps.bfloat16(),
        "dense.weight": dense,
        "tied.weight": dense,
        "norm.running_mean": torch.tensor([0.0, -1.5]),
        "norm.num_batches_tracked": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
    }


SPARSE = {"bits.weight", "gaps.weight", "dense.weight"}


class TestGolden:
    def test_bytes(self):
        assert encode_state(golden_state(), SPARSE) == GOLDEN.read_bytes()

    def test_reads_back(self):
        back = read_sparse(GOLDEN)
        assert set(back) == set(golden_state())
        for name, tensor in golden_state().items():
            assert back[name].dtype == tensor.dtype
            assert back[name].shape == tensor.shape
            assert raw(back[name]) == raw(tensor)

    def test_payload_by_hand(self):
        header, data = header_of(GOLDEN.read_bytes())
        assert header["__metadata__"] == {
            "bits.weight": "bitmask F32 4,6 8",
            "gaps.weight": "gap8 BF16 1,1300 4",
            "tied.weight": "same dense.weight",
        }
        begin, end = header["bits.weight"]["data_offsets"]
        values = np.array([0.5, 3.5, 6.5, 9.5, 12.5, 15.5, 18.5, 21.5], "<f4").tobytes()
        assert data[begin:end] == values + bytes([0b01001001, 0b10010010, 0b00100100])
        begin, end = header["gaps.weight"]["data_offsets"]
        # 1.0, -2.5, 3.0, 0.125 in bfloat16; gaps 0, 254, 255 = 255 + 0, 510 = 255 + 255 + 0
        assert data[begin:end] == bytes.fromhex("803f20c04040003e") + bytes([0, 254, 255, 0, 255, 255, 0])
        assert "tied.weight" not in header


sparse_patterns = st.one_of(
    st.lists(st.integers(0, 700), min_size=0, max_size=12),  # gaps, many over 255 and 510
    st.lists(st.sampled_from([0, 1, 253, 254, 255, 256, 509, 510, 511, 765]), max_size=8),
    st.lists(st.integers(0, 2), max_size=200),
)


class TestRoundTrip:
    @given(gaps=sparse_patterns, tail=st.integers(1, 800), dtype=st.sampled_from([*FLOATS, torch.int8, torch.int64]))
    def test_any_pattern_any_type(self, tmp_path_factory, gaps, tail, dtype):
        flat = torch.zeros(sum(gaps) + len(gaps) + tail, dtype=dtype)
        flat[torch.tensor([sum(gaps[: i + 1]) + i for i in range(len(gaps))], dtype=torch.long)] = (
            torch.arange(len(gaps)) % 50 + 1
        ).to(dtype) * -1
        path = tmp_path_factory.getbasetemp() / "pattern.safetensors"
        path.write_bytes(encode_state({"w": flat.view(1, -1)}, {"w"}))
        back = read_sparse(path)["w"]
        assert back.dtype == dtype
        assert raw(back) == raw(flat)
        assert back.shape == (1, len(flat))

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.8, 0.99])
    def test_models(self, dtype, sparsity, tmp_path):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(30, 40)).to(dtype)
        apply_masks_(model, {name: make_mask(model.get_parameter(name), sparsity) for name in ("0.weight", "2.weight")})
        path = tmp_path / "m.safetensors"
        assert write_sparse(model, path) == path.stat().st_size == len(encode_model(model))
        back = read_sparse(path)
        assert {name: raw(t) for name, t in back.items()} == {name: raw(t) for name, t in model.state_dict().items()}
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(30, 40)).to(dtype).load_state_dict(
            back, strict=True
        )

    def test_a_note_that_does_not_pay_for_its_place_is_left_out(self, tmp_path):
        """At the end of a file of 12 MB the offsets of a weight take 16 digits, in front of it 3."""
        weight = torch.where(torch.arange(24) < 14, 0.0, torch.arange(24) + 0.5)[:, None]
        near, far = ({"a": weight, "b": torch.ones(count)} for count in (9, 3_000_000))
        assert header_of(encode_state(near, {"a"}))[0]["__metadata__"] == {"a": "bitmask F32 24,1 10"}
        assert len(encode_state(near, {"a"})) <= len(encode_state(near))
        content = encode_state(far, {"a"})
        assert "__metadata__" not in header_of(content)[0]
        (tmp_path / "m").write_bytes(content)
        assert torch.equal(read_sparse(tmp_path / "m")["a"], weight)

    def test_special_values_survive(self, tmp_path):
        weight = torch.zeros(64)
        weight[[3, 9, 30, 63]] = torch.tensor([float("nan"), float("inf"), 1e-45, -float("inf")])
        (tmp_path / "m").write_bytes(encode_state({"w": weight}, {"w"}))
        assert raw(read_sparse(tmp_path / "m")["w"]) == raw(weight)

    @pytest.mark.parametrize("tensor", [torch.zeros(3, 5), torch.zeros(0, 5), torch.zeros(4, 6).T])
    def test_degenerate(self, tensor, tmp_path):
        (tmp_path / "m").write_bytes(encode_state({"w": tensor, "b": torch.ones(2)}, {"w"}))
        back = read_sparse(tmp_path / "m")
        assert torch.equal(back["w"], tensor)
        assert torch.equal(back["b"], torch.ones(2))

    def test_memory_layout_does_not_matter(self):
        weight = torch.randn(4, 3, 3, 3)
        last = weight.clone().contiguous(memory_format=torch.channels_last)
        assert encode_state({"w": last}, {"w"}) == encode_state({"w": weight}, {"w"})


class TestOtherReaders:
    def test_safetensors_library_opens_it(self, vgg, tmp_path):
        path = tmp_path / "m.safetensors"
        write_sparse(vgg, path)
        plain = safetensors.torch.load_file(path)
        assert set(plain) == set(vgg.state_dict())
        assert torch.equal(plain["backbone.bn0.weight"], vgg.backbone.bn0.weight)
        assert safetensors.torch.load_file(GOLDEN)["gaps.weight"].dtype == torch.uint8

    def test_only_convolutions_and_linear_layers_are_encoded(self, residual):
        assert list(prunable_weights(residual)) == ["first.weight", "inner.weight", "last.weight", "classifier.weight"]
        model = nn.Sequential(nn.BatchNorm1d(500), nn.Embedding(50, 8), nn.LayerNorm(300))
        for parameter in model.parameters():
            parameter.data.zero_()
        assert "__metadata__" not in header_of(encode_model(model))[0]

    def test_unknown_type(self):
        with pytest.raises(ValueError, match=r"'w' has dtype torch\.complex64, which the sparse file cannot hold"):
            encode_state({"w": torch.zeros(2, dtype=torch.complex64)})
        assert set(FLOATS) < set(DTYPE_CODES)


class TestDamaged:
    def check(self, content: bytes, tmp_path, match: str = "") -> None:
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=rf"damaged\.safetensors does not decode: .*{match}.*; export the trial"):
            read_sparse(path)

    def test_cut_anywhere(self, tmp_path):
        content = GOLDEN.read_bytes()
        for length in [*range(24), *range(24, len(content), 7), len(content) - 1]:
            self.check(content[:length], tmp_path)
        self.check(content + b"\0", tmp_path)

    def test_any_flipped_byte_of_the_header_is_found_or_harmless(self, tmp_path):
        """Never another exception."""
        content = GOLDEN.read_bytes()
        path = tmp_path / "flipped.safetensors"
        for place in range(8 + int.from_bytes(content[:8], "little")):
            for flip in (1, 4, 128):
                path.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
                try:
                    read_sparse(path)
                except DamagedFile as error:
                    assert "\n" not in str(error)

    @pytest.mark.parametrize(
        ("note", "match"),
        [
            ("bitmask F32 4,6 7", "promises"),
            ("bitmask F32 4,6 9", ""),
            ("bitmask F32 4,60 8", "promises 30 mask bytes, there are 3"),
            ("bitmask F32 2,6 8", "promises 2 mask bytes, there are 3"),
            ("bitmask F64 4,6 8", ""),
            ("bitmask F32 4,6 25", "impossible note"),
            ("bitmask F32 4,6 -1", "impossible note"),
            ("bitmask F32 -4,-6 8", "impossible note"),
            ("bitmask F32 0,6 0", "impossible note"),
            ("bitmask Q9 4,6 8", "Q9"),
            ("bitmask F32 4;6 8", ""),
            ("bitmask F32 4,6", ""),
            ("gap8 F32 4,6 8", ""),
            ("huffman F32 4,6 8", "impossible note"),
            ("gap8 F32 1099511627776,9 8", "claims more than"),
            ("same nothing", "nothing"),
            ("", ""),
        ],
    )
    def test_notes_that_contradict_the_bytes(self, note, match, tmp_path):
        content = with_header(GOLDEN.read_bytes(), lambda h: h["__metadata__"].update({"bits.weight": note}))
        self.check(content, tmp_path, match)

    @pytest.mark.parametrize("dtype", ["BF16", "I16", "F16"])
    def test_encoded_bytes_of_another_type(self, dtype, tmp_path):
        def change(header):
            entry = header["bits.weight"]
            entry["data_offsets"][1] -= 1
            entry["dtype"], entry["shape"] = dtype, [17]
            header["filler"] = {"dtype": "U8", "shape": [1], "data_offsets": [entry["data_offsets"][1]] * 2}
            header["filler"]["data_offsets"] = [entry["data_offsets"][1], entry["data_offsets"][1] + 1]

        self.check(with_header(GOLDEN.read_bytes(), change), tmp_path, "belongs to bytes")

    def test_gaps_beyond_the_end(self, tmp_path):
        content = with_header(
            GOLDEN.read_bytes(), lambda h: h["__metadata__"].update({"gaps.weight": "gap8 BF16 1,1022 4"})
        )
        self.check(content, tmp_path)

    def test_note_without_tensor(self, tmp_path):
        self.check(with_header(GOLDEN.read_bytes(), lambda h: h["__metadata__"].update({"x": "same y"})), tmp_path, "y")
        self.check(
            with_header(GOLDEN.read_bytes(), lambda h: h["__metadata__"].update({"x": "gap8 F32 1 0"})), tmp_path
        )

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*nowhere"):
            read_sparse(tmp_path / "nowhere")


class TestUnits:
    """Weights whose zeros come in units of a granularity."""

    SHAPES = ((8, 16, 3, 3), (6, 8, 5), (12, 16), (4, 8, 1, 1))

    @given(
        shape=st.sampled_from(SHAPES),
        granularity=st.sampled_from(GRANULARITIES),
        share=st.floats(0, 0.95),
        dtype=st.sampled_from(FLOATS),
        more=st.floats(0, 0.2),
        seed=st.integers(0, 99),
    )
    def test_round_trip_with_zeros_elsewhere(self, tmp_path_factory, shape, granularity, share, dtype, more, seed):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(shape, generator=generator).to(dtype)
        weight[~make_mask(weight, share, granularity)] = 0
        weight[torch.rand(shape, generator=generator) < more] = 0
        path = tmp_path_factory.mktemp("units") / "w"
        path.write_bytes(encode_state({"w": weight}, {"w"}))
        assert torch.equal(read_sparse(path)["w"], weight)

    @pytest.mark.parametrize(
        ("granularity", "share", "note"),
        [
            ("vector", 0.25, "vec F32 8,16,3,3 864"),
            ("kernel", 0.75, "ker F32 8,16,3,3 288"),
            ("1:4", 0.75, "1:4 F32 8,16,3,3 288"),
            ("*:8", 0.7, "2:8 F32 8,16,3,3 288"),
        ],
    )
    def test_note(self, granularity, share, note):
        weight = torch.rand(8, 16, 3, 3) + 0.5
        weight[~make_mask(weight, share, granularity)] = 0
        assert header_of(encode_state({"w": weight}, {"w"}))[0]["__metadata__"] == {"w": note}

    def test_bytes_by_hand(self):
        """Two outputs, eight inputs: places 2 and 5 hold 1, 2 at output 0; 0 and 7 hold 3, 4 at output 1."""
        weight = torch.zeros(2, 8 * 40)
        weight[0, 2], weight[0, 5], weight[1, 0], weight[1, 7] = 1, 2, 3, 4
        weight[:, 8::4] = 9  # every further block of 4 keeps its first
        header, data = header_of(encode_state({"w": weight}, {"w"}))
        assert header["__metadata__"] == {"w": "1:4 F32 2,320 160"}
        values = [[1.0, 2.0], [3.0, 4.0]]
        assert data[:640] == b"".join(np.array([*pair, *[9.0] * 78], "<f4").tobytes() for pair in values)
        first, second = 0b0110, 0b1100  # places 2 and 1, then 0 and 3, lowest bits first
        assert data[640:] == bytes([first, *[0] * 19, second, *[0] * 19])

    @pytest.mark.parametrize(
        ("note", "match"),
        [
            ("1:4 F32 8,16,3,3 287", "the pattern keeps 1 of 4"),
            ("2:4 F32 8,16,3,3 288", "the pattern keeps 2 of 4"),
            ("*:4 F32 8,16,3,3 288", "impossible note"),
            ("1:4 F32 1152 288", "impossible note"),
            ("1:4 F32 128,9 288", "impossible note"),
            ("ker F32 8,16,3,3 288", "promises 16 mask bytes, there are 72"),
            ("unit F32 8,16,3,3 288", "impossible note"),
            ("vec F32 1,1,1,67108864 0", "promises 0 values|promises 1 mask bytes"),
        ],
    )
    def test_notes_that_do_not_fit_are_refused(self, tmp_path, note, match):
        weight = torch.rand(8, 16, 3, 3) + 0.5
        weight[~make_mask(weight, 0.75, "1:4")] = 0
        content = encode_state({"w": weight}, {"w"})
        (tmp_path / "w").write_bytes(with_header(content, lambda header: header["__metadata__"].update(w=note)))
        with pytest.raises(DamagedFile, match=match):
            read_sparse(tmp_path / "w")

    def test_places_that_do_not_rise_are_refused(self, tmp_path):
        weight = torch.rand(64, 64) + 0.5
        weight[~make_mask(weight, 0.75, "*:8")] = 0
        content = encode_state({"w": weight}, {"w"})
        assert header_of(content)[0]["__metadata__"] == {"w": "2:8 F32 64,64 1024"}
        (tmp_path / "w").write_bytes(content[:-384] + bytes(384))
        with pytest.raises(DamagedFile, match="places within a block must rise"):
            read_sparse(tmp_path / "w")


def test_files_that_are_absent_or_damaged_are_named(tmp_path):
    whole = encode_model(MODEL)
    refuse(lambda: read_sparse(tmp_path / "absent"), "no file", FileNotFoundError)
    refuse(lambda: read_sparse(str(tmp_path)), "no file", FileNotFoundError)
    refuse(lambda: write_sparse(MODEL, tmp_path / "absent" / "file"), "No such file", FileNotFoundError)
    for name, content in {"truncated": whole[:50], "empty": b"", "text": b"{}" * 40, "short": whole[:-9]}.items():
        (tmp_path / name).write_bytes(content)
        refuse(lambda name=name: read_sparse(str(tmp_path / name)), f"{name} does not decode", DamagedFile)
    assert write_sparse(MODEL, str(tmp_path / "good")) == len(whole)
    assert torch.equal(read_sparse(str(tmp_path / "good"))["conv0.weight"], MODEL.conv0.weight)
    with torch.no_grad():
        (kept := broken(math.nan)).conv0.weight[1:] = 0
    write_sparse(kept, tmp_path / "nan")
    torch.testing.assert_close(
        read_sparse(tmp_path / "nan")["conv0.weight"], kept.conv0.weight.detach(), equal_nan=True
    )
