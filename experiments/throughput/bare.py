"""A distillation loop as one writes it by hand, for one pair of nets: PyTorch and nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LR, WEIGHT_DECAY, MAX_NORM = 2e-3, 1e-4, 1.0
TEMPERATURE, LABEL_WEIGHT = 2.0, 0.1


class BareLoop:
    """Images and labels lie on the device, and all is drawn there; nothing waits for the device.

    Parameters
    ----------
    pixels
        (N, 3, H, W) uint8.
    crop
        Images are shifted by up to so many pixels each way; all are mirrored at random.
    bfloat16
        Under autocast.
    steps
        Of the whole run, for the schedule.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, pixels: Tensor, labels: Tensor, *,
        mean: tuple[float, ...], std: tuple[float, ...], batch: int, crop: int, bfloat16: bool,
        channels_last: bool, steps: int, device: str,
    ) -> None:  # fmt: skip
        self.device, self.batch, self.crop, self.bfloat16 = device, batch, crop, bfloat16
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.student, self.teacher = (
            net.to(device, memory_format=self.layout)  # type: ignore[call-overload]
            for net in (student.train(), teacher.eval())
        )
        self.pixels, self.labels = pixels.to(device), labels.to(device)
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (mean, std))
        self.parameters = list(student.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.order = torch.randperm(len(pixels), device=device)
        self.at = 0

    def step(self) -> None:
        """One batch."""
        if self.at + self.batch > len(self.order):
            self.order, self.at = torch.randperm(len(self.order), device=self.device), 0
        chosen = self.order[self.at : self.at + self.batch]
        self.at += self.batch
        images = (self.pixels[chosen].float() / 255 - self.mean) / self.std
        images = self.augmented(images).contiguous(memory_format=self.layout)
        with torch.no_grad(), self.autocast():
            target = self.teacher(images)
        with self.autocast():
            output = self.student(images)
        loss = self.loss(output.float(), target.float(), self.labels[chosen])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()
        self.schedule.step()

    def autocast(self) -> torch.autocast:
        """Mixed precision, where it is wanted."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)

    def augmented(self, images: Tensor) -> Tensor:
        """Mirror and shift each image by itself."""
        count, channels, height, width = images.shape
        mirrored = torch.rand(count, 1, 1, 1, device=self.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
        if not self.crop:
            return images
        padded = F.pad(images, (self.crop,) * 4, mode="reflect")
        shifts = torch.randint(2 * self.crop + 1, (2, count, 1), device=self.device)
        rows = torch.arange(height, device=self.device) + shifts[0]
        columns = torch.arange(width, device=self.device) + shifts[1]
        number = torch.arange(count, device=self.device)[:, None, None, None]
        channel = torch.arange(channels, device=self.device)[None, :, None, None]
        return padded[number, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def loss(self, output: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """KL divergence at a temperature, and the labels' cross-entropy."""
        log_p, log_q = (F.log_softmax(v / TEMPERATURE, dim=1) for v in (target, output))
        far = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return TEMPERATURE**2 * far + LABEL_WEIGHT * F.cross_entropy(output, labels)
