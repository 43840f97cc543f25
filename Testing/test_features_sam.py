"""SAM features: geometry, padding, precision, memory, and the choice of an extractor by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from SAMRegistrationLib.errors import NotEnoughMemoryError, RegistrationWarning, UsageError
from SAMRegistrationLib.features import memory
from SAMRegistrationLib.features.base import FeatureMap, Features, divided
from SAMRegistrationLib.features.precision import inference_precision
from SAMRegistrationLib.features.registry import get_extractor
from SAMRegistrationLib.features.sam import SamExtractor
from SAMRegistrationLib.grid import Grid
from SAMRegistrationLib.image import Image
from SAMRegistrationLib.models import catalogue
from SAMRegistrationLib.models.architectures import ARCHITECTURES, SAM_LITE, SAM_RESNET18, Architecture

BOTH = pytest.mark.parametrize("architecture", [SAM_LITE, SAM_RESNET18], ids=lambda a: a.name)
OBLIQUE = tuple(np.linalg.qr([[1.0, 0.1, 0.0], [-0.1, 1.0, 0.2], [0.05, -0.2, 1.0]])[0].ravel())


def _extractor(architecture: Architecture, precision: torch.dtype = torch.float32) -> SamExtractor:
    torch.manual_seed(0)
    return SamExtractor(architecture.build(), architecture, "random", precision=precision)


def _ct(grid: Grid, modality: str | None = "CT") -> Image:
    """Random smooth tissue in air."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand((1, 1, *(max(2, n // 4) for n in grid.shape)), generator=generator)
    smooth = functional.interpolate(noise, size=grid.shape, mode="trilinear", align_corners=False)
    return Image(smooth[0, 0] * 1400 - 1000, grid, "int16", modality)


def _grid(size: tuple[int, int, int], spacing: float = 2.0) -> Grid:
    return Grid(size, (spacing,) * 3, (10.0, -20.0, 30.0))


