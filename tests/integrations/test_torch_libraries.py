"""Libraries that train with PyTorch, inside `pyce.torch.patched()`: `make test-clients` runs this.

Each model is trained twice from the same state, and the losses agree to rounding.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pyce.torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(50, (16, 12), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in tokens]

    def losses():
        transformers.set_seed(0)
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=12, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=transformers.GPT2LMHeadModel(config),
            args=transformers.TrainingArguments(
                output_dir=str(tmp_path), max_steps=4, logging_steps=1, report_to=[],
                per_device_train_batch_size=4, save_strategy="no", use_cpu=True, disable_tqdm=True,
            ),
            train_dataset=rows,
        )  # fmt: skip
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]

    expected = losses()
    with pyce.torch.patched() as patch:
        found = losses()
    assert patch.calls == len(found) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def test_skorch():
    skorch = pytest.importorskip("skorch")
    x, y = data()

    def losses():
        torch.manual_seed(0)
        net = skorch.NeuralNetClassifier(
            torch.nn.Linear, module__in_features=6, module__out_features=3, max_epochs=3,
            criterion=torch.nn.CrossEntropyLoss, train_split=None, verbose=0, lr=0.1,
        )  # fmt: skip
        return net.fit(x.numpy(), y.numpy()).history[:, "train_loss"]

    expected = losses()
    with pyce.torch.patched() as patch:
        found = losses()
    assert patch.calls == len(found) == 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lightning():
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(6, 3)
            self.losses = []

        def training_step(self, batch, index):
            loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def losses():
        torch.manual_seed(0)
        model = Model()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), 8)
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, loader)
        return model.losses

    expected = losses()
    with pyce.torch.patched() as patch:
        found = losses()
    assert patch.calls == len(found) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-5)
