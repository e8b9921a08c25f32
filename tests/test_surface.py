"""The public surface, written down: names, signatures, docstrings and errors. Whoever changes one
of them changes this file.

What importing costs and what the types say is in test_packaging; that the README's programs run, in
test_readme.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import dataclasses
import inspect
import pickle
import pickletools
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from optional import needs_torch

import genesis
import genesis.aio
from genesis import _options

SAVE_OPTIONS = (
    "clear=None, capture='copy', on_busy='wait', metadata=None, sharded='refuse', progress=False"
)
LOAD_OPTIONS = (
    "verify=None, mmap=False, weights_only=False, map_location=None, only=None, progress=False"
)
CALLS = {
    "add_safe_globals": "(objects)",
    "configure": "(*, threads=None, max_pending_bytes=None, keep_arenas=None, keep_seconds=None)",
    "diff": "(one, other, *, weights_only=True)",
    "flush": "(timeout=None)",
    "inspect": "(file_path)",
    "load": f"(file_path, *, {LOAD_OPTIONS})",
    "load_checkpoint": f"(file_path, *, {LOAD_OPTIONS})",
    "load_into": "(file_path, into, *, part=None, weights_only=False, assign=False)",
    "load_metadata": "(file_path)",
    "prewarm": "(state_dict)",
    "release_memory": "()",
    "remove": "(file_path, *, missing_ok=False)",
    "safe_globals": "(objects)",
    "safe_load_checkpoint": "(file_path, model, optimizer=None, *, weights_only=False)",
    "save": f"(state_dict, file_path, *, background=False, {SAVE_OPTIONS})",
    "save_checkpoint": (
        f"(model_state_dict, optimizer_state_dict, file_path, *, background=False, {SAVE_OPTIONS})"
    ),
    "statistics": "()",
    "validate_checkpoint": "(file_path)",
    "verify": "(file_path)",
}
AIO_CALLS = {
    "diff": CALLS["diff"],
    "flush": CALLS["flush"],
    "inspect": CALLS["inspect"],
    "load": CALLS["load"],
    "load_async": CALLS["load"],
    "load_checkpoint": CALLS["load_checkpoint"],
    "load_into": CALLS["load_into"],
    "load_metadata": CALLS["load_metadata"],
    "prewarm": CALLS["prewarm"],
    "remove": CALLS["remove"],
    "safe_load_checkpoint": CALLS["safe_load_checkpoint"],
    "save": CALLS["save"].replace("background=False, ", ""),
    "save_async": CALLS["save"].replace("background=False, ", ""),
    "save_checkpoint": CALLS["save_checkpoint"].replace("background=False, ", ""),
    "stream": "(file_path, *, chunk_size=1048576)",
    "validate_checkpoint": CALLS["validate_checkpoint"],
    "verify": CALLS["verify"],
}
MANAGER = {
    "__init__": (
        "(self, checkpoint_dir, max_checkpoints=5, *, keep=None, metric='loss', mode='min', "
        "name='epoch_{step:06d}.pth', every_steps=None, every_seconds=None, when=None, links=False)"
    ),
    "all": "(self)",
    "best": "(self)",
    "checkpoints": "(self)",
    "due": "(self, step)",
    "flush": "(self, timeout=None)",
    "latest": "(self)",
    "preemption": "(self, signals=(<Signals.SIGTERM: 15>,), *, grace=None)",
    "restore": f"(self, step='latest', into=None, *, {LOAD_OPTIONS})",
    "resume": f"(self, state, *, {LOAD_OPTIONS})",
    "save": f"(self, step, state, *, metrics=None, background=False, {SAVE_OPTIONS})",
    "save_checkpoint": (
        f"(self, model, optimizer, epoch, loss, *, background=False, {SAVE_OPTIONS})"
    ),
    "steps": "(self)",
    "watch": "(self, timeout=None, *, poll=1.0)",
}
FUTURE = {
    "result": "(self, timeout=None)",
    "exception": "(self, timeout=None)",
    "wait_captured": "(self, timeout=None)",
}
ERRORS = {
    "GenesisError": Exception,
    "CorruptCheckpointError": pickle.UnpicklingError,
    "ChecksumError": genesis.CorruptCheckpointError,
    "NewerFormatError": genesis.CorruptCheckpointError,
    "NotACheckpointError": genesis.CorruptCheckpointError,
    "RebuildError": genesis.CorruptCheckpointError,
    "TruncatedError": genesis.CorruptCheckpointError,
    "UnsafeLoadError": genesis.CorruptCheckpointError,
    "UnpicklableStateError": pickle.PicklingError,
    "DurabilityUnknownError": OSError,
}
CLASSES = {
    *("ArrayRow", "Change", "CheckpointManager", "Contents", "Difference", "Report"),
    *("ResumableLoader", "SaveFuture", "SaveReport", "Statistics", "TrainState"),
}


def signature(call: Any) -> str:
    """A signature without its types, which are mypy's business."""
    found = inspect.signature(call)
    bare = [each.replace(annotation=each.empty) for each in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=found.empty))


