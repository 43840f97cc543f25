"""The training loop."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..networks.sam_lite import SamLite
from .batches import BatchSource
from .cache import CachedVolume
from .config import TrainingConfig
from .objective import embed, total_loss


class Trainer:
    def __init__(self, volumes: list[CachedVolume], config: TrainingConfig, out: Path) -> None:
        self.config = config
        self.out = out
        self.device = torch.device("cpu")
        torch.manual_seed(config.seed)
        self.network = SamLite(config.width, config.embedding_channels).to(memory_format=torch.channels_last_3d)
        self.average = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.iteration = 0
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world > 1:
            torch.distributed.init_process_group("gloo")
        self.source = BatchSource(volumes, config, self.device, self.rank)

    def rate(self) -> float:
        c = self.config
        decay = c.decay * c.iterations
        warm = min(1.0, (self.iteration + 1) / c.warmup)
        cool = min(1.0, max(0.0, (c.iterations - self.iteration) / decay))
        return c.learning_rate * warm * cool

    def step(self) -> dict[str, float]:
        generator = self.source.generator(self.iteration)
        start = time.time()
        batch = self.source.draw(generator)
        drawn = time.time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        embedded = embed(
            self.network, batch, self.config.loss, generator, mixed_precision=self.config.mixed_precision
        )
        forward = time.time()
        loss, parts = total_loss(embedded, batch, self.config.loss)
        losses = time.time()
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss is not finite at {batch.names}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        local = time.time()
        if self.world > 1:
            grads = [p.grad for p in self.network.parameters()]
            flat = torch.cat([g.reshape(-1) for g in grads])
            torch.distributed.all_reduce(flat)
            flat /= self.world
            offset = 0
            for g in grads:
                g.copy_(flat[offset : offset + g.numel()].view(g.shape))
                offset += g.numel()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.update_average()
        end = time.time()
        self.iteration += 1
        parts.update(
            total=float(loss.detach()),
            norm=float(norm),
            data=drawn - start,
            fwd=forward - drawn,
            loss_s=losses - forward,
            bwd=end - losses,
        )
        return parts

    @torch.no_grad()
    def update_average(self) -> None:
        decay = min(self.config.average_decay, (1 + self.iteration) / (10 + self.iteration))
        for a, b in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
            if a.dtype.is_floating_point:
                a.lerp_(b, 1 - decay)
            else:
                a.copy_(b)

    def save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "config": self.config.to_dict(),
        }
        temporary = self.out / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")
        tensors = {
            k: (v.half() if v.dtype.is_floating_point else v).contiguous()
            for k, v in self.average.state_dict().items()
            if "num_batches" not in k
        }
        metadata = {
            "architecture": self.config.architecture,
            "iteration": str(self.iteration),
            "spacing": "2.0",
            "width": str(self.config.width),
            "embedding_channels": str(self.config.embedding_channels),
        }
        save_file(tensors, self.out / "latest.tmp", metadata)
        (self.out / "latest.tmp").replace(self.out / "latest.safetensors")
        save_file(tensors, self.out / f"it{self.iteration:05d}.safetensors", metadata)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]

    def run(self) -> None:
        saved = time.time()
        begin = time.time()
        first = self.iteration
        sums: dict[str, list[float]] = {}
        while self.iteration < self.config.iterations:
            for key, value in self.step().items():
                sums.setdefault(key, []).append(value)
            if self.rank:
                continue
            if self.iteration % 10 == 0:
                means = {k: round(sum(v) / len(v), 3) for k, v in sums.items()}
                print(
                    json.dumps(
                        {
                            "it": self.iteration,
                            "t": round(time.time() - begin),
                            "lr": round(self.rate(), 6),
                            **means,
                        }
                    ),
                    flush=True,
                )
                sums = {}
            if time.time() - saved > 60 * self.config.checkpoint_minutes or self.iteration == first + 20:
                self.save()
                saved = time.time()
        self.save()
