"""The losses of deformable training, against closed forms and against float64 written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from SAMRegistrationLib.features.mind import mind_ssc
from SAMRegistrationLib.solvers.terms import diffusion
from SAMRegistrationLib.training.deformable import losses
from SAMRegistrationLib.training.deformable.config import DeformableLossConfig
from SAMRegistrationLib.training.deformable.objective import pair_loss
from SAMRegistrationLib.training.deformable.pairs import Pair

SHAPE = (9, 10, 11)


def random_volume(seed: int, channels: int = 1, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn((1, channels, *shape), generator=torch.Generator().manual_seed(seed))


def constant_field(x: float, y: float, z: float, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.tensor([x, y, z], dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *shape).clone()


def linear_field(matrix: list[list[float]], shape: tuple[int, ...] = SHAPE) -> Tensor:
    z, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
    return torch.einsum("ij,jzyx->izyx", torch.tensor(matrix), torch.stack((x, y, z)))[None]


def random_mask(seed: int) -> Tensor:
    return (random_volume(seed) > -0.3).float()


def test_the_correlation_is_that_of_numpy_within_the_mask():
    fixed, warped, mask = random_volume(1), random_volume(1) * 0.5 + random_volume(2), random_mask(3)
    inside = mask.numpy().ravel() > 0
    expected = (
        1 - np.corrcoef(fixed.double().numpy().ravel()[inside], warped.double().numpy().ravel()[inside])[0, 1]
    )
    assert float(losses.correlation_loss(fixed, warped, mask)) == pytest.approx(expected, abs=1e-5)


def test_the_correlation_ignores_brightness_and_contrast_and_its_sign_counts():
    volume = random_volume(4)
    assert float(losses.correlation_loss(volume, 3 * volume + 5)) == pytest.approx(0, abs=1e-5)
    assert float(losses.correlation_loss(volume, -volume)) == pytest.approx(2, abs=1e-5)


def local_correlation_in_float64(fixed: Tensor, warped: Tensor, radius: int) -> float:
    """Window by window, as the definition says; the epsilon is 1e-4 of each volume's variance."""
    first, second = (((v - v.mean()) / v.std(correction=0)).double().numpy()[0, 0] for v in (fixed, warped))
    total = 0.0
    for index in np.ndindex(first.shape):
        window = tuple(slice(max(0, i - radius), i + radius + 1) for i in index)
        a, b = first[window].ravel(), second[window].ravel()
        covariance = np.mean(a * b) - a.mean() * b.mean()
        total += covariance**2 / ((a.var() + 1e-4) * (b.var() + 1e-4))
    return 1 - total / first.size


def test_the_local_correlation_is_that_of_every_window():
    fixed, warped = random_volume(5), random_volume(5) + random_volume(6)
    expected = local_correlation_in_float64(fixed, warped, 2)
    assert float(losses.local_correlation_loss(fixed, warped, radius=2)) == pytest.approx(expected, abs=1e-4)


def test_several_resolutions_are_averaged_with_halved_weights_and_smaller_windows():
    shape = (8, 8, 12)
    fixed, warped = random_volume(7, shape=shape), random_volume(7, shape=shape) + random_volume(8, shape=shape)
    halves = [torch.nn.functional.avg_pool3d(volume, 2) for volume in (fixed, warped)]
    expected = local_correlation_in_float64(fixed, warped, 3) + 0.5 * local_correlation_in_float64(*halves, 2)
    found = losses.local_correlation_loss(fixed, warped, radius=3, scales=2)
    assert float(found) == pytest.approx(expected / 1.5, abs=1e-4)


def test_the_squared_difference_is_the_mean_within_the_mask():
    fixed, warped, mask = random_volume(9), random_volume(10), random_mask(11)
    expected = ((fixed - warped).double().square() * mask).sum() / mask.double().sum()
    assert float(losses.squared_difference(fixed, warped, mask)) == pytest.approx(float(expected), rel=1e-5)


def test_mind_compares_the_descriptors_at_the_displaced_positions():
    """A displacement by whole voxels reads the descriptors of the neighbor; the border repeats."""
    fixed, moving = random_volume(12), random_volume(13)
    own, other = mind_ssc(fixed).double(), mind_ssc(moving).double()
    moved = torch.cat((other[..., 1:], other[..., -1:]), dim=4)
    expected = (own - moved).square().mean()
    assert float(losses.mind_loss(fixed, moving, constant_field(1, 0, 0))) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_embeddings_are_compared_by_the_cosine_after_interpolation():
    """Halfway between two orthogonal unit vectors lies one at 45 degrees to both."""
    fixed = torch.zeros(1, 2, *SHAPE)
    fixed[:, 0] = 1
    moving = torch.zeros(1, 2, *SHAPE)
    moving[:, 0, :, :, 0::2] = 1
    moving[:, 1, :, :, 1::2] = 1
    weight = torch.ones(1, 1, *SHAPE)
    weight[..., -1] = 0  # The last voxel has no neighbor to be halfway to.
    found = losses.embedding_loss(fixed, moving, constant_field(0.5, 0, 0), weight)
    assert float(found) == pytest.approx(1 - math.sqrt(0.5), abs=1e-5)
    assert float(losses.embedding_loss(fixed, fixed, constant_field(0.3, 1, -2))) == pytest.approx(0, abs=1e-5)


