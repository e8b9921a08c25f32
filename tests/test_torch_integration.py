"""A plain PyTorch loop: the optimizer that waits for a capture, and names without wrappers."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

import genesis

torch = pytest.importorskip("torch", reason="torch is not installed")

from genesis._file import writer  # noqa: E402
from genesis.integrations.torch import attach, portable  # noqa: E402

LARGE = 40_000
"""Elements of a tensor that a deferred capture leaves to the writer."""


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(LARGE))
        self.register_buffer("seen", torch.zeros(LARGE))

    def forward(self, x: Any) -> Any:
        self.seen += 1
        return (self.weight * x).sum()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keeps every writer from copying what a deferred capture left, until it is set."""
    go = threading.Event()
    inner = writer.stage_rest

    def waiting(*args: Any, **keywords: Any) -> None:
        assert go.wait(60)
        inner(*args, **keywords)

    monkeypatch.setattr(writer, "stage_rest", waiting)
    yield go
    go.set()
    genesis.flush()


def sgd(model: Any) -> Any:
    return torch.optim.SGD(model.parameters(), lr=1.0)


def adam(**options: Any) -> Any:
    return lambda model: torch.optim.Adam(model.parameters(), lr=1.0, **options)


def scaled(model: Any) -> Any:
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu")
    inner = optimizer.step
    optimizer.scaled_step = lambda: (scaler.scale(torch.ones(())), scaler.step(optimizer))
    assert inner is not None
    return optimizer


def compiled(model: Any) -> Any:
    optimizer = sgd(model)
    step = optimizer.step
    optimizer.scaled_step = torch.compile(lambda: step(), backend="eager")
    return optimizer


@pytest.mark.filterwarnings("ignore")  # what torch's compiler says of itself
@pytest.mark.parametrize(
    "make",
    [sgd, adam(foreach=True), adam(fused=True), scaled, compiled],
    ids=["plain", "foreach", "fused", "scaler", "compiled"],
)
def test_a_step_waits_for_the_capture(tmp_path: Path, held: Any, make: Any) -> None:
    model = Net()
    optimizer = make(model)
    attach(optimizer, model)
    model(torch.ones(LARGE)).backward()
    future = genesis.save(model.state_dict(), tmp_path / "f", background=True, capture="deferred")
    stepping = threading.Thread(target=getattr(optimizer, "scaled_step", optimizer.step))
    stepping.start()
    stepping.join(0.2)
    assert stepping.is_alive()
    assert not future.captured
    held.set()
    stepping.join(60)
    assert (model.weight != 0).all()
    future.result()
    assert (genesis.load(tmp_path / "f")["weight"] == 0).all()


def test_buffers_of_the_forward_pass_are_copied_at_the_call(tmp_path: Path, held: Any) -> None:
    model = Net()
    attach(sgd(model), model)
    model(torch.ones(LARGE))
    future = genesis.save(model.state_dict(), tmp_path / "f", background=True, capture="deferred")
    model(torch.ones(LARGE))
    assert not future.captured
    held.set()
    future.result()
    assert (genesis.load(tmp_path / "f")["seen"] == 1).all()


def test_detached_it_waits_no_more(tmp_path: Path, held: Any) -> None:
    model = Net()
    optimizer = sgd(model)
    attached = attach(optimizer, model)
    attached.detach()
    attached.detach()
    model(torch.ones(LARGE)).backward()
    genesis.save({"w": model.weight}, tmp_path / "f", background=True, capture="deferred")
    optimizer.step()  # would wait for ever


def test_a_save_that_failed_is_no_error_of_a_step(tmp_path: Path) -> None:
    model = Net()
    optimizer = sgd(model)
    attach(optimizer)
    (tmp_path / "f").mkdir()
    future = genesis.save({"w": model.weight}, tmp_path / "f", background=True, capture="deferred")
    optimizer.step()
    with pytest.raises(IsADirectoryError):
        future.result()


def test_it_keeps_neither_model_nor_optimizer() -> None:
    model = Net()
    optimizer = sgd(model)
    attach(optimizer, model)
    gone = [weakref.ref(model), weakref.ref(optimizer)]
    del model, optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert not genesis._engine.scheduler.scheduler.changing


def test_what_is_no_optimizer_or_model_is_refused() -> None:
    model = Net()
    with pytest.raises(TypeError, match="attach takes an optimizer first, not a Net"):
        attach(model)
    with pytest.raises(TypeError, match="attach takes modules of torch, not a OrderedDict"):
        attach(sgd(model), model.state_dict())
    with pytest.raises(TypeError, match="portable takes a module of torch, not a dict"):
        portable({})


def bare() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def part_compiled() -> Any:
    model = bare()
    model[0] = torch.compile(model[0], backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: torch.compile(bare(), backend="eager"),
        part_compiled,
        lambda: torch.nn.DataParallel(bare()),
    ],
    ids=["compiled", "part", "data parallel"],
)
def test_names_are_those_of_the_bare_model(tmp_path: Path, wrap: Any) -> None:
    wrapped, plain = wrap(), bare()
    assert set(wrapped.state_dict()) != set(plain.state_dict())
    state = genesis.TrainState(model=portable(wrapped))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.add_(1)
    genesis.save(state.state_dict(), tmp_path / "f")
    genesis.TrainState(model=plain).load_state_dict(genesis.load(tmp_path / "f"))
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one, other)
    genesis.save(genesis.TrainState(model=bare()).state_dict(), tmp_path / "g")
    state.load_state_dict(genesis.load(tmp_path / "g"))
    for one, other in zip(bare().parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_meta_model_gets_the_tensors_of_the_file(tmp_path: Path) -> None:
    model = bare()
    genesis.save_checkpoint(model.state_dict(), {}, tmp_path / "f")
    with torch.device("meta"):
        empty = bare()
    with pytest.raises(ValueError, match="assign=True"):
        genesis.load_into(tmp_path / "f", empty)
    genesis.load_into(tmp_path / "f", empty, assign=True)
    x = torch.randn(5, 3)
    assert torch.equal(empty.eval()(x), model.eval()(x))
    assert all(parameter.requires_grad for parameter in empty.parameters())
    empty(x).sum().backward()
    torch.optim.SGD(empty.parameters(), lr=1.0).step()
    assert torch.equal(
        genesis.load(tmp_path / "f", only="*/0.weight")["model_state_dict"]["0.weight"],
        model[0].weight,
    )


def test_assign_refuses_what_does_not_fit(tmp_path: Path) -> None:
    genesis.save_checkpoint(bare().state_dict(), {}, tmp_path / "f")
    with torch.device("meta"):
        other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"0\.weight is float32 of \(4, 4\), in the file"):
        genesis.load_into(tmp_path / "f", other, assign=True)
    assert all(parameter.is_meta for parameter in other.parameters())
    with pytest.raises(TypeError, match="assign=True is for a module"):
        genesis.load_into(tmp_path / "f", {"a": torch.zeros(2)}, assign=True)
