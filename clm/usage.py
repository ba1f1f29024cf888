"""What the parser of the command line refuses, in our own words: one sentence that names the word, and what to type.

Typer's errors differ between its versions (its parser is click's, of its own copy or not), so nothing here depends on
their classes: only on the attributes that all of them have.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

import typer

from clm.config import fields
from clm.errors import ClmError

ParserError: type[Exception] = typer.BadParameter.__mro__[2]  # base of everything that parsing raises: ClickException


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that `word` most likely stands for, or None."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return close[0] if close else None


def in_one_sentence(error: Any, words: Sequence[str]) -> ClmError:
    """A usage error of the parser as a ClmError. words: the arguments as typed."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else " ".join(["clm", *words[:1]])
    help_line = f"See `{command} --help`."
    option, text = getattr(error, "option_name", None), error.format_message()
    if option is not None and "requires an argument" in text:
        return ClmError(f"{option} needs a value.", help_line)
    if option is not None and hasattr(error, "possibilities"):
        return _unknown_option(option, context, command, help_line)
    if context is not None and (wrong := re.match(r"No such command '(.*?)'", text)) is not None:
        close = nearest(wrong[1], list(context.command.commands))
        return ClmError(f"No such command: {wrong[1]}.", f"Did you mean `{command} {close}`?" if close else help_line)
    parameter = getattr(error, "param", None)
    if parameter is not None and text.startswith("Missing"):
        return ClmError(f"`{command}` needs {_name(parameter)}{_what(parameter)}.", help_line)
    if parameter is not None:
        value = _typed(words, parameter)
        name = _name(parameter) + (f" is `{value}`: it" if value is not None else "")
        return ClmError(f"{name} {_reason(error.message)}.", help_line)
    return ClmError(text.rstrip(".") + ".", help_line)


def _unknown_option(option: str, context: Any, command: str, help_line: str) -> ClmError:
    """Of an option that no parameter has: the nearest one, or that it is a key of configuration files."""
    message = f"`{command}` has no option {option}."
    options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
    key = option.lstrip("-").replace("-", "_")
    if "--config" in options and key in {f.name for f in fields()}:
        return ClmError(
            message, f"It is set in a file: write `{key}: VALUE` into FILE.yaml and pass `--config FILE.yaml`."
        )
    close = nearest(option, [*options, "--help"])
    return ClmError(message, f"Did you mean {close}?" if close else help_line)


def _name(parameter: Any) -> str:
    """An option by its long name, an argument by its metavar."""
    options = [name for name in parameter.opts if name.startswith("-")]
    return max(options, key=len) if options else str(parameter.metavar or parameter.name)


def _what(parameter: Any) -> str:
    """The help of a parameter, as the end of a sentence."""
    help_text = (getattr(parameter, "help", None) or "").strip().rstrip(".")
    if not help_text[1:2].isupper():
        help_text = help_text[:1].lower() + help_text[1:]
    return f": {help_text}" if help_text else ""


def _typed(words: Sequence[str], parameter: Any) -> str | None:
    """The value that was typed for an option, if it can be found among the words."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in parameter.opts and name.startswith("-"):
            return value if equals else words[i + 1] if i + 1 < len(words) else None
    return None


def _reason(message: str) -> str:
    """Why a value is refused, without the parser's jargon."""
    message = re.sub(r"^Input should be an? valid (integer|number).*", r"must be a \1", message)
    message = re.sub(r"^'.*' is not a valid (integer|float).*", r"must be a \1", message)
    message = re.sub(r"^Input should be", "must be", message)
    message = message.replace("a integer", "a whole number").replace("a float", "a number")
    return message.strip().rstrip(".")
