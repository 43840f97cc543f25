"""Generated deformations: what they promise, in closed form where there is one, on made-up and real chests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from SAMRegistrationLib import Grid, Image
from SAMRegistrationLib.image_io import read_image
from SAMRegistrationLib.sampling import Interpolation
from SAMRegistrationLib.synthetic import (
    BreathingMotion,
    Deformation,
    breathing,
    contrast_phase,
    crop_field_of_view,
    deform,
    elastic,
    noise,
    rotation,
    shading,
    streaks,
    thick_slices,
)
from SAMRegistrationLib.synthetic.chest_wall import ChestWall, find_chest_wall

LUNG_RADII = (45.0, 60.0, 110.0)
LUNG_CENTERS = ((62.0, 0.0, 20.0), (-62.0, 0.0, 20.0))


@pytest.fixture(scope="module")
def chest() -> Image:
    """An elliptical trunk with two ellipsoids of lung and a spine, 6 mm voxels."""
    grid = Grid((52, 40, 48), (6.0,) * 3, (-153.0, -117.0, -141.0))
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), -1)).transpose(
        2, 1, 0, 3
    )
    values = np.where(np.linalg.norm(points[..., :2] / (140, 100), axis=-1) < 1, 40.0, -1000.0)
    values[np.linalg.norm(points[..., :2] - (0, 62), axis=-1) < 20] = 500.0
    for center in LUNG_CENTERS:
        values[np.linalg.norm((points - center) / LUNG_RADII, axis=-1) < 1] = -850.0
    return Image(torch.from_numpy(values).float(), grid, "int16", "CT")


@pytest.fixture(scope="module")
def textured() -> Image:
    """Smooth waves, which interpolation reproduces well."""
    grid = Grid((40, 36, 32), (3.0, 3.0, 4.0), (-60.0, -52.0, -64.0))
    x, y, z = (torch.arange(n) * 2 * torch.pi / 20 for n in grid.size)
    waves = z.sin()[:, None, None] + (1.3 * y).cos()[:, None] + (0.8 * x + 1).sin()
    return Image(300 * waves, grid, "int16", "CT")


def motions(image: Image) -> dict[str, Deformation]:
    return {
        "elastic": elastic(image, 3, magnitude_mm=8, scale_mm=20),
        "rotation": rotation(image, 3, degrees=30, shift_mm=12),
        "both": elastic(image, 3, 8, 20).then(rotation(image, 4, 10)),
    }


@pytest.mark.parametrize("name", ["elastic", "rotation", "both"])
def test_the_way_back_returns_to_a_hundredth_of_a_millimeter(textured: Image, name: str) -> None:
    motion = motions(textured)[name]
    moving = textured.grid.padded(4)
    back = moving.to_world(voxels(moving)) + vectors(motion.inverse_displacement(moving).data)
    assert np.abs(motion.transform_points(back) - moving.to_world(voxels(moving))).max() < 0.01


@pytest.mark.parametrize("name", ["elastic", "rotation", "both"])
def test_the_moving_volume_shows_at_the_mapped_point_what_the_fixed_one_shows(textured: Image, name: str) -> None:
    motion = motions(textured)[name]
    moving = deform(textured, motion, textured.grid.padded(8))
    again = motion.displacement(textured.grid).warp(moving, Interpolation.CUBIC)
    inner = (slice(4, -4),) * 3
    assert float((again.data - textured.data)[inner].abs().max()) < 0.03 * float(textured.data.abs().max())


def test_breathing_returns_to_a_hundredth_of_a_millimeter_and_never_crosses_the_wall(chest: Image) -> None:
    motion = breathing(chest, 1, 20.0)
    points = chest.grid.to_world(voxels(chest.grid))
    mapped = motion.transform_points(points)
    columns = torch.from_numpy(mapped.T.copy())
    assert np.abs(motion.unmap_world(columns).numpy().T - points).max() < 0.01
    assert (inside(motion, points) == inside(motion, mapped)).all()


def test_breathing_moves_the_diaphragm_by_its_amplitude_and_neither_wall_nor_apex(chest: Image) -> None:
    motion = breathing(chest, 1, 15.0)
    wall = motion.steps[0].wall  # type: ignore[attr-defined]
    displacement = motion.displacement(chest.grid).data[0]
    heights = chest.grid.to_world(voxels(chest.grid))[:, 2].reshape(chest.grid.shape)
    within = inside(motion, chest.grid.to_world(voxels(chest.grid))).reshape(chest.grid.shape)
    at_base = torch.from_numpy(within & (np.abs(heights - wall.base) < 4))
    assert float(displacement[2][at_base].mean()) == pytest.approx(15, abs=1)
    assert float(displacement[:, ~torch.from_numpy(within)].abs().max()) < 1e-3
    assert float(displacement[:, torch.from_numpy(heights > wall.apex)].abs().max()) < 1e-3


def test_the_chest_wall_lies_where_the_lungs_end_and_before_the_spine(chest: Image) -> None:
    wall = find_chest_wall(chest)
    middle = torch.tensor([20.0], dtype=torch.float64)
    left, back = (wall.radius(torch.full_like(middle, angle), middle).item() for angle in (0.0, np.pi / 2))
    assert left + wall.center[0] == pytest.approx(LUNG_CENTERS[0][0] + LUNG_RADII[0], abs=5)
    assert back + wall.center[1] == pytest.approx(62 - 20, abs=6)
    assert wall.apex == pytest.approx(LUNG_CENTERS[0][2] + LUNG_RADII[2], abs=8)


def test_a_volume_without_lungs_cannot_breathe(textured: Image) -> None:
    with pytest.raises(ValueError, match="no lungs"):
        breathing(textured, 1)


def test_too_deep_a_breath_is_refused(chest: Image) -> None:
    with pytest.raises(ValueError, match="too much"):
        breathing(chest, 1, 90.0)


def test_only_voxels_where_the_inside_moves_are_near_a_sliding_surface(chest: Image) -> None:
    motion = breathing(chest, 1, 15.0)
    distance = motion.slip_distance(chest.grid)
    heights = torch.from_numpy(chest.grid.to_world(voxels(chest.grid))[:, 2].reshape(chest.grid.shape))
    wall = motion.steps[0].wall  # type: ignore[attr-defined]
    assert bool((distance < 10).any())
    assert float(distance[heights > wall.apex].min()) > 10
    assert bool(torch.isinf(rotation(chest, 1).slip_distance(chest.grid)).all())


def test_a_wall_that_narrows_squeezes_what_rises_without_letting_it_out() -> None:
    radii = torch.linspace(100, 60, 50, dtype=torch.float64)[:, None].expand(50, 8).clone()
    wall = ChestWall((0.0, 0.0), 0.0, 4.0, radii, apex=190.0, base=20.0)
    motion = BreathingMotion(wall, 12.0, (0.1, 0.0))
    points = torch.tensor([[30.0], [40.0], [60.0]], dtype=torch.float64)
    mapped = motion.map_world(points)
    share = [float(p[:2].norm() / wall.radius(torch.zeros_like(p[2]), p[2])) for p in (points, mapped)]
    assert share[0] == pytest.approx(share[1], abs=1e-9)
    assert float(mapped[2] - points[2]) > 5
    torch.testing.assert_close(motion.unmap_world(mapped), points)


def test_elastic_reaches_its_magnitude_without_folds(textured: Image) -> None:
    field = elastic(textured, 5, magnitude_mm=9, scale_mm=20).displacement(textured.grid)
    assert float(field.data[0].norm(dim=0).max()) == pytest.approx(9, rel=0.05)
    assert float(field.jacobian_determinant().min()) > 0.05


def test_an_elastic_deformation_that_would_fold_is_refused(textured: Image) -> None:
    with pytest.raises(ValueError, match="folds"):
        elastic(textured, 5, magnitude_mm=60, scale_mm=8)


def test_a_rotation_turns_by_its_angle_and_moves_the_middle_by_its_shift(textured: Image) -> None:
    motion = rotation(textured, 2, degrees=25, shift_mm=7)
    center = textured.grid.center
    moved = motion.transform_points([center, *(center + np.eye(3))])
    linear = (moved[1:] - moved[0]).T
    assert np.linalg.norm(moved[0] - center) == pytest.approx(7)
    assert np.degrees(np.arccos((np.trace(linear) - 1) / 2)) == pytest.approx(25)


@pytest.mark.parametrize(
    "make",
    [
        lambda image, seed: breathing(image, seed).displacement(image.grid).data,
        lambda image, seed: elastic(image, seed).displacement(image.grid).data,
        lambda image, seed: rotation(image, seed).displacement(image.grid).data,
        lambda image, seed: contrast_phase(image, seed).data,
        lambda image, seed: noise(image, seed).data,
        lambda image, seed: shading(image, seed).data,
        lambda image, seed: streaks(image, seed, radius_mm=12.0).data,
    ],
    ids=["breathing", "elastic", "rotation", "contrast", "noise", "shading", "streaks"],
)
def test_a_seed_decides_everything(chest: Image, make) -> None:
    assert torch.equal(make(chest, 1), make(chest, 1))
    assert not torch.equal(make(chest, 1), make(chest, 2))


def test_contrast_changes_soft_tissue_only_and_by_no_more_than_asked(chest: Image) -> None:
    change = (contrast_phase(chest, 1, change_hu=60).data - chest.data).abs()
    assert 20 < float(change.max()) <= 60.01
    deep_in_air_or_lung = torch.nn.functional.max_pool3d(chest.tensor(), 5, 1, 2)[0, 0] < -500
    assert float(change[deep_in_air_or_lung].max()) < 1e-3


def test_noise_has_its_standard_deviation_where_values_have_room(chest: Image) -> None:
    added = (noise(chest, 1, sigma_hu=15).data - chest.data)[chest.data == 40]
    assert float(added.std()) == pytest.approx(15, rel=0.05)
    assert abs(float(added.mean())) < 1


def test_what_is_not_known_stays_unknown(chest: Image) -> None:
    masked = chest.with_data(torch.where(chest.data == 500, -1024.0, chest.data))
    for change in (noise, shading, contrast_phase):
        assert bool((change(masked, 1).data[masked.data == -1024] == -1024).all())


def test_shading_darkens_the_middle_of_the_body_most(chest: Image) -> None:
    change = shading(chest, 1, strength_hu=100, scale_mm=60).data - chest.data
    tissue = chest.data == 40
    x = torch.nonzero(tissue)[:, 2]
    central = (x - 25.5).abs() < 5
    assert float(change[tissue][central].mean()) < float(change[tissue][~central].mean())


def test_streaks_reach_beyond_the_metal_in_its_slices_and_not_into_others(chest: Image) -> None:
    changed = streaks(chest, 4, inserts=2, radius_mm=12.0).data
    with_metal = (changed == 3071).flatten(1).any(dim=1)
    elsewhere = (changed != chest.data) & (changed != 3071)
    assert 0 < int(with_metal.sum()) < len(with_metal)
    assert not bool(elsewhere[~with_metal].any())
    assert float((changed - chest.data)[elsewhere].abs().max()) > 100


def test_a_shorter_scan_keeps_its_place_in_the_world(chest: Image) -> None:
    short = crop_field_of_view(chest, 1, keep=0.5)
    assert short.grid.size == (52, 40, 24)
    assert torch.equal(short.data, chest.resampled(short.grid, Interpolation.NEAREST).data)


def test_thick_slices_cover_the_same_box(chest: Image) -> None:
    thick = thick_slices(chest, 12.0)
    assert thick.grid.spacing == pytest.approx((6, 6, 12))
    assert thick.grid.extent == pytest.approx(chest.grid.extent)


@pytest.mark.data
@pytest.mark.slow
def test_a_real_chest_breathes_without_folds_away_from_the_wall(data_dir: Path) -> None:
    image = read_image(data_dir / "thorax" / "lidc0405.nii.gz")
    motion = breathing(image, 1, -20.0)
    field = motion.displacement(image.grid)
    away = motion.slip_distance(image.grid) > 2 * max(image.grid.spacing)
    assert float(field.jacobian_determinant()[0, 0][away].min()) > 0.25
    moving = deform(image, motion)
    again = field.warp(moving)
    lungs = (image.data < -600) & away & (torch.arange(image.grid.shape[0])[:, None, None] > 20)
    before, after = ((other.data - image.data)[lungs].abs().mean() for other in (moving, again))
    assert float(after) < 0.3 * float(before)


def inside(motion: Deformation, points: np.ndarray) -> np.ndarray:
    """Which points (N, 3) lie inside the chest wall."""
    wall = motion.steps[0].wall  # type: ignore[attr-defined]
    x, y, z = torch.from_numpy(points - (*wall.center, 0.0)).unbind(1)
    return (torch.hypot(x, y) < wall.radius(torch.atan2(y, x), z)).numpy()


def voxels(grid: Grid) -> np.ndarray:
    """Voxel positions (N, 3) in the order of the array."""
    z, y, x = (index.ravel() for index in np.indices(grid.shape))
    return np.stack([x, y, z], axis=1)


def vectors(field: torch.Tensor) -> np.ndarray:
    """(N, 3) of a field (1, 3, z, y, x)."""
    return field[0].flatten(1).T.double().numpy()
