"""QUIZ: a transformer that is asked where points of one volume lie in another (Liu et al., section 2.2).

A 3D ResNet-10 with shared weights encodes both volumes; their maps are merged along the last axis into one joint
map of C x D/8 x H/8 x W/4; encoded query points attend to it, and each comes out with a displacement. The paper
states neither depth nor heads, nor where the residual stages are dilated to keep the stride at 8: here stages
three and four are, and the quizzer has four layers of eight heads. Of our own are the confidence of every answer
and three switches, all off as published: an anatomical embedding beside the image, queries that know the map where
they lie, and a head that points at places of the searched volume and corrects from there.

Positions are from -1 to 1 over a volume's cube, in the order x, y, z (`align_corners=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .quiz_encoder import Fusion, ResNet10

_FREQUENCIES = 6
_FIRST_GAIN = 35.0
"""What a cosine similarity of embeddings is multiplied by, to begin with, where a query points."""

_LOG_VARIANCE_LIMITS = (-10.0, 2.0)


@dataclass(frozen=True)
class Answers:
    """What the network says about n query points of b pairs.

    Args:
        displacement: (b, n, 3) from a query's position to that of its partner, in halves of the cubes' side.
        log_variance: (b, n) of the displacement's error along an axis, in the same unit.
        pointing: (b, n, z, y, x) how likely the partner lies where, or None without a pointing head.
    """

    displacement: Tensor
    log_variance: Tensor
    pointing: Tensor | None


@dataclass(frozen=True)
class Expectation:
    """Where partners are thought to lie before the network is asked.

    Args:
        places: (b, n, 3) in the searched volumes.
        width: standard deviation of what is thought, in halves of the cubes' side.
    """

    places: Tensor
    width: float


@dataclass(frozen=True)
class JointMap:
    """Both volumes encoded, to be asked any number of times.

    Args:
        reference: (b, C, z, y, x) features of the reference.
        tokens: of the joint map.
        searched: those of the searched volume alone.
        embeddings: the anatomical embeddings of both, (b, E, z, y, x), where there are any.
    """

    reference: Tensor
    tokens: Tokens
    searched: Tokens
    embeddings: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Tokens:
    """The cells of a map that there is something to see in.

    Args:
        values: (b, t, C), which know their position.
        cells: (b, t) which cell of the map each is, x fastest.
        present: (b, t) bool; the others only fill up what the pairs of a batch have fewer.
        shape: (z, y, x) of the map.
    """

    values: Tensor
    cells: Tensor
    present: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, features: Tensor, present: Tensor) -> Tokens:
        """Those of a map (b, z, y, x, C) that are present (b, z, y, x)."""
        values, kept = features.flatten(1, 3), present.flatten(1)
        shape = (features.shape[1], features.shape[2], features.shape[3])
        most = int(kept.sum(dim=1).max())
        cells = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        if not bool(kept.all()):
            values = values.gather(1, cells[..., None].expand(-1, -1, values.shape[-1]))
        return cls(values, cells, kept.gather(1, cells), shape)

    def spread(self, values: Tensor) -> Tensor:
        """What belongs to the tokens (b, n, t), in their cells: (b, n, z, y, x), zero elsewhere."""
        whole = values.new_zeros(*values.shape[:2], self.shape[0] * self.shape[1] * self.shape[2])
        index = self.cells[:, None].expand(-1, values.shape[1], -1)
        return whole.scatter(2, index, values).unflatten(2, self.shape)


class Quiz(nn.Module):
    """The network: 15.0 M parameters with the published widths.

    Args:
        channels: of the joint map.
        widths: channels of the four residual stages.
        layers: of the quizzer.
        heads: of its attention.
        embedding_channels: of an anatomical embedding that goes in beside the image; 0 for none. The joint map
            then has the embedding's resolution.
        content_queries: whether a query also knows the map where it lies.
        pointing: whether answers begin at the place of the searched volume that a query attends to.
    """

    def __init__(
        self,
        channels: int = 128,
        widths: Sequence[int] = (64, 128, 256, 512),
        layers: int = 4,
        heads: int = 8,
        embedding_channels: int = 0,
        content_queries: bool = False,
        pointing: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_channels = embedding_channels
        self.content_queries = content_queries
        self.encoder = ResNet10(widths, channels)
        self.fusion = Fusion(channels, embedding_channels) if embedding_channels else None
        self.position = PositionEncoding(channels)
        self.side = nn.Parameter(torch.randn(2, channels) * 0.02)
        self.layers = nn.ModuleList(QuizzerLayer(channels, heads) for _ in range(layers))
        self.normalization = nn.LayerNorm(channels)
        self.pointer = Pointer(channels, embedding_channels > 0) if pointing else None
        last = nn.Linear(channels, 4)
        nn.init.normal_(last.weight, std=1e-3)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -3.0]))
        self.answer = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), last)

    def forward(
        self, reference: Tensor, search: Tensor, queries: Tensor, embeddings: tuple[Tensor, Tensor] | None = None
    ) -> Answers:
        """Ask about points.

        Args:
            reference: (b, 1, z, y, x) volumes between 0 and 1, sizes multiples of 8.
            search: the same of the volumes searched.
            queries: (b, n, 3) positions in the reference.
            embeddings: of both, (b, E, z', y', x'), zero where there is nothing to attend to.
        """
        return self.ask(self.encode(reference, search, embeddings), queries)

    def encode(
        self, reference: Tensor, search: Tensor, embeddings: tuple[Tensor, Tensor] | None = None
    ) -> JointMap:
        """Both volumes as one map.

        Raises:
            ValueError: if the network takes embeddings and there are none, or the other way round.
        """
        if (embeddings is None) is not (self.fusion is None):
            raise ValueError("the network wants embeddings exactly if it was built with embedding_channels")
        features = self.encoder(torch.cat([reference, search]))
        if self.fusion is not None and embeddings is not None:
            features = self.fusion(features, torch.cat(embeddings))
        first, second = features.chunk(2)
        positions = cell_positions(first.shape[2:], first.device)
        places = self.position(positions).unflatten(0, first.shape[2:])
        sides = [f.movedim(1, -1) + places + code for f, code in zip((first, second), self.side, strict=True)]
        if embeddings is None:
            present = [torch.ones(f.shape[:-1], dtype=torch.bool, device=f.device) for f in sides]
        else:
            present = [_present(embedding) for embedding in embeddings]
        # Merged along the last axis, x.
        joint = Tokens.of(torch.cat(sides, dim=3), torch.cat(present, dim=3))
        return JointMap(first, joint, Tokens.of(sides[1], present[1]), embeddings)

    def ask(self, joint: JointMap, queries: Tensor, expectation: Expectation | None = None) -> Answers:
        """The answers to queries (b, n, 3); what is expected of them is heeded where the network points."""
        state = self.position(queries)
        if self.content_queries:
            state = state + sample_at(joint.reference, queries)
        for layer in self.layers:
            state = layer(state, joint.tokens.values, joint.tokens.present)
        state = self.normalization(state)
        start, pointing = queries, None
        if self.pointer is not None:
            start, state, pointing = self.pointer(state, joint, queries, expectation)
        out = self.answer(state).float()
        log_variance = out[..., 3].clamp(*_LOG_VARIANCE_LIMITS)
        return Answers(out[..., :3] + start - queries, log_variance, pointing)


class PositionEncoding(nn.Module):
    """Sines and cosines of a position, and a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 + 6 * _FREQUENCIES, channels)

    def forward(self, positions: Tensor) -> Tensor:
        """(..., 3) to (..., C)."""
        frequencies = torch.pi / 2 * 2.0 ** torch.arange(_FREQUENCIES, device=positions.device)
        angles = (positions[..., None] * frequencies).flatten(-2)
        result: Tensor = self.linear(torch.cat([positions, angles.sin(), angles.cos()], dim=-1))
        return result


