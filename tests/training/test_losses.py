import pytest
import torch
import torch.nn.functional as F

from tiramisu.data import CamVid
from tiramisu.errors import ConfigError
from tiramisu.training.losses import SegmentationLoss

VOID = CamVid.labels.ignore_index
VARIATIONS = [
    {},
    {"label_smoothing": 0.1},
    {"class_weights": [float(i + 1) for i in range(11)]},
    {"region_loss": "lovasz"},
    {"region_loss": "dice"},
    {"region_loss": "dice", "label_smoothing": 0.1, "class_weights": [2.0] * 11},
]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 11, 12, 14, generator=generator)
    target = torch.randint(0, 12, (2, 12, 14), generator=generator)
    assert (target == VOID).any()
    return logits, target


@pytest.mark.parametrize("options", VARIATIONS)
def test_predictions_under_void_change_nothing(batch, options) -> None:
    logits, target = batch
    loss = SegmentationLoss(CamVid.labels, **options)
    changed = torch.where((target == VOID)[:, None], torch.randn_like(logits) * 50, logits)
    assert torch.equal(loss(changed, target), loss(logits, target))
    logits.requires_grad_()
    loss(logits, target).backward()
    void = (target == VOID)[:, None].expand_as(logits)
    assert not logits.grad[void].any()
    assert logits.grad[~void].any()


@pytest.mark.parametrize("options", VARIATIONS)
def test_a_batch_of_void_has_loss_and_gradient_zero(batch, options) -> None:
    logits = batch[0].requires_grad_()
    value = SegmentationLoss(CamVid.labels, **options)(logits, torch.full_like(batch[1], VOID))
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


def test_plain_loss_is_cross_entropy_over_the_labelled_pixels(batch) -> None:
    logits, target = batch
    labelled = target != VOID
    per_pixel = -F.log_softmax(logits, 1).gather(1, target.clamp(max=10)[:, None])[:, 0]
    expected = per_pixel[labelled].mean()
    torch.testing.assert_close(SegmentationLoss(CamVid.labels)(logits, target), expected)


@pytest.mark.parametrize("region", ["lovasz", "dice"])
def test_region_losses_vanish_for_perfect_predictions(batch, region: str) -> None:
    target = batch[1]
    perfect = F.one_hot(target.clamp(max=10), 11).permute(0, 3, 1, 2) * 100.0
    assert SegmentationLoss(CamVid.labels, region_loss=region)(perfect, target) == pytest.approx(0, abs=1e-5)


def test_bfloat16_logits_are_summed_in_float32(batch) -> None:
    logits, target = batch
    loss = SegmentationLoss(CamVid.labels)
    assert loss(logits.bfloat16(), target).dtype == torch.float32


def test_the_number_of_class_weights_must_fit() -> None:
    with pytest.raises(ConfigError, match="3 values, but there are 11 classes"):
        SegmentationLoss(CamVid.labels, class_weights=[1.0, 2.0, 3.0])
