"""What the commands share: errors in one line, and where the shipped configurations are."""

import argparse
import functools
import itertools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from tiramisu.allocator import keep_large_tensors
from tiramisu.configuration import check_bounds
from tiramisu.errors import TiramisuError

Main = Callable[..., None]

YES_NO = ("true", "false")  # values of a flag, see `with_flags`
FAILURE = 1
USAGE = 2


def command(name: str) -> Callable[[Main], Main]:
    """Decorate a command's main: what a user can mend is reported in one line, without a traceback.

    The process is also set up to reuse the memory of large tensors.

    Args:
        name: of the command, as the user typed it.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def wrapper(args: Sequence[str] | None = None) -> None:
            keep_large_tensors()
            try:
                main(args)
            except argparse.ArgumentError as error:
                fail(name, error, USAGE)
            except (TiramisuError, OSError) as error:
                fail(name, error, FAILURE)
            except KeyboardInterrupt:
                print(f"{name}: interrupted", file=sys.stderr)
                raise SystemExit(130) from None

        return wrapper

    return decorate


def run_function(
    function: Callable[..., Any] | dict[str, Callable[..., Any]],
    name: str,
    description: str | None,
    args: Sequence[str] | None,
    positional: bool = False,
) -> None:
    """Run a function (or one of several, as subcommands) with options made from its signature and docstring.

    Args:
        function: to run.
        name: module of the command, for usage messages.
        description: of the command.
        args: the command line; default: the process's.
        positional: whether parameters without a default are positional.
    """
    given = underscored(sys.argv[1:] if args is None else args)
    check_bounds(given)
    jsonargparse.auto_cli(
        function,
        args=given,
        as_positional=positional,
        exit_on_error=False,
        prog=f"python -m {name}",
        description=description,
    )


def underscored(args: Sequence[str]) -> list[str]:
    """Let options be written with hyphens, as most programs have them: --base-url is --base_url."""
    result = []
    for arg in args:
        option, equals, value = arg.partition("=")
        if option.startswith("--"):
            option = "--" + option[2:].replace("-", "_")
        result.append(option + equals + value)
    return result


def with_flags(args: Sequence[str], flags: Mapping[str, Sequence[str]]) -> list[str]:
    """Let options be given without a value.

    Args:
        args: the command line.
        flags: the values of each such option; the first is taken where none of them follows.
    """
    result = []
    for arg, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        values = flags.get(arg.removeprefix("--"), ()) if arg.startswith("--") else ()
        result.append(f"{arg}={values[0]}" if values and following not in values else arg)
    return result


def with_lists(args: Sequence[str], names: Collection[str]) -> list[str]:
    """Let options that take a list be written as --name a,b or --name=a,b."""
    result: list[str] = []
    for arg in args:
        if result and result[-1].removeprefix("--") in names:
            arg = f"{result.pop()}={arg}"
        option, equals, value = arg.partition("=")
        is_list = equals and option.removeprefix("--") in names and not value.startswith("[")
        result.append(f"{option}=[{value}]" if is_list else arg)
    return result


def fail(name: str, error: Exception, code: int) -> None:
    """Print an error in one line and exit."""
    print(f"{name}: error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(code) from None


def one_line(error: Exception) -> str:
    """Say what an exception means in one line.

    An error from a data loader's worker arrives with the worker's traceback as its message; the last line is the
    original message. jsonargparse explains over several lines, in Python's words; they are joined and put into others.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror is not None:
        return f"cannot write the output: {error.strerror}"
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    if any("Traceback (most recent call last)" in line for line in lines):
        return re.sub(r"^[\w.]+: ", "", lines[-1])
    return re.sub(r"\ba typing\.Literal\[([^]]*)\]", r"one of \1", " ".join(lines))


def shipped_config(name: str) -> Path:
    """Return the path of a configuration that comes with tiramisu, in a checkout or an installed wheel."""
    package = Path(__file__).parent
    installed = package / "configs" / name
    return installed if installed.is_file() else package.parent / "configs" / name


def hide_library_noise() -> None:
    """Silence what libraries say that is no use to the user of a command."""
    # Of damaged videos, whose results tell it in one line; read when OpenCV opens its first video.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # likewise of images
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)  # advertisements, and devices that are not there
    # Compiling for the CPU on a machine with CUDA's compiler, but without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",  # the worker count is chosen here, for reasons
        ".*LightningCLI's args parameter.*",
        ".*JsonargparseDeprecationWarning.*",
        ".*Checkpoint directory .* exists and is not empty.*",  # so it is when a run is resumed
        ".*`training_step` has.*",
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",
        ".*You have overridden `transfer_batch_to_device` in `LightningModule`.*",  # as intended
    ):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