def test_embeddings_of_a_coarser_grid_see_the_same_displacement():
    """Four fine voxels are one coarse voxel of stride four."""
    shape, coarse = (8, 8, 16), (2, 2, 4)
    fixed = torch.nn.functional.normalize(random_volume(14, 5, coarse), dim=1)
    moving = torch.cat((fixed[..., :1], fixed[..., :-1]), dim=4)
    weight = torch.ones(1, 1, *shape)
    weight[..., -4:] = 0
    found = losses.embedding_loss(fixed, moving, constant_field(4, 0, 0, shape), weight)
    assert float(found) == pytest.approx(0, abs=1e-5)


def test_dice_of_shifted_boxes_is_their_share():
    """Boxes of four voxels that overlap in one, two and four of them."""
    masks = [torch.zeros(1, 3, 1, 1, 12) for _ in range(2)]
    for channel, shift in enumerate((3, 2, 0)):
        masks[0][0, channel, ..., 2:6] = 1
        masks[1][0, channel, ..., 2 + shift : 6 + shift] = 1
    nothing = torch.zeros(1, 3, 1, 1, 12)
    assert float(losses.dice_loss(masks[0], masks[1], nothing)) == pytest.approx(
        1 - (0.25 + 0.5 + 1) / 3, abs=1e-6
    )


def test_dice_has_a_gradient_toward_the_structure():
    fixed, moving = torch.zeros(1, 1, *SHAPE), torch.zeros(1, 1, *SHAPE)
    fixed[..., 2:6, 2:6, 2:6] = 1
    moving[..., 2:6, 2:6, 3:7] = 1
    field = torch.zeros(1, 3, *SHAPE, requires_grad=True)
    losses.dice_loss(fixed, moving, field).backward()
    assert field.grad is not None
    assert float(field.grad[0, 0].sum()) < -1e-3  # Growing along x lowers the loss.


def test_keypoints_count_the_distance_in_millimeters():
    points = torch.tensor([[2.0, 3.0, 4.0], [5.0, 5.0, 5.0]])
    partners = points + torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    found = losses.keypoint_loss(points, partners, torch.zeros(1, 3, *SHAPE), spacing=4.0)
    assert float(found) == pytest.approx((20 + 8) / 2, rel=1e-4)
    assert float(losses.keypoint_loss(points, points + 1, constant_field(1, 1, 1), 4.0)) == pytest.approx(
        0, abs=5e-3
    )


def test_the_known_field_is_missed_by_the_squared_distance():
    found = losses.known_field_loss(constant_field(1, 2, 2), torch.zeros(1, 3, *SHAPE))
    assert float(found) == pytest.approx(9.0)


def test_smoothness_of_a_linear_field_is_its_matrix():
    matrix = [[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.05, 0.0, 0.2]]
    squares = sum(value**2 for row in matrix for value in row)
    absolute = sum(abs(value) for row in matrix for value in row)
    assert float(diffusion(linear_field(matrix))) == pytest.approx(squares, rel=1e-4)
    assert float(losses.total_variation(linear_field(matrix))) == pytest.approx(absolute, rel=1e-4)


def test_only_negative_determinants_are_penalized():
    folded = linear_field([[-1.5, 0, 0], [0, 0.2, 0], [0, 0, 0]])
    assert float(losses.negative_jacobian(folded)) == pytest.approx(0.5 * 1.2, rel=1e-4)
    assert float(losses.negative_jacobian(linear_field([[-0.9, 0, 0], [0, 0, 0], [0, 0, 0]]))) == 0.0


def pair_of(seed: int, shape: tuple[int, int, int] = (8, 8, 8)) -> Pair:
    ones = torch.ones(1, 1, *shape)
    codes = torch.zeros(1, 1, *shape)
    codes[..., 2:6, 2:6, 2:6] = 2
    maps = [torch.nn.functional.normalize(random_volume(seed + i, 4, shape), dim=1) for i in range(4)]
    return Pair(
        ["a", "b"],
        random_volume(seed, shape=shape).clamp(-1, 1),
        random_volume(seed + 1, shape=shape).clamp(-1, 1),
        ones,
        ones,
        (codes, codes),
        ((maps[0], maps[1]), (maps[2], maps[3])),
        known=torch.zeros(1, 3, *shape),
        keypoints=(torch.full((1, 3), 3.0), torch.full((1, 3), 4.0)),
    )


NAMES = [name for name, value in vars(DeformableLossConfig()).items() if value == 0.0 and isinstance(value, float)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_loss_enters_the_total_by_its_weight_and_moves_the_field(name: str, stride: int):
    pair = pair_of(20)
    field = (random_volume(30, 3, tuple(n // stride for n in (8, 8, 8))) * 0.5).requires_grad_()
    config = DeformableLossConfig(**{name: 0.7}, radius=2)
    total, parts = pair_loss(pair, field, config, stride=stride, spacing=2.0)
    assert set(parts) == {name}
    assert float(total.detach()) == pytest.approx(0.7 * float(parts[name]), rel=1e-5)
    total.backward()
    assert field.grad is not None and float(field.grad.abs().max()) > 0
    assert bool(torch.isfinite(field.grad).all())


def test_what_a_pair_cannot_give_is_left_out():
    pair = pair_of(40)
    bare = Pair(["a"], pair.fixed, pair.moving, pair.inside, pair.body, (pair.codes[0] * 0, pair.codes[1]))
    config = DeformableLossConfig(mse=1.0, dice=1.0, keypoints=1.0, known=1.0)
    _, parts = pair_loss(bare, torch.zeros(1, 3, 8, 8, 8), config)
    assert set(parts) == {"mse"}