def test_the_names_of_genesis() -> None:
    warning = {"RecoveredFromBackupWarning", "PrecisionWarning"}
    assert set(genesis.__all__) == {*CALLS, *ERRORS, *CLASSES, *warning, "__version__"}
    assert genesis.__all__ == sorted(genesis.__all__)


def test_the_names_of_aio() -> None:
    assert set(genesis.aio.__all__) == {*AIO_CALLS, "CheckpointManager"}
    assert genesis.aio.__all__ == sorted(genesis.aio.__all__)


@pytest.mark.parametrize("module", [genesis, genesis.aio], ids=["genesis", "aio"])
def test_nothing_but_submodules_is_public_beside_all(module: types.ModuleType) -> None:
    public = {name for name in vars(module) if not name.startswith("_")}
    others = public - set(module.__all__)
    assert all(inspect.ismodule(getattr(module, name)) for name in others), others
    assert others <= {
        "aio", "cli", "data", "integrations", "manager", "nn", "optim", "retention", "state",
        "storage",
        "testing",
    }  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_signature_of_a_call(name: str) -> None:
    assert signature(getattr(genesis, name)) == CALLS[name]


@pytest.mark.parametrize("name", AIO_CALLS)
def test_the_signature_of_an_awaitable_call(name: str) -> None:
    call = getattr(genesis.aio, name)
    assert signature(call) == AIO_CALLS[name]
    is_stream = name == "stream"
    assert inspect.iscoroutinefunction(call) is not is_stream


@pytest.mark.parametrize("name", MANAGER)
def test_the_signature_of_the_manager(name: str) -> None:
    assert signature(getattr(genesis.CheckpointManager, name)) == MANAGER[name]
    twin = signature(getattr(genesis.aio.CheckpointManager, name))
    assert twin == MANAGER[name].replace("background=False, ", "")


def test_the_future_shows_nothing_but_what_a_caller_needs() -> None:
    inherited = set(dir(concurrent.futures.Future))
    public = {name for name in dir(genesis.SaveFuture("f")) if not name.startswith("_")}
    assert public - inherited == {"captured", "path", "progress", "wait_captured"}


@pytest.mark.parametrize("name", FUTURE)
def test_the_signature_of_the_future(name: str) -> None:
    assert signature(getattr(genesis.SaveFuture, name)) == FUTURE[name]


def test_the_fields_of_the_report() -> None:
    report = genesis.SaveReport("a.pth")
    fields = ["path", "bytes", "outcome", "stall", "capture", "wait", "write", "sync"]
    assert list(genesis.SaveReport.__dataclass_fields__) == fields
    assert (report.outcome, report.bytes, report.throughput) == ("durable", 0, 0.0)
    with pytest.raises(AttributeError, match="cannot assign"):
        report.bytes = 5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(report)) == report


def documented() -> Iterator[tuple[str, object]]:
    """Everything that a user may call or catch, by name."""
    for module in (genesis, genesis.aio):
        yield module.__name__, module
        for name in module.__all__:
            thing = getattr(module, name)
            if name == "__version__":
                continue
            yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing):
                yield from _members(f"{module.__name__}.{name}", thing)


def _members(name: str, cls: type) -> Iterator[tuple[str, object]]:
    for member, value in vars(cls).items():
        if not member.startswith("_") and (
            inspect.isfunction(value) or isinstance(value, property)
        ):
            yield f"{name}.{member}", value


