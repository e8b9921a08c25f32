"""The plugin for Lightning, in Trainers that train: what is saved, kept, removed and resumed.

The cases of Lightning's own tests of its plugins are among them: that each is called as often as it
should, alone and wrapped, from a strategy and from `plugins`.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from contention import DEADLINE, ended, held

import genesis
from genesis.integrations.lightning import GenesisCheckpointIO

torch = pytest.importorskip("torch", reason="torch is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.fabric import Fabric
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel
    from lightning.pytorch.plugins.io.async_plugin import AsyncCheckpointIO
    from lightning.pytorch.strategies import SingleDeviceStrategy

pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning says of itself

both = pytest.mark.parametrize("background", [False, True])


class Net(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 32})

    def training_step(self, batch: Any, index: int) -> Any:
        out = super().training_step(batch, index)
        self.log("step_of_run", float(self.global_step))
        return out

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def trainer(folder: Path, *plugins: Any, epochs: int = 3, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        plugins=list(plugins) or None,
        max_epochs=epochs,
        limit_train_batches=2,
        limit_val_batches=0,
        limit_test_batches=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **options,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Calls(GenesisCheckpointIO):
    """Notes what the Trainer asks for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[str] = []

    def save_checkpoint(self, *args: Any, **options: Any) -> None:
        self.calls.append("save")
        super().save_checkpoint(*args, **options)

    def load_checkpoint(self, *args: Any, **options: Any) -> Any:
        self.calls.append("load")
        return super().load_checkpoint(*args, **options)

    def remove_checkpoint(self, *args: Any) -> None:
        self.calls.append("remove")
        super().remove_checkpoint(*args)


@both
def test_a_run_keeps_the_best_and_the_last(tmp_path: Path, background: bool) -> None:
    keep = ModelCheckpoint(
        tmp_path, save_top_k=2, save_last=True, monitor="step_of_run", mode="max"
    )
    net = Net()
    trainer(tmp_path, GenesisCheckpointIO(background=background), callbacks=keep).fit(net)
    assert names(tmp_path) == ["epoch=1-step=4.ckpt", "epoch=2-step=6.ckpt", "last.ckpt"]
    for path in tmp_path.iterdir():
        assert genesis.verify(path)
    assert keep.best_model_path == str(tmp_path / "epoch=2-step=6.ckpt")
    found = genesis.load(keep.last_model_path)
    assert found["global_step"] == 6
    assert found["hyper_parameters"] == {"width": 32}
    for name, value in net.state_dict().items():
        assert torch.equal(found["state_dict"][name], value)


@both
@pytest.mark.parametrize("which", ["last", "best"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    tmp_path: Path, background: bool, which: str
) -> None:
    def run(folder: Path, epochs: int, **options: Any) -> dict[str, Any]:
        lightning.seed_everything(1)
        net = Net()
        keep = ModelCheckpoint(folder, save_last=True, monitor="step_of_run", mode="max")
        plugin = GenesisCheckpointIO(background=background)
        runner = trainer(folder, plugin, epochs=epochs, callbacks=keep)
        if options.get("ckpt_path") == "best":  # Lightning knows the best of this Trainer alone
            options["ckpt_path"] = str(next(folder.glob("epoch=*.ckpt")))
        runner.fit(net, **options)
        assert runner.global_step == 2 * epochs
        runner.test(net, ckpt_path="best", verbose=False)
        return net.state_dict()

    undisturbed = run(tmp_path / "a", 4)
    run(tmp_path / "b", 2)
    resumed = run(tmp_path / "b", 4, ckpt_path=which)
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())


