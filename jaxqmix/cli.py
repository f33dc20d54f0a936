"""The command line: finds the command, and ends with one line on bad input. JAX and what a command
needs load only when there is work for it."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from jaxqmix.config import ConfigError, LostProcessError, NotFiniteError, require, shown
from jaxqmix.presets import PRESETS


def validate_command(arguments: list[str]) -> int:
    """`jaxqmix validate`."""
    if {"-h", "--help"} & set(arguments):
        print("usage: jaxqmix validate\n\nChecks that everything works on this machine.")
        return 0
    require(not arguments, "argument", " ".join(arguments), "validate takes none")
    from jaxqmix.commands.common import prepare_jax

    prepare_jax()
    from jaxqmix.validate import validate

    return validate()


def demo_command(arguments: list[str]) -> int:
    """`jaxqmix demo [CHOICE]`."""
    from jaxqmix import demo

    if {"-h", "--help"} & set(arguments):
        print(f"usage: jaxqmix demo [CHOICE] [--city FILE]\n{demo.menu()}")
        return 0
    return demo.demo(arguments, run)


def later(name: str, module: str | None = None) -> Callable[[list[str]], int]:
    """A command of a module of `jaxqmix.commands`, by default the one of its name, imported when
    it is called."""

    def command(arguments: list[str]) -> int:
        home = import_module(f"jaxqmix.commands.{module or name}")
        return getattr(home, f"{name}_command")(arguments)

    return command


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "train": (f"PRESET [--setting value ...]   {', '.join(PRESETS)}", later("train")),
    "federate": (
        "PRESET [--sites N ...]   one policy of sites that share no flights",
        later("federate"),
    ),
    "evaluate": ("RUN [--planner NAME]   fly held-out cities and judge them", later("evaluate")),
    "render": (
        "RUN --out FILE   draw an episode: .png, .gif, .mp4 or .html",
        later("render", "evaluate"),
    ),
    "plot": ("RUN [RUN ...] --out FILE   draw training curves", later("plot", "evaluate")),
    "city": ("FILE --out CITY.npz   make a city to fly over of a map", later("city", "world")),
    "export": (
        "RUN --out FILE   a policy for machines without JAX: .onnx, .npz",
        later("export", "world"),
    ),
    "fly": ("RUN --city FILE   one flight for ground stations and maps", later("fly", "world")),
    "demo": ("[CHOICE] [--city FILE]   a menu: train, watch, test, federate", demo_command),
    "validate": ("check that everything works on this machine", validate_command),
}


def usage() -> str:
    """The text of `jaxqmix --help`."""
    lines = [f"  {name:10}{text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxqmix COMMAND ...",
            "",
            "Drone swarms learn to see a city, with QMIX on JAX.",
            "",
            *lines,
            "",
            "jaxqmix COMMAND --help explains a command and every setting.",
        ]
    )


def run(arguments: list[str]) -> int:
    """Runs one command; raises `ConfigError` on bad input."""
    for word in arguments:
        require("\0" not in word, "argument", word, "no name holds a null character")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from jaxqmix import __version__

        print(f"jaxqmix {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(COMMANDS)}"
        raise ConfigError(f"command = {arguments[0]} is not allowed: {hint}")
    return COMMANDS[arguments[0]][1](arguments[1:])


def expand_home(word: str) -> str:
    """An argument with the user's home for `~`, which shells leave alone in --out=~/runs."""
    found = re.fullmatch(r"(--[\w.-]+=)?(~(?:/.*)?)", word)
    return (found[1] or "") + os.path.expanduser(found[2]) if found else word


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 and one line on bad input."""
    # XLA prints a page of harmless machine features when it loads a cached program.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Figures go to files: a backend chosen for other programs may not even be there.
    os.environ["MPLBACKEND"] = "agg"
    # Names of folders need not be text in the terminal's encoding.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Orbax tells at length how long it waits for a save.
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_: print(f"jaxqmix: {message}", file=sys.stderr)
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        try:
            sys.exit(run([expand_home(word) for word in given]))
        finally:
            if sys.stdout is not None:  # as without a terminal on Windows
                sys.stdout.flush()  # Here, for at Python's end nobody answers a broken pipe.
    except (NotFiniteError, LostProcessError) as error:
        print(f"jaxqmix: {error}", file=sys.stderr)
        leave(1)
    except ConfigError as error:
        print(f"jaxqmix: {error}", file=sys.stderr)
        leave(2)
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough; Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(141)
    except RuntimeError as error:
        # Of a device; JAX's own kind, with pages of text.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = "the device has too little memory: lower training.swarms, or evaluation.episodes"
        print(f"jaxqmix: {words}", file=sys.stderr)
        leave(2)
    except (OSError, MemoryError) as error:
        print(f"jaxqmix: {shown(error) or 'out of memory'}", file=sys.stderr)
        leave(2)
    except KeyboardInterrupt:
        # Pressed once more, Ctrl-C would end this handler in a traceback.
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\njaxqmix: stopped", file=sys.stderr)
        leave(130)


def leave(code: int) -> NoReturn:
    """Ends after an error: as one of several processes at once, for at its end Python would wait
    for the others, and they for it."""
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stderr.flush()
        # The first serves the others, which a moment later know why they end too.
        time.sleep(2 if sys.modules["jax"].process_index() == 0 else 0)
        os._exit(code)
    sys.exit(code)
