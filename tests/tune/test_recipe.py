"""Recipes: what a file may say, and what is done to images."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from factorize.data.images import PixelSet, Shuffled
from factorize.errors import DataError
from factorize.tune import FinetuneConfig, read_recipe, with_recipe
from factorize.tune.augment import mixed, moved
from factorize.tune.distance import label_loss
from factorize.tune.order import Feed

# --- the file --------------------------------------------------------------------------------


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml, plain = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text('epochs = 3\noptimizer = "sgd"\nlr = 1\nflip = true  # and a remark\n')
    plain.write_text(json.dumps({"epochs": 3, "optimizer": "sgd", "lr": 1, "flip": True}))
    assert read_recipe(toml) == read_recipe(plain)
    config = with_recipe(read_recipe(toml), epochs=None, lr=None, seed=4)
    want = FinetuneConfig(3, optimizer="sgd", lr=1.0, flip=True, seed=4)
    assert config == want
    assert with_recipe(read_recipe(toml), epochs=5, lr=0.1) == FinetuneConfig(
        5, optimizer="sgd", lr=0.1, flip=True
    )


def test_the_default_rate_is_the_optimizers() -> None:
    assert FinetuneConfig(1).peak == 2e-3
    assert FinetuneConfig(1, optimizer="sgd").peak == 0.05
    assert with_recipe({"optimizer": "sgd"}, lr=None).peak == 0.05


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch = 3", "Did you mean epochs?"),
        ("checkpoint = 'a'", "is no setting of a recipe"),
        ("epochs = 1.5", "epochs must be a int, got 1.5"),
        ("epochs = true", "epochs must be a int, got True"),
        ("flip = 1", "flip must be a bool, got 1"),
        ("lr = 'fast'", "lr must be a float, got 'fast'"),
        ("lr = nan", "lr must be a float, got nan"),
        ("lr = -1.0", "lr: the learning rate must be above 0"),
        ("optimizer = 'adam'", "optimizer: must be adamw or sgd, got 'adam'"),
        ("ema = 1.0", "ema: must be in 0..0.999999, got 1"),
        ("crop = -1", "crop: must be in 0..10000, got -1"),
        ("micro_batches = 0", "micro_batches: must be at least 1, got 0"),
        ("logit_weight = 0\nlabel_weight = 0", "must be above 0, got 0 for all"),
        ("epochs = ", "does not parse"),
        ("= 3", "does not parse"),
    ],
)
def test_a_bad_recipe_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(DataError) as failed:
        with_recipe(read_recipe(path))
    assert told in str(failed.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", b"[1]"), ("a.json", b"[" * 10**5), ("a.toml", b"\xff\xfe"), ("b.toml", None)],
)
def test_what_is_no_recipe_is_told(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"recipe"):
        read_recipe(path)


def test_every_setting_is_documented() -> None:
    told = FinetuneConfig.__doc__ or ""
    for field in fields(FinetuneConfig):
        assert field.name in ("epochs", "seed") or field.name in told, field.name


# --- images ----------------------------------------------------------------------------------


def test_each_image_is_itself_mirrored_and_shifted() -> None:
    torch.manual_seed(0)
    images = torch.arange(40 * 3 * 9 * 9.0).view(40, 3, 9, 9)
    config = FinetuneConfig(1, flip=True, crop=2)
    result = moved(images, config, 40, slice(0, 40))
    found = set()
    for image, got in zip(images, result, strict=True):
        for mirrored in (False, True):
            flipped = image.flip(-1) if mirrored else image
            padded = F.pad(flipped, (2,) * 4, mode="reflect")
            for dy in range(5):
                for dx in range(5):
                    if torch.equal(padded[:, dy : dy + 9, dx : dx + 9], got):
                        found.add((mirrored, dy, dx))
                        break
    assert len(found) > 20  # many of the fifty ways


def test_a_part_of_a_batch_is_moved_as_it_is_in_the_whole() -> None:
    images, config = torch.randn(10, 3, 8, 8), FinetuneConfig(1, flip=True, crop=3)
    torch.manual_seed(5)
    whole = moved(images, config, 10, slice(0, 10))
    torch.manual_seed(5)
    assert torch.equal(moved(images[4:], config, 10, slice(4, 10)), whole[4:])


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 4, 4)])
def test_what_cannot_be_shifted_is_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="larger than 4 pixels"):
        moved(torch.zeros(shape), FinetuneConfig(1, crop=4), 2, slice(0, 2))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_say_what_was_mixed(kind: str) -> None:
    torch.manual_seed(1)
    images = torch.rand(6, 1, 1, 1).expand(6, 3, 16, 16).clone()
    result, shares = mixed(images, FinetuneConfig(1, **{kind: 1.0}))
    assert shares is not None
    assert torch.allclose(shares.sum(1), torch.ones(6))
    assert not torch.allclose(shares, torch.eye(6))
    means = shares @ images.mean((1, 2, 3))
    assert torch.allclose(result.mean((1, 2, 3)), means, atol=1e-5)
    assert mixed(images, FinetuneConfig(1))[1] is None


def test_labels_of_mixed_images() -> None:
    logits, labels = torch.randn(3, 5), torch.tensor([4, 0, 2])
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])
    log_p = F.log_softmax(logits[:2], 1)
    want = -(0.7 * log_p[0, 4] + 0.3 * log_p[0, 0] + log_p[1, 0]) / 2
    assert torch.allclose(label_loss(logits[:2], labels, shares=shares), want)


def test_pixels_are_fed_as_the_loader_would() -> None:
    pixels = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8)
    whole = PixelSet(pixels, torch.arange(50), lambda x: x.float() / 255)
    rest = Subset(whole, list(range(49, 9, -1)))
    loader = DataLoader(rest, 8, sampler=Shuffled(40, 0), collate_fn=lambda batch: batch)
    fed = Feed(loader, torch.device("cpu"))
    assert fed.held is not None
    for first in (0, 3):
        read = list(loader)[first:]
        for batch, (size, got) in zip(read, fed.batches(first, 5), strict=True):
            assert size == len(batch[0])
            assert all(map(torch.equal, batch, got))