DOCUMENTED = dict(documented())


@pytest.mark.parametrize("name", DOCUMENTED)
def test_everything_public_has_a_docstring(name: str) -> None:
    text = DOCUMENTED[name].__doc__ or ""
    assert len(text.split()) >= 3
    assert text[0].isupper() or text[0] in "`g"
    assert "." in text


@pytest.mark.parametrize("name", CALLS)
def test_a_docstring_names_every_argument_or_refers_to_the_call_that_does(name: str) -> None:
    text = getattr(genesis, name).__doc__
    arguments = inspect.signature(getattr(genesis, name)).parameters
    missing = [argument for argument in arguments if argument not in text]
    assert "Args:" not in text or missing == []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_parameter_and_result_has_a_type(name: str) -> None:
    thing = DOCUMENTED[name]
    if not inspect.isfunction(thing):
        return
    found = inspect.signature(thing)
    bare = [each.name for each in found.parameters.values() if each.annotation is each.empty]
    assert set(bare) <= {"self"}
    assert found.return_annotation is not found.empty


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ERRORS)
def test_where_an_error_stands(name: str) -> None:
    error = getattr(genesis, name)
    assert issubclass(error, genesis.GenesisError)
    assert issubclass(error, ERRORS[name])
    assert error.__module__ == "genesis"


def test_the_warning_is_one_of_the_user() -> None:
    assert issubclass(genesis.RecoveredFromBackupWarning, UserWarning)


MADE = [
    genesis.ChecksumError("a.pth", "a byte changed", 5),
    genesis.TruncatedError("a.pth", "it ends early"),
    genesis.NewerFormatError("a.pth", "version 7", 1 << 40),
    genesis.NotACheckpointError("a.pth", "text", 0, "look elsewhere"),
    genesis.UnsafeLoadError("a.pth", "os.system", 3, refused=("os.system",)),
    genesis.UnpicklableStateError("['a'][0]", "a generator"),
    genesis.DurabilityUnknownError("a.pth", "the directory could not be synced"),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_can_be_sent_to_another_process(error: Exception) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_says_what_was_wrong_and_what_to_do(error: Any) -> None:
    assert error.problem in str(error)
    assert ";" in str(error)
    if isinstance(error, genesis.CorruptCheckpointError):
        assert str(error).startswith("a.pth: ")
        assert str(error).endswith(error.hint)
        assert (error.offset is not None) is (f"at byte {error.offset or 0:,}" in str(error))


# --- The module -----------------------------------------------------------------------------------


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'genesis' has no attribute 'dump'"):
        genesis.dump  # noqa: B018


def test_aio_is_there_after_a_plain_import() -> None:
    assert genesis.__getattr__("aio") is genesis.aio


def test_help_opens_with_what_a_user_does() -> None:
    assert genesis.__doc__ is not None
    assert "genesis.save(state, " in genesis.__doc__[:200]
    assert "_pickling" not in genesis.__doc__


def test_aio_is_listed() -> None:
    assert "aio" in dir(genesis)
    assert set(genesis.__all__) <= set(dir(genesis))


@pytest.mark.parametrize("module", [genesis, genesis.aio], ids=["genesis", "aio"])
def test_a_public_object_says_where_users_find_it(module: types.ModuleType) -> None:
    things = [getattr(module, name) for name in module.__all__ if name != "__version__"]
    assert {thing.__module__ for thing in things} == {module.__name__}


def test_a_pickle_of_a_public_object_names_no_private_module() -> None:
    for thing in (genesis.SaveReport("a.pth"), *MADE, genesis.SaveFuture, genesis.aio.save):
        names = [
            argument
            for _opcode, argument, _place in pickletools.genops(pickle.dumps(thing))
            if isinstance(argument, str) and argument.startswith("genesis")
        ]
        assert names[:1] in (["genesis"], ["genesis.aio"]), thing


def test_the_types_of_a_report_can_be_looked_up() -> None:
    hints = get_type_hints(genesis.SaveReport)
    assert get_args(hints["outcome"]) == ("durable", "skipped", "superseded")


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "options"),
    [(_options.SaveChoices, _options.SaveOptions), (_options.LoadChoices, _options.LoadOptions)],
    ids=["save", "load"],
)
def test_the_options_are_the_same_for_mypy_and_when_they_run(choices: Any, options: Any) -> None:
    types_of = {field.name: field.type for field in dataclasses.fields(choices)}
    assert types_of == {
        name: hint.__forward_arg__ for name, hint in options.__annotations__.items()
    }