@both
@pytest.mark.parametrize("way", ["strategy", "plugins"])
def test_each_call_of_the_trainer_arrives(tmp_path: Path, background: bool, way: str) -> None:
    plugin = Calls(background=background)
    keep = ModelCheckpoint(tmp_path, save_last=True)
    if way == "strategy":
        strategy = SingleDeviceStrategy("cpu", checkpoint_io=plugin)
        runner = trainer(tmp_path, epochs=2, callbacks=keep, strategy=strategy)
    else:
        runner = trainer(tmp_path, plugin, epochs=2, callbacks=keep)
    runner.fit(Net())
    assert sorted(plugin.calls) == ["remove", *["save"] * 4]
    assert names(tmp_path) == ["epoch=1-step=4.ckpt", "last.ckpt"]
    runner.test(ckpt_path=keep.last_model_path, verbose=False)
    assert plugin.calls[-1] == "load"


def test_lightnings_wrapper_may_wrap_it(tmp_path: Path) -> None:
    plugin = Calls()
    keep = ModelCheckpoint(tmp_path, save_top_k=2, monitor="step", mode="max")
    runner = trainer(tmp_path, AsyncCheckpointIO(plugin), callbacks=keep)
    if hasattr(AsyncCheckpointIO, "_ensure_setup"):  # before 2.6 it can be used for one run alone
        runner.validate(Net(), verbose=False)
    runner.fit(Net())
    assert sorted(plugin.calls) == ["remove", "save", "save", "save"]
    assert names(tmp_path) == ["epoch=1-step=4.ckpt", "epoch=2-step=6.ckpt"]


def test_a_link_to_the_last_is_removed_alone(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, save_last="link")
    runner = trainer(tmp_path, GenesisCheckpointIO(), callbacks=keep)
    runner.fit(Net())
    assert (tmp_path / "last.ckpt").is_symlink()
    runner.strategy.remove_checkpoint(keep.last_model_path)
    assert names(tmp_path) == ["epoch=2-step=6.ckpt"]


def test_fabric_saves_and_loads(tmp_path: Path) -> None:
    plugin = GenesisCheckpointIO(background=True)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    model, optimizer = fabric.setup(net := torch.nn.Linear(2, 2), torch.optim.SGD(net.parameters()))
    expected = net.weight.detach().clone()
    fabric.save(tmp_path / "deep" / "a.ckpt", {"model": model, "o": optimizer, "step": 3})
    with torch.no_grad():
        net.weight.zero_()
    state = {"model": model, "o": optimizer, "step": 0}
    fabric.load(tmp_path / "deep" / "a.ckpt", state)
    assert state["step"] == 3
    assert torch.equal(net.weight, expected)


class Breaking(GenesisCheckpointIO):
    """Lets the background save of one epoch fail: its folder goes away while it is made."""

    def __init__(self, epoch: int) -> None:
        super().__init__(background=True)
        self._mark = f"epoch={epoch}"

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        folder = Path(path).parent
        if self._mark not in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        folder.mkdir()
        with held(folder):
            super().save_checkpoint(checkpoint, path, storage_options)
            shutil.rmtree(folder)
        ended(self._pending[-1])


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_failed_background_save_ends_the_run_and_costs_no_checkpoint(
    tmp_path: Path, epoch: int
) -> None:
    """At the next save, or where there is none at the end; the checkpoint before it stays."""
    plugin = Breaking(epoch)
    keep = ModelCheckpoint(tmp_path, "{epoch}/state", save_top_k=1, save_on_train_epoch_end=True)
    with pytest.raises(FileNotFoundError, match=f"epoch={epoch}"):
        trainer(tmp_path, plugin, callbacks=keep).fit(Net())
    plugin.teardown()  # and is not raised again
    genesis.flush(DEADLINE)
    assert genesis.verify(tmp_path / f"epoch={epoch - 1}" / "state.ckpt")


def test_a_failure_is_raised_by_the_next_save_which_is_made_all_the_same(tmp_path: Path) -> None:
    plugin = Breaking(1)
    plugin.save_checkpoint({"x": 0}, tmp_path / "epoch=1" / "f")
    with pytest.raises(FileNotFoundError, match="epoch=1"):
        plugin.save_checkpoint({"x": 1}, tmp_path / "f")
    plugin.teardown()
    assert genesis.load(tmp_path / "f") == {"x": 1}


