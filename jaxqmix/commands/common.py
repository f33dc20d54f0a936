"""What commands share: settings typed by tyro with errors in one line, files, and JAX set up."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from jaxqmix.commands.arguments import explained, flags_of
from jaxqmix.config import ConfigError, RunConfig, require, shown
from jaxqmix.metrics import check_writable

PLACE = "FILE|FOLDER"
"""What --city takes: a city file, or a folder of them."""


def optional(metavar: str, otherwise: str) -> Any:
    """How --help shows a setting that is None unless given."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {otherwise})")


def parse(
    kind: Any, arguments: Sequence[str], program: str, default: Any = None
) -> tuple[Any, list[str]]:
    """Typed settings, and the arguments that belong to none, such as a run's folder.

    Raises `ConfigError` with one line where tyro would print a box.
    """
    given, rest = call_tyro(kind, arguments, program, default, return_unknown_args=True)
    unknown = [argument for argument in rest if argument.startswith("-")]
    if unknown:
        # Once more without patience, for tyro then suggests similar names.
        call_tyro(kind, [a for a in arguments if a not in rest or a in unknown], program, default)
        raise ConfigError(f"setting {unknown[0]} is not known: --help lists the settings")
    return given, rest


def call_tyro(
    kind: Any, arguments: Sequence[str], program: str, default: Any, **options: Any
) -> Any:
    """`tyro.cli` with errors in one line, and help that fits the terminal."""
    errors = io.StringIO()
    asked = {"-h", "--help"} & set(arguments)
    # Errors of earlier versions are read from one long line; and tyro never ends in terminals of a
    # few columns.
    width = max(shutil.get_terminal_size().columns, 40) if asked else 2000
    options["config"] = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    try:
        with (
            contextlib.redirect_stderr(errors),
            _environment({"COLUMNS": str(width)}),
            refusing(lambda event: explained(event, arguments, flags_of(kind, default))),
        ):
            return tyro.cli(kind, args=list(arguments), prog=program, default=default, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(one_line(errors.getvalue())) from None


def refusing(explain: Callable[[Any], str | None]) -> contextlib.AbstractContextManager:
    """Raises `ConfigError` with what is said of tyro's error object. Versions before 1.0.17 have
    none, and whatever is not explained is read from what tyro prints."""

    def refuse(event: Any) -> None:
        if (words := explain(event)) is not None:
            raise ConfigError(words)

    try:
        from tyro import _errors
    except ImportError:
        return contextlib.nullcontext()
    return _errors.on_parse_error(refuse)


@contextlib.contextmanager
def _environment(changes: dict[str, str]):
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def one_line(box: str) -> str:
    """The first line of an error that tyro prints as a box, below its title."""
    text = "".join(each if each.isprintable() or each == "\n" else " " for each in box)
    # Drawn in ASCII where the terminal knows no better.
    lines = [line.strip("│╭╮╰╯─|+- ") for line in text.splitlines()]
    return next(iter([line for line in lines if line][1:]), "arguments not understood")


def single(names: list[str], what: str) -> str | None:
    """The only positional argument, or None; raises `ConfigError` on more."""
    require(len(names) <= 1, what, " ".join(names), f"give one {what}")
    return names[0] if names else None


def without_value(arguments: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """The other arguments, and the value of an option if it is among them."""
    words, rest, value = list(arguments), [], None
    while words:
        word = words.pop(0)
        if word == name:
            require(bool(words), "setting", name, "it misses a value")
            value = words.pop(0)
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, value


def check_file(setting: str, path: Path | None, endings: Sequence[str] = ()) -> None:
    """Raises `ConfigError` when a file has another ending, or cannot be written."""
    if path is None:
        return
    if endings:
        allowed = f"must end in {' or '.join(endings)}"
        close = difflib.get_close_matches(path.suffix.lower(), endings, n=1)
        if close and close[0] != path.suffix.lower():
            allowed = f"did you mean {path.with_suffix(close[0]).as_posix()}? It {allowed}"
        require(path.suffix.lower() in endings, setting, path, allowed)
    require(not path.is_dir(), setting, path, "it is a folder, and must be a file")
    check_writable(setting, path)


def write(path: Path, action: Callable[[Path], Any]) -> None:
    """Writes a file whole or not at all; raises `ConfigError` when it cannot be written."""
    part = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        action(part)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"file = {path} is not allowed: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    print(f"wrote {path}")


def over_city(base: RunConfig, arguments: Sequence[str]) -> RunConfig:
    """A preset for flights over the --city among the arguments, if there is one."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    given = [after for word, after in pairs if word == "--city"]
    given += [word.removeprefix("--city=") for word in arguments if word.startswith("--city=")]
    if not given or given[-1].startswith("-"):
        return base
    from jaxqmix.maps import with_city

    return with_city(base, given[-1])


def prepare_jax() -> None:
    """Sets JAX up for a command: compiled programs are kept, and every core is used."""
    import jax

    from jaxqmix.compilation import enable_cache
    from jaxqmix.distributed import use_all_cores

    # A command is the same run whatever the user chose for other programs.
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    enable_cache()
    use_all_cores()
    try:
        jax.devices()
    except Exception as error:  # of many kinds, with pages of text
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or ["this machine has no such device"])[0]
        raise ConfigError(
            f"JAX_PLATFORMS = {shown(chosen)} is not allowed: {shown(reason)}; unset it, or for a "
            'GPU: pip install ".[cuda]"'
        ) from None