@pytest.mark.parametrize("name", ["load", "load_checkpoint", "save", "save_checkpoint"])
def test_an_unknown_option_is_refused_with_those_that_are_known(name: str, path: Path) -> None:
    arguments = [{}] * name.count("save") + [{}] * (name == "save_checkpoint") + [path]
    with pytest.raises(TypeError, match="unexpected keyword argument 'cleer'; the options are"):
        getattr(genesis, name)(*arguments, cleer=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'cleer'; the options are"):
        asyncio.run(getattr(genesis.aio, name)(*arguments, cleer=False))


class Stateful:
    def state_dict(self) -> dict[str, int]:
        return {"a": 1}


def every_option(**changed: Any) -> dict[str, Any]:
    return {"clear": False, "capture": "deferred", "on_busy": "supersede", "metadata": {"run": 3},
            "sharded": "allow", "progress": lambda done, total: None, **changed}  # fmt: skip


def test_the_manager_and_aio_take_every_option(path: Path) -> None:
    assert set(every_option()) == set(_options.SaveOptions.__annotations__)
    manager, twin = genesis.CheckpointManager(path), genesis.aio.CheckpointManager(path)
    thing = Stateful()
    manager.save_checkpoint(thing, thing, 1, 0.5, **every_option())
    manager.save_checkpoint(thing, thing, 2, 0.5, background=True, **every_option()).result()
    asyncio.run(twin.save_checkpoint(thing, thing, 3, 0.5, **every_option()))
    for saved in manager.checkpoints().values():
        assert genesis.load_metadata(saved) == {"run": 3}
    for name in ("capture", "on_busy", "sharded"):
        with pytest.raises(ValueError, match=f"{name} must be one of '"):
            manager.save_checkpoint(thing, thing, 4, 0.5, **every_option(**{name: "x"}))
        with pytest.raises(ValueError, match=f"{name} must be one of '"):
            asyncio.run(twin.save_checkpoint(thing, thing, 4, 0.5, **every_option(**{name: "x"})))


# --- torch's modules ------------------------------------------------------------------------------


def program(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_torch
def test_nn_and_optim_are_those_of_torch() -> None:
    program(
        "import genesis, sys\n"
        "assert 'torch' not in sys.modules\n"
        "import genesis.nn as nn, genesis.optim as optim\n"
        "import genesis.nn.functional as F\n"
        "from genesis.optim.lr_scheduler import StepLR\n"
        "import torch\n"
        "assert nn.Linear is torch.nn.Linear is genesis.nn.Linear\n"
        "assert F is torch.nn.functional is nn.functional\n"
        "assert optim.Adam is torch.optim.Adam and StepLR is torch.optim.lr_scheduler.StepLR\n"
        "assert 'Linear' in dir(nn) and 'Adam' in dir(optim)\n"
    )
    program("import genesis, sys; assert genesis.nn.Linear.__module__.startswith('torch.')")


@pytest.mark.parametrize("name", ["nn", "optim"])
def test_without_torch_nn_and_optim_say_what_to_install(name: str) -> None:
    program(
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import genesis\n"
        "dir(genesis)\n"
        f"for attempt in (lambda: __import__('genesis.{name}'), lambda: genesis.{name}):\n"
        "    try:\n"
        "        attempt()\n"
        "    except ModuleNotFoundError as exc:\n"
        f"        assert 'genesis.{name} is torch.{name}' in str(exc), exc\n"
        "        assert 'pip install torch' in str(exc), exc\n"
        "    else:\n"
        "        raise AssertionError\n"
    )


def test_the_version_is_one() -> None:
    major, minor, patch = genesis.__version__.split(".")
    assert all(part.isdigit() for part in (major, minor, patch))


def test_safe_globals_take_classes_and_functions() -> None:
    genesis.add_safe_globals([])
    with pytest.raises(TypeError, match="5 is no class, no function"):
        genesis.add_safe_globals([5])  # type: ignore[list-item]
