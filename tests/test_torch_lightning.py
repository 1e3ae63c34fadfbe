"""The hook of docs/torch.md in Lightning's loop: the trained batch is the one that the selector gives."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning")

from torch_selection import loss, make  # noqa: E402

from pysubmod.torch import PartitionSel  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def selector_of(validation):
    return PartitionSel(loss, eta=0.1, ratio=0.25, groups="domain", validation=validation, random_state=0)


class Selecting(lightning.LightningModule):
    def __init__(self, model, validation):
        super().__init__()
        self.model, self.selector, self.seen = model, selector_of(validation), []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return self.selector.select(self.model, batch).batch if self.trainer.training else batch

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["x"])
        return loss(self.model, batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_hook_of_lightning(tmp_path):
    model, pool, validation = make()
    pool["domain"] = torch.arange(24) % 3
    _, other, _ = make(seed=1)
    other["domain"] = torch.arange(24) % 3
    module = Selecting(model, validation)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=str(tmp_path), accumulate_grad_batches=2, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([pool, other], batch_size=None))
    reference, selector = make()[0], selector_of(validation)
    picked = [selector.select(reference, batch).batch["x"] for batch in (pool, other)]
    assert [len(x) for x in module.seen] == [6, 6]
    assert all(torch.equal(a, b) for a, b in zip(module.seen, picked, strict=True))
