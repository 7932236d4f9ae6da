"""What the command-line tools share: arguments, logging, and errors without a traceback."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

EPILOG = "Overrides are KEY VALUE pairs, e.g. TRAIN.BATCH_SIZE 8 MASKER.num_blocks 4"


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --cfg, --opts, --plugin and bare KEY VALUE pairs."""
    parser.add_argument("--cfg", nargs="+", default=[], metavar="YAML", help="configuration files")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="module that registers components, e.g. my_lab.masking; may be repeated",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="overrides"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="overrides, too")


def configs_and_overrides(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Splits what follows --cfg into YAML files and KEY VALUE pairs.

    Returns:
        Files, and alternating keys and values.
    """
    is_file = [text.endswith((".yaml", ".yml")) for text in arguments.cfg]
    first_override = is_file.index(False) if False in is_file else len(is_file)
    files, bare = arguments.cfg[:first_override], arguments.cfg[first_override:]
    return files, [*bare, *arguments.overrides, *arguments.opts]


def start_logging(folder: Path | None = None, quiet: bool = False) -> None:
    """Sends log lines to the terminal and, with a folder, to ``folder/stdout.log``.

    Args:
        folder: made if needed.
        quiet: errors only; for the processes beside the main one, which would repeat its lines.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    # What stands above a progress bar has been printed already, in its own way.
    handlers[0].addFilter(lambda record: not getattr(record, "is_printed", False))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "stdout.log", encoding="utf-8"))
    level = logging.ERROR if quiet else logging.INFO
    logging.basicConfig(
        level=level, format="%(levelname).1s %(message)s", handlers=handlers, force=True
    )


def run_tool(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Runs a tool's ``main``; an error that the user can mend becomes one message.

    The exit code is then the error's ``exit_code``, or 1.

    Set VIMPAC_EXT_TRACEBACK=1 to see where an error came from.
    """
    # Notes of torch's C++ code for its developers, several lines each; errors come through.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        sys.exit(main(None) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        ours = type(error).__module__.startswith("vimpac_ext")
        mendable = ours or not isinstance(error, RuntimeError)
        if not mendable or os.environ.get("VIMPAC_EXT_TRACEBACK") == "1":
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _message(error: Exception) -> str:
    """What an error says, without the traceback that PyTorch adds in a data worker."""
    text = str(error)
    name = type(error).__name__
    if text.startswith("Caught ") and "DataLoader worker" in text and f"{name}: " in text:
        return text.rpartition(f"{name}: ")[2].strip()
    return text
