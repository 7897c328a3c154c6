"""Configuration files as data: read within bounds, and followed only as far as the user trusts who wrote them.

A run folder may come from somebody else. What its config.yaml names is neither imported nor called unless it belongs to
tiramisu, torch, Lightning, segmentation_models_pytorch or a package that registers an entry point, or the user names it
on the command line or gives ``--trust``. jsonargparse enforces the list of importable paths.
"""

import contextlib
import importlib
import importlib.metadata
import inspect
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from tiramisu.errors import ConfigError
from tiramisu.files import MIB, read_bounded

CONFIG_LIMIT = MIB  # a hundred times the configuration of a run
MAX_PROCESSES = 64  # that a received configuration may start
MAX_VALUES = 100_000  # that a configuration may stand for once its aliases are followed
ENTRY_POINTS = ("tiramisu.networks", "tiramisu.callbacks", "tiramisu.loggers")
REGISTERED = (
    "tiramisu.models", "tiramisu.training", "tiramisu.data", "torch.nn", "torch.optim", "segmentation_models_pytorch",
    *(f"lightning.pytorch.{part}" for part in (
        "callbacks", "loggers", "profilers", "strategies", "accelerators", "plugins",
    )),
    "lightning.fabric.loggers", "lightning.fabric.plugins", "lightning.fabric.strategies",
    "lightning.fabric.accelerators",
)  # fmt: skip
LOCAL_LOGGERS = ("TensorBoardLogger", "CSVLogger")  # the others send what they log to a server
FOLDER_OPTIONS = ("default_root_dir", "dirpath", "save_dir", "root_dir", "log_dir")
CLASS_OPTIONS = (
    "--model.network", *(f"--trainer.{name}" for name in (
        "callbacks", "logger", "strategy", "accelerator", "plugins", "profiler",
    )),
)  # fmt: skip
CONFIG_OPTIONS = ("--config", "-c", "--model", "--data", "--trainer", "--data.folder", *CLASS_OPTIONS)
DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")
NAME = re.compile(r"[\w.+-]+")