def _bias(
    architecture: Architecture, head: str, stride: tuple[int, int, int], size: tuple[int, int, int], axis: int
) -> float:
    """How far, in input voxels along z, y or x, a head's response is centered from where the grid says.

    All kernels are made uniform, so that the network is a smoothing and its response has a center; that is
    averaged over the middle cell of all strides.
    """
    network = architecture.build().fused()
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    outputs = []
    network.get_submodule(head).register_forward_hook(lambda _, __, output: outputs.append(output[0, 0]))
    volume = torch.ones((1, 1, *size), requires_grad=True)
    network(volume)
    steps = [m // s for m, s in zip(architecture.multiple, stride, strict=True)]
    starts = [n // 2 // step * step for n, step in zip(outputs[0].shape, steps, strict=True)]
    cell = outputs[0][tuple(slice(start, start + step) for start, step in zip(starts, steps, strict=True))]
    (gradient,) = torch.autograd.grad(cell.sum(), volume)
    weight = gradient[0, 0].double().sum(dim=[other for other in range(3) if other != axis])
    center = float((weight * torch.arange(len(weight))).sum() / weight.sum())
    return center - ((starts[axis] + (steps[axis] - 1) / 2) * stride[axis] + (stride[axis] - 1) / 2)


class TestMaps:
    """Maps and grids."""

    def test_feature_map_refuses_data_of_another_shape_than_its_grid(self) -> None:
        with pytest.raises(ValueError, match="shape"):
            FeatureMap(torch.zeros(1, 3, 4, 5, 6), Grid((4, 5, 6)))

    @given(
        size=st.tuples(*[st.integers(1, 40)] * 3),
        stride=st.tuples(*[st.sampled_from([1, 2, 4, 8, 16])] * 3),
    )
    def test_divided_grid_has_each_cell_in_the_middle_of_its_voxels(
        self, size: tuple[int, int, int], stride: tuple[int, int, int]
    ) -> None:
        grid = Grid(size, (1.5, 2.0, 2.5), (3.0, 4.0, 5.0), OBLIQUE)
        cells = divided(grid, stride)
        members = np.stack(np.meshgrid(*[np.arange(s) for s in stride[::-1]], indexing="ij"), -1).reshape(-1, 3)
        last = np.asarray(cells.size) - 1
        middle = grid.to_world(last * stride[::-1] + members).mean(axis=0)
        np.testing.assert_allclose(cells.to_world(last), middle, atol=1e-9)
        assert np.all(last * stride[::-1] < size) and np.all((last + 1) * stride[::-1] >= size)

    @pytest.mark.parametrize("stride", [(4, 4, 4), (2, 8, 8)])
    def test_joined_map_is_the_upsampled_renormalized_coarse_map_beside_the_fine_one(
        self, stride: tuple[int, int, int]
    ) -> None:
        grid = _grid((32, 16, 24))
        shape = grid.shape
        fine = functional.normalize(torch.randn(1, 5, *(n // 2 for n in shape)), dim=1)
        coarse = functional.normalize(
            torch.randn(1, 40, *(n // s for n, s in zip(shape, stride, strict=True))), dim=1
        )
        maps = Features(FeatureMap(fine, divided(grid, (2, 2, 2))), FeatureMap(coarse, divided(grid, stride)))
        joined = maps.joined()
        upsampled = functional.interpolate(coarse, size=fine.shape[2:], mode="trilinear", align_corners=False)
        expected = torch.cat((fine, functional.normalize(upsampled, dim=1)), dim=1) * 0.5**0.5
        torch.testing.assert_close(joined.data, expected, atol=1e-5, rtol=0)
        assert joined.grid == maps.fine.grid

    def test_joined_map_of_a_single_map_is_that_map(self) -> None:
        fine = FeatureMap(functional.normalize(torch.randn(1, 5, 4, 4, 4), dim=1), Grid((4, 4, 4)))
        assert Features(fine).joined() is fine

    def test_joined_map_in_half_precision_has_unit_length(self) -> None:
        grid = _grid((16, 16, 16))
        fine = functional.normalize(torch.randn(1, 64, 8, 8, 8), dim=1).half()
        coarse = functional.normalize(torch.randn(1, 64, 2, 2, 2), dim=1).half()
        maps = Features(FeatureMap(fine, divided(grid, (2,) * 3)), FeatureMap(coarse, divided(grid, (8,) * 3)))
        joined = maps.joined().data
        assert joined.dtype is torch.float16
        torch.testing.assert_close(joined.float().norm(dim=1), torch.ones(1, 8, 8, 8), atol=2e-3, rtol=0)


class TestExtraction:
    """From a volume to features."""

    @BOTH
    def test_features_are_unit_vectors_on_their_grids_channels_side_by_side(
        self, architecture: Architecture
    ) -> None:
        image = _ct(_grid((40, 36, 22)))
        features = _extractor(architecture).extract(image)
        assert features.coarse is not None
        for found, stride in (
            (features.fine, architecture.fine_stride),
            (features.coarse, architecture.coarse_stride),
        ):
            assert found.grid.isclose(divided(image.grid, stride))
            assert found.data.is_contiguous(memory_format=torch.channels_last_3d) and not found.data.is_inference()
            lengths = found.data.norm(dim=1)
            torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-4, rtol=0)

    @BOTH
    def test_what_is_added_beside_the_body_is_air(self, architecture: Architecture) -> None:
        extractor = _extractor(architecture)
        volume = _ct(_grid((33, 30, 18))).tensor()
        padded = functional.pad(volume, [0, 48 - 33, 0, 32 - 30], value=-1024.0)
        for found, whole in zip(extractor.extract_tensor(volume), extractor.extract_tensor(padded), strict=True):
            part = whole[:, :, :, : found.shape[3], : found.shape[4]]
            torch.testing.assert_close(found, part, atol=1e-5, rtol=0)

    @BOTH
    def test_beyond_the_ends_of_a_scan_its_outermost_slices_go_on(self, architecture: Architecture) -> None:
        volume = _ct(_grid((32, 32, 20))).tensor()
        extended = functional.pad(volume, [0, 0, 0, 0, 32 // 2, 32 // 2 + 12], mode="replicate")
        torch.manual_seed(0)
        network = architecture.build().fused()
        with torch.no_grad():
            expected = network(architecture.preprocess["CT"](extended))
        strides = architecture.fine_stride, architecture.coarse_stride
        found = _extractor(architecture).extract_tensor(volume)
        for (first, *_), vectors, whole in zip(strides, found, expected, strict=True):
            part = whole[:, :, 16 // first :][:, :, : vectors.shape[2]]
            torch.testing.assert_close(vectors, part, atol=5e-4, rtol=0)

    def test_a_scan_masked_beyond_its_ends_goes_on_as_if_it_ended_there(self) -> None:
        extractor = _extractor(SAM_LITE)
        body = _ct(_grid((32, 32, 32))).tensor()
        body[:, :, :3], body[:, :, -3:] = body[:, :, 3:4], body[:, :, -4:-3]
        masked = functional.pad(body, [0, 0, 0, 0, 16, 16], value=-1024.0)
        goes_on = functional.pad(body, [0, 0, 0, 0, 16, 16], mode="replicate")
        # An organ that was contoured beyond the end.
        masked[:, :, 4:12, 8:12, 8:12] = goes_on[:, :, 4:12, 8:12, 8:12] = 100.0
        for found, expected in zip(
            extractor.extract_tensor(masked), extractor.extract_tensor(goes_on), strict=True
        ):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    @BOTH
    def test_volume_at_working_spacing_is_not_resampled(self, architecture: Architecture) -> None:
        extractor = _extractor(architecture)
        image = _ct(_grid((32, 32, 16)))
        features, (fine, _) = extractor.extract(image), extractor.extract_tensor(image.tensor())
        assert torch.equal(features.fine.data, fine)

    def test_features_do_not_depend_on_the_order_in_which_voxels_are_stored(self) -> None:
        extractor = _extractor(SAM_LITE)
        image = _ct(Grid((30, 26, 20), (2.0, 2.5, 3.0), (5.0, 6.0, 7.0), OBLIQUE))
        axes, size = image.grid.axes, np.asarray(image.grid.size)
        # Store z first, and x from right to left.
        direction = np.stack([axes[:, 2], axes[:, 1], -axes[:, 0]], axis=1)
        other = Grid(
            tuple(size[[2, 1, 0]]),
            (3.0, 2.5, 2.0),
            tuple(image.grid.to_world((size[0] - 1, 0, 0))),
            tuple(direction.ravel()),
        )
        stored = Image(image.data.permute(2, 1, 0).flip(0).contiguous(), other, "int16", "CT")
        expected, found = extractor.extract(image), extractor.extract(stored)
        assert found.fine.grid.isclose(expected.fine.grid)
        torch.testing.assert_close(found.fine.data, expected.fine.data, atol=1e-4, rtol=0)

    def test_volume_is_resampled_to_the_working_spacing(self) -> None:
        image = _ct(Grid((24, 20, 12), (3.0, 3.0, 4.0)))
        extractor = _extractor(SAM_LITE)
        features = extractor.extract(image)
        resampled = image.resampled(image.grid.resampled(2.0))
        assert torch.equal(features.fine.data, extractor.extract_tensor(resampled.tensor())[0])
        assert features.fine.grid.spacing == (4.0, 4.0, 4.0)
        np.testing.assert_allclose(features.fine.grid.center, image.grid.center, atol=1.0 + 1e-6)

    @pytest.mark.parametrize("head", ["fine_head", "coarse_head"])
    def test_sam_lite_is_centered_where_its_grid_says(self, head: str) -> None:
        stride = getattr(SAM_LITE, head.replace("head", "stride"))
        for axis in range(3):
            assert abs(_bias(SAM_LITE, head, stride, (48, 48, 48), axis)) < 0.02

    def test_published_network_is_centered_before_its_cells_as_documented(self) -> None:
        """Its strided convolutions are padded on one side; the published matching ignores that, and so do we."""
        size = (8, 272, 16)
        assert _bias(SAM_RESNET18, "read_out_head", SAM_RESNET18.coarse_stride, size, 1) == pytest.approx(
            -7.5, abs=0.2
        )
        assert -3.5 < _bias(SAM_RESNET18, "neck", SAM_RESNET18.fine_stride, size, 1) < -0.5

    def test_shifting_the_body_by_whole_cells_shifts_the_features(self) -> None:
        extractor = _extractor(SAM_LITE)
        volume = torch.full((1, 1, 32, 64, 64), -1024.0)
        volume[:, :, 8:20, 16:28, 16:28] = _ct(_grid((12, 12, 12))).tensor()
        fine, _ = extractor.extract_tensor(volume)
        moved_fine, _ = extractor.extract_tensor(volume.roll(16, dims=4))
        expected, found = fine[..., 4:10, 8:14, 8:14], moved_fine[..., 4:10, 8:14, 16:22]
        assert float((expected * found).sum(dim=1).min()) > 0.999

    def test_mr_is_scaled_by_its_percentiles(self) -> None:
        extractor = _extractor(SAM_RESNET18)
        values = _ct(_grid((32, 32, 16)), "MR").data + 1000
        image = Image(values, _grid((32, 32, 16)), modality="MR")
        brighter = image.with_data(values * 7 + 40)
        first, second = extractor.extract(image), extractor.extract(brighter)
        torch.testing.assert_close(first.fine.data, second.fine.data, atol=1e-3, rtol=0)

    @pytest.mark.parametrize("modality", ["MR", None])
    def test_ct_model_warns_of_a_volume_that_is_no_ct(self, modality: str | None) -> None:
        image = _ct(_grid((16, 16, 16)), modality)
        with pytest.warns(RegistrationWarning, match="made for CT"):
            _extractor(SAM_LITE).extract(image.with_data(image.data + 1000))

    @pytest.mark.parametrize(
        ("architecture", "modality", "suits"),
        [
            (SAM_LITE, "CT", True),
            (SAM_LITE, "CBCT", True),
            (SAM_LITE, None, True),
            (SAM_LITE, "MR", False),
            (SAM_RESNET18, "MR", True),
        ],
    )
    def test_extractor_tells_which_modalities_it_suits(
        self, architecture: Architecture, modality: str | None, suits: bool
    ) -> None:
        assert _extractor(architecture).suits(_ct(_grid((16, 16, 16)), modality)) is suits

    def test_ct_of_unknown_modality_is_recognized_by_its_air(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _extractor(SAM_LITE).extract(_ct(_grid((16, 16, 16)), None))

    @settings(max_examples=8, deadline=None)
    @given(size=st.tuples(*[st.integers(2, 21)] * 3))
    def test_any_size_gives_maps_that_cover_the_volume(self, size: tuple[int, int, int]) -> None:
        grid = _grid(size)
        features = _extractor(SAM_LITE).extract(_ct(grid))
        assert features.coarse is not None
        for found in (features.fine.grid, features.coarse.grid):
            lower, upper = grid.to_voxel(found.corners()).min(0), grid.to_voxel(found.corners()).max(0)
            assert np.all(lower <= -0.5 + 1e-6) and np.all(upper >= np.asarray(size) - 0.5 - 1e-6)


class TestPrecision:
    """Half precision must not change what is matched."""

    @BOTH
    def test_bfloat16_features_agree_with_float32_to_a_cosine_of_099(self, architecture: Architecture) -> None:
        volume = _ct(_grid((48, 48, 16))).tensor()
        exact = _extractor(architecture).extract_tensor(volume)
        rounded = _extractor(architecture, torch.bfloat16).extract_tensor(volume)
        for expected, found in zip(exact, rounded, strict=True):
            assert found.dtype is torch.float32
            cosine = (expected * found).sum(dim=1)
            assert float(cosine.min()) > 0.98 and float(cosine.mean()) > 0.99

    def test_processor_without_bfloat16_instructions_uses_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for flags, expected in (("fma avx2", torch.float32), ("fma avx512_bf16 amx_bf16", torch.bfloat16)):
            monkeypatch.setattr(Path, "read_text", lambda *_, text=flags, **__: f"model : x\nflags : {text}\n")
            assert inference_precision("cpu") is expected
        assert inference_precision("cuda") is torch.float16

    @pytest.mark.cuda
    @BOTH
    def test_cuda_features_agree_with_the_processor_s(self, architecture: Architecture) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        torch.manual_seed(0)
        network = architecture.build()
        volume = _ct(_grid((48, 48, 16))).tensor()
        expected = SamExtractor(network, architecture, "random", precision=torch.float32).extract_tensor(volume)
        found = SamExtractor(network, architecture, "random", "cuda").extract_tensor(volume)
        for one, other in zip(expected, found, strict=True):
            assert other.dtype is torch.float16
            assert float((one * other.cpu().float()).sum(dim=1).min()) > 0.99


class TestMemory:
    """Refusing what does not fit, before it is tried."""

    def test_too_large_a_volume_is_refused_with_the_amount_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        extractor = _extractor(SAM_LITE)
        image = _ct(_grid((32, 32, 32)))
        needed = extractor.estimate_memory(image.grid)
        monkeypatch.setattr(memory, "available_memory", lambda _: needed - 1)
        with pytest.raises(NotEnoughMemoryError, match=f"{needed / memory.GIGABYTE:.1f} GB"):
            extractor.extract(image)

    def test_running_out_of_memory_becomes_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        extractor = _extractor(SAM_LITE)

        def exhausted(_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(extractor, "_network", exhausted)
        with pytest.raises(NotEnoughMemoryError, match="16 x 16 x 16 voxels"):
            extractor.extract_tensor(torch.zeros(1, 1, 16, 16, 16))

    @BOTH
    def test_estimate_grows_with_the_volume_at_working_spacing(self, architecture: Architecture) -> None:
        extractor = _extractor(architecture)
        small, large = Grid((64, 64, 64), (2.0,) * 3), Grid((64, 64, 64), (4.0,) * 3)
        fixed = architecture.fixed_values * 4
        growth = (extractor.estimate_memory(large) - fixed) / (extractor.estimate_memory(small) - fixed)
        # The slices beyond both ends are as many for either.
        assert growth == pytest.approx(4 * (128 + 32) / (64 + 32), rel=1e-3)

    def test_container_limit_counts_cached_files_as_free(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, text in {"max": "1000000", "current": "900000", "stat": "anon 1\ninactive_file 300000"}.items():
            (tmp_path / f"memory.{name}").write_text(text + "\n")
        monkeypatch.setattr(memory, "_CGROUP", tmp_path)
        assert memory.available_memory("cpu") == 400_000


class TestRegistry:
    """Extractors by name."""

    @pytest.fixture(autouse=True)
    def no_models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Folders of models that are empty at first."""
        monkeypatch.setattr(catalogue, "SHIPPED_FOLDER", tmp_path / "shipped")
        monkeypatch.setenv("SAMREG_MODELS", str(tmp_path / "user"))

    def test_mind_needs_no_model(self) -> None:
        assert get_extractor("mind").name == "mind"

    def test_sam_without_weights_becomes_mind_with_a_warning(self) -> None:
        with pytest.warns(RegistrationWarning, match="MIND"):
            assert get_extractor("sam").name == "mind"

    def test_sam_without_weights_is_refused_when_strict(self) -> None:
        with pytest.raises(UsageError, match="sam-lite"):
            get_extractor("sam", strict=True)

    def test_unknown_model_is_refused_by_name(self) -> None:
        with pytest.raises(UsageError, match="sam-huge"):
            get_extractor("sam-huge")

    def test_sam_is_the_default_model_when_it_is_installed(self) -> None:
        entry = catalogue.ModelEntry(
            "sam-lite", "sam-lite", "sam-lite.safetensors", "", 2.0, "none", "none", "2026-01-01",
            configuration={"widths": [16, 32, 48, 56]}, folder=catalogue.user_folder(),
        )  # fmt: skip
        catalogue.install(entry, ARCHITECTURES["sam-lite"].build(widths=(16, 32, 48, 56)).state_dict())
        extractor = get_extractor("sam")
        assert (extractor.name, extractor.spacing) == ("sam-lite", 2.0)
        fine, coarse = extractor.extract_tensor(torch.zeros(1, 1, 16, 16, 16))
        assert tuple(fine.shape) == (1, 64, 8, 8, 8)
        assert coarse is not None and tuple(coarse.shape) == (1, 64, 2, 2, 2)