def test_the_old_checkpoint_goes_when_the_new_one_is_durable(tmp_path: Path) -> None:
    plugin = GenesisCheckpointIO(background=True)
    old, new = tmp_path / "old" / "f", tmp_path / "new" / "f"
    plugin.save_checkpoint({"x": 0}, old)
    plugin.teardown()
    new.parent.mkdir()
    with held(new.parent):
        plugin.save_checkpoint({"x": 1}, new)
        plugin.remove_checkpoint(old)
        assert genesis.verify(old)
    plugin.teardown()
    assert not old.exists()
    assert genesis.load(new) == {"x": 1}


def test_what_is_saved_again_is_not_removed_afterwards(tmp_path: Path) -> None:
    plugin = GenesisCheckpointIO(background=True)
    path, other = tmp_path / "f", tmp_path / "other" / "f"
    other.parent.mkdir()
    with held(other.parent):
        plugin.save_checkpoint({"x": 0}, other)
        plugin.remove_checkpoint(path)
        plugin.save_checkpoint({"x": 1}, path)
    plugin.teardown()
    assert genesis.load(path) == {"x": 1}


def test_a_removal_waits_for_the_save_of_its_path(tmp_path: Path) -> None:
    plugin = GenesisCheckpointIO(background=True)
    with held(tmp_path):
        plugin.save_checkpoint({"x": 0}, tmp_path / "f")
        plugin.remove_checkpoint(tmp_path / "f")
    plugin.teardown()
    assert names(tmp_path) == []
    plugin.remove_checkpoint(tmp_path / "f")  # as Lightning's own, no error


def test_a_folder_of_another_plugin_is_removed(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt" / "deep").mkdir(parents=True)
    GenesisCheckpointIO().remove_checkpoint(tmp_path / "old.ckpt")
    assert names(tmp_path) == []


def test_a_run_goes_on_from_what_torch_save_wrote(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{epoch}")
    trainer(tmp_path, epochs=1, callbacks=keep).fit(Net())
    runner = trainer(tmp_path, GenesisCheckpointIO(), epochs=2)
    runner.fit(Net(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert runner.global_step == 4
    (tmp_path / "text.ckpt").write_text("{}")
    with pytest.raises(genesis.NotACheckpointError, match="text"):
        GenesisCheckpointIO().load_checkpoint(tmp_path / "text.ckpt")


class Odd:
    pass


def test_loads_build_plain_data_only_unless_they_are_told_otherwise(tmp_path: Path) -> None:
    genesis.save({"odd": Odd(), "x": torch.ones(2)}, path := tmp_path / "f", clear=False)
    plugin = GenesisCheckpointIO()
    with pytest.raises(genesis.UnsafeLoadError, match="Odd"):
        plugin.load_checkpoint(path)
    assert type(plugin.load_checkpoint(path, weights_only=False)["odd"]) is Odd
    assert type(GenesisCheckpointIO(weights_only=False).load_checkpoint(path)["odd"]) is Odd
    found = plugin.load_checkpoint(path, map_location="meta", weights_only=False)
    assert found["x"].is_meta
    with pytest.raises(FileNotFoundError, match="missing"):
        plugin.load_checkpoint(tmp_path / "missing")


def test_options_for_storage_are_refused(tmp_path: Path) -> None:
    runner = trainer(tmp_path, GenesisCheckpointIO(), epochs=1)
    runner.fit(Net())
    with pytest.raises(TypeError, match="storage_options"):
        runner.save_checkpoint(tmp_path / "f", storage_options={"a": 1})
    with pytest.raises(ValueError, match="URL"):
        runner.save_checkpoint("memory://f")


def test_the_other_name_of_lightning_takes_the_plugin_too() -> None:
    other = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    plugin = GenesisCheckpointIO()
    runner = other.Trainer(accelerator="cpu", logger=False, plugins=[plugin])
    assert runner.strategy.checkpoint_io is plugin