def read_configuration(path: Path) -> Any:
    """Read a YAML or JSON file as plain values.

    Raises:
        ConfigError: it is no configuration, larger than 1 MiB, or stands for more than 100,000 values, as nested
            aliases do.
        OSError: it cannot be read.
    """
    try:
        text = read_bounded(path, CONFIG_LIMIT).decode("utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _count(root, {}, ()) > MAX_VALUES:
            raise ConfigError(f"{path} stands for more than {MAX_VALUES:,} values; write it without nested aliases")
        values = yaml.safe_load(text)
        if isinstance(values, dict) and values.get("config") is not None:
            raise ConfigError(f"{path} names another configuration, config; write all options into one file")
        return values
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no configuration: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply for a configuration") from error


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return how many values a node stands for with its aliases followed."""
    if id(node) in above:
        raise ConfigError("a configuration must not contain itself")
    if id(node) not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_count(child, known, (*above, id(node))) for child in children)
    return known[id(node)]


def given_configurations(args: Sequence[str]) -> list[Path]:
    """Return the configuration files on a command line: of ``--config`` and of groups such as ``--model``."""
    return [
        path
        for option, value in _pairs(args)
        if option in CONFIG_OPTIONS and value and not value.startswith(("{", "[")) and (path := Path(value)).exists()
    ]


def _pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        option, equals, value = arg.partition("=")
        yield option.removesuffix("+"), value if equals else following


def check_bounds(args: Sequence[str]) -> None:
    """Read every configuration on a command line once, so that none that is hostile reaches a parser.

    Raises:
        ConfigError: see `read_configuration`.
    """
    for path in given_configurations(args):
        read_configuration(path)


@contextlib.contextmanager
def importable(args: Sequence[str], configurations: Mapping[Path, Any], trust: bool) -> Iterator[None]:
    """Let jsonargparse import what is registered and what the user names or trusts, and nothing else.

    Args:
        args: the command line; what it names may be imported.
        configurations: plain values of each file; what they name may be imported if they are trusted.
        trust: whether they are.

    Raises:
        ConfigError: something else was named.
    """
    named = set(_named_classes(args))
    if trust:
        named |= {name for values in configurations.values() for name in class_paths(values)}
    registered = {
        entry.value.replace(":", ".")
        for group in ENTRY_POINTS
        for entry in importlib.metadata.entry_points(group=group)
    }
    settings = jsonargparse.set_parsing_settings
    settings(instantiate_subclass_spec_in_any=False, import_path_denylist=["*"], import_path_allowlist=list(REGISTERED))
    # A class may be defined in another module than the one that exports it: its whole package may be imported.
    packages = {name.partition(".")[0] for name in named | registered}
    own = sorted(package for package in packages if not _is_fixed(package))
    if own:
        settings(import_path_allowlist=own)
    try:
        yield
    except Exception as error:
        refused = DENIED.search(str(error))
        if refused is None:
            raise
        name = refused[1]
        where = next(iter(_places(name, configurations)), "")
        if _is_fixed(name.partition(".")[0]) or name in named:
            known = "tiramisu, torch, Lightning, segmentation_models_pytorch or your own package"
            raise ConfigError(f"{where}{name} is not run: networks, callbacks and loggers are classes of {known}"
                              ) from error  # fmt: skip
        raise ConfigError(f"{where}{name} comes from another package and is not run because a configuration names it; "
                          f"if you trust who wrote it, add --trust or name it on the command line"
                          ) from error  # fmt: skip
    finally:
        if own:
            settings(import_path_denylist=own)


def _places(name: str, configurations: Mapping[Path, Any]) -> Iterator[str]:
    """Yield file and option of each place where configurations name a class."""
    for path, values in configurations.items():
        for option, value in _options(values, ""):
            if value == name:
                yield f"{path}: {option.lstrip('.')} "


def _named_classes(args: Sequence[str]) -> Iterator[str]:
    """Yield what could be the path of a class in the options of a command line that take one."""
    for option, value in _pairs(args):
        if option.startswith(CLASS_OPTIONS):
            yield from DOTTED.findall(value)


def _is_fixed(package: str) -> bool:
    """Tell whether the rules about a package do not depend on what the user names."""
    return package in sys.stdlib_module_names or package in (
        "jsonargparse",
        *(path.partition(".")[0] for path in REGISTERED),
    )


def class_paths(values: Any) -> Iterator[str]:
    """Yield every text in plain values that could be the path of a class."""
    if isinstance(values, dict):
        for value in values.values():
            yield from class_paths(value)
    elif isinstance(values, list):
        for value in values:
            yield from class_paths(value)
    elif isinstance(values, str) and DOTTED.fullmatch(values):
        yield values


def check_class(value: Any, base: type, option: str) -> None:
    """Check that a parsed value names a class of a kind, before anything calls it.

    Args:
        value: what jsonargparse made of the option: a namespace with `class_path`, or the thing itself.
        base: class that it must be derived from.
        option: its name.

    Raises:
        ConfigError: it names something else, such as a function.
    """
    found, name = value, f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
    if isinstance(value, jsonargparse.Namespace):
        name = str(value["class_path"])
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute, None)
    if not inspect.isclass(found) or not issubclass(found, base):
        raise ConfigError(f"{option} {name} is not a subclass of {base.__name__}; functions and other classes are not "
                          f"run")  # fmt: skip


def check_received(values: Any, run: Path) -> None:
    """Look through the configuration of a run that is resumed: it may come from somebody else.

    Args:
        values: of its config.yaml.
        run: its folder.

    Raises:
        ConfigError: it would write outside of the run's folder, send what it logs to a server, fetch a model from a
            hub, or read another configuration.
    """
    if not isinstance(values, dict):
        return
    remedy = "add --trust if you trust who wrote it"
    for key in ("model", "data", "trainer"):
        if isinstance(values.get(key), str):
            raise ConfigError(f"the configuration of {run} reads another one, {key}: {values[key]}; {remedy}")
    trainer = values.get("trainer")
    for name in ("devices", "num_nodes"):
        count = trainer.get(name) if isinstance(trainer, dict) else None
        if isinstance(count, int) and count > MAX_PROCESSES:
            raise ConfigError(f"the configuration of {run} starts {count} processes, trainer.{name}; {remedy}")
    for option, value in _options(trainer, "trainer"):
        if _leads_outside(option, value, run):
            raise ConfigError(f"the configuration of {run} would write outside of it, {option}: {value}; {remedy}")
        if option in ("trainer.logger", "trainer.logger.class_path"):
            name = value.rpartition(".")[2]
            if name.endswith("Logger") and name not in LOCAL_LOGGERS:
                raise ConfigError(f"the configuration of {run} sends what it logs elsewhere, {option}: {value}; "
                                  f"{remedy}")  # fmt: skip
    model = values.get("model")
    for option, value in _options(model.get("network") if isinstance(model, dict) else None, "model.network"):
        if option.rpartition(".")[2] in ("encoder", "encoder_name") and not NAME.fullmatch(value):
            raise ConfigError(f"the configuration of {run} fetches a model from a hub, {option}: {value}; {remedy}")


def _options(values: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield every text in plain values with its option."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _options(value, f"{name}.{key}")
    elif isinstance(values, list):
        for value in values:
            yield from _options(value, name)
    elif isinstance(values, str):
        yield name, values


def _leads_outside(option: str, value: str, run: Path) -> bool:
    if option.rpartition(".")[2] in FOLDER_OPTIONS:
        return "://" in value or not Path(value).expanduser().resolve().is_relative_to(run.resolve())
    return value.startswith(("/", "~")) or "://" in value or ".." in Path(value).parts