class QuizzerLayer(nn.Module):
    """Queries attend to the tokens, each for itself, and think about what they saw."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_normalization = nn.LayerNorm(channels)
        self.token_normalization = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.output = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, state: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """(b, n, C) queries, (b, t, C) tokens, (b, t) bool; (b, n, C)."""
        query = self._split(self.query(self.query_normalization(state)))
        key, value = (self._split(part) for part in self.key_value(self.token_normalization(tokens)).chunk(2, -1))
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=present[:, None, None])
        state = state + self.output(seen.transpose(1, 2).flatten(2))
        result: Tensor = state + self.feed_forward(state)
        return result

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Pointer(nn.Module):
    """Where in the searched volume a query looks: the mean position of its attention, and what it sees there.

    With embeddings, the likeness of the vectors themselves is added to the attention, so that even an untrained
    network points to where the embedding would.
    """

    def __init__(self, channels: int, with_embedding: bool) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.seen = nn.Linear(2 * channels + 3, channels)
        self.gain = nn.Parameter(torch.tensor(_FIRST_GAIN).log()) if with_embedding else None
        # The learned part begins at nothing.
        nn.init.normal_(self.query.weight, std=1e-3)

    def forward(
        self, state: Tensor, joint: JointMap, queries: Tensor, expectation: Expectation | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mean position (b, n, 3), the new state (b, n, C), and the attention (b, n, z, y, x)."""
        searched = joint.searched
        key = self.key(searched.values)
        logits = self.query(state) @ key.transpose(1, 2) / key.shape[-1] ** 0.5
        if self.gain is not None and joint.embeddings is not None:
            own = functional.normalize(sample_at(joint.embeddings[0], queries), dim=-1)
            everywhere = joint.embeddings[1].flatten(2)
            there = everywhere.gather(2, searched.cells[:, None].expand(-1, everywhere.shape[1], -1))
            logits = logits + self.gain.exp() * (own @ functional.normalize(there, dim=1))
        positions = cell_positions(searched.shape, logits.device)[searched.cells]
        logits = logits.float()
        if expectation is not None:
            logits = logits - (torch.cdist(expectation.places, positions) / expectation.width).square() / 2
        attention = logits.masked_fill(~searched.present[:, None], -1e4).softmax(dim=-1)
        # In full precision, as half precision cannot hold positions.
        with torch.autocast(attention.device.type, enabled=False):
            place = attention @ positions
        seen = attention.to(searched.values.dtype) @ searched.values
        state = state + self.seen(torch.cat([state, seen, (place - queries).to(state.dtype)], dim=-1))
        return place, state, searched.spread(attention)


def cell_positions(shape: Sequence[int], device: torch.device) -> Tensor:
    """Positions (z * y * x, 3) of the centers of a map's cells, x fastest."""
    axes = [(2 * torch.arange(n, device=device) + 1) / n - 1 for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1).flatten(0, 2)


def sample_at(values: Tensor, positions: Tensor) -> Tensor:
    """Trilinear values (b, n, C) of maps (b, C, z, y, x) at positions (b, n, 3); edges repeat."""
    # In full precision: half precision cannot hold positions.
    places = positions[:, None, None].float()
    sampled = functional.grid_sample(values.float(), places, padding_mode="border", align_corners=False)
    return sampled[:, :, 0, 0].transpose(1, 2)


def _present(embedding: Tensor) -> Tensor:
    """(b, z, y, x) where there is an embedding; everywhere in a volume that has none at all."""
    present = embedding.abs().amax(dim=1) > 0
    return present | ~present.flatten(1).any(dim=1)[:, None, None, None]
