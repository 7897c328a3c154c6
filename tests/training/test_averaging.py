import lightning as L
import torch
from torch import nn

from tiramisu.training.averaging import WarmupEMA


class Drift(L.LightningModule):
    """A parameter that grows by one each step, and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm1d(1)
        self.seen: list[tuple[float, float]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.norm(batch)
        return -self.value.sum()

    def on_train_batch_end(self, *_) -> None:
        self.seen.append((self.value.item(), self.norm.running_mean.item()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.value], lr=1.0)


def test_average_of_weights_and_batch_norm_statistics_follows_the_formula(tmp_path) -> None:
    module, data = Drift(), torch.arange(40.0).view(10, 4, 1)
    L.Trainer(
        max_epochs=1, callbacks=[WarmupEMA(0.9)], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, accelerator="cpu",
    ).fit(module, torch.utils.data.DataLoader(data, batch_size=None))  # fmt: skip
    value, mean = module.seen[0]
    for number, (next_value, next_mean) in enumerate(module.seen[1:], start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        value, mean = decay * value + (1 - decay) * next_value, decay * mean + (1 - decay) * next_mean
    torch.testing.assert_close(module.value.item(), value)
    torch.testing.assert_close(module.norm.running_mean.item(), mean)
    assert module.norm.num_batches_tracked == 10
