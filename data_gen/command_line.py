"""One function is one command: arguments, types, defaults and help come from its signature and docstring."""

import argparse
import ast
import contextlib
import importlib.util
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args, get_origin

import docstring_parser
import jsonargparse

Command = Callable[..., Any] | str
Commands = Mapping[str, "Command | Commands"]
_FOR_THE_USER_TO_MEND = (ValueError, OSError)
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def run(program: str, commands: Commands, argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and turn what goes wrong into one line on stderr.

    Positional-only parameters of a command's function become positionals, all others `--dashed-options`; a
    `bool` becomes a flag with its `--no-` opposite.

    Args:
        program: name of the program, as the user typed it.
        commands: function of each command, or `"module:function"`, imported only when it is needed, or the commands of
            a group.
        argv: arguments after the program's name; those of this process where not given.

    Returns:
        Exit status: 0, 2 for bad input or a place that cannot be read or written (not there, read-only, full), 130 for
        an interrupt, and 1 for any other failure.

    Raises:
        SystemExit: after `--help` and `--version` (status 0), and on arguments that do not parse (status 2).
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [argument for argument in given if argument != "--debug"]
    debug = len(arguments) < len(given)
    while arguments and isinstance(group := commands.get(arguments[0]), Mapping):
        program, commands, arguments = f"{program} {arguments[0]}", group, arguments[1:]
    try:
        name = _command_name(program, commands, arguments[:1])
        with _warnings_on_one_line(program):
            _call(f"{program} {name}", program, cast(Command, commands[name]), arguments[1:])
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return _report(program, error)
    return 0


@contextlib.contextmanager
def _warnings_on_one_line(program: str) -> Iterator[None]:
    """Show warnings as errors are shown, without the line of code that they come from."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{program}: warning: {_one_line(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


class _Formatter(argparse.HelpFormatter):
    """Formatter that says after the help of an option what it is where not given."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # Nobody needs `--option+`, which jsonargparse has for appending to a list.
        return re.sub(r", --[\w-]+\+ \w+", "", super()._format_action_invocation(action))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").removesuffix(".")
        if action.required:
            return f"{text} (required)"
        untold = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        return text if untold else f"{text} (default: {action.default})"


class _Parser(jsonargparse.ArgumentParser):
    """Parser that spells options with dashes, booleans as flags, lists as several words, and errors on one line."""

    def __init__(self, *args: Any, program: str, **kwargs: Any):
        self.program = program
        self.spellings: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.needed: list[str] = []
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, allow_abbrev=False, print_config=None, **kwargs)

    def add_parameter(self, parameter: inspect.Parameter, told: str | None) -> None:
        """Add what gives a parameter of a function, of which `told` is said."""
        kind, options = parameter.annotation, dict[str, Any](help=(told or "").replace("%", "%%"))
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif [get_origin(one) for one in _alternatives(kind)] == [list]:
            options |= {"type": get_args(_alternatives(kind)[0])[0], "nargs": "+"}
        else:
            options["type"] = kind
        spelling = parameter.name
        if parameter.kind is not parameter.POSITIONAL_ONLY:
            if kind is not bool and get_origin(kind) is not Literal:
                options["metavar"] = spelling.upper()
            spelling = "--" + spelling.replace("_", "-")
            required = parameter.default is parameter.empty
            options |= {"required": True} if required else {"default": parameter.default}
        self.add_argument(spelling, **options)
        self.spellings[parameter.name], self.kinds[parameter.name] = spelling, _in_words(kind)
        if parameter.default is parameter.empty:
            self.needed += [spelling] * spelling.startswith("--") + [parameter.name.upper()]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = _one_line(message)
        if refused := re.match(r'Parser key "(\w+)"(?: element \d+)?: .*(?:Got|Given) value: (.*)', message):
            name, value = refused.groups()
            message = f"`{self.spellings[name]}` must be {self.kinds[name]}, got {value!r}"
        if missing := re.match(r"the following arguments are required: (.*)", message):
            message = f"missing {', '.join(self.spellings.get(name, name) for name in missing[1].split(', '))}"
        self.exit(2, f"{self.program}: error: {message} (see `{self.prog} --help`)\n")


def _command_name(program: str, commands: Commands, arguments: Sequence[str]) -> str:
    if arguments and arguments[0] in commands:
        return arguments[0]
    parser = _Parser(
        prog=program,
        program=program,
        version=version("photonic_essl"),
        usage=f"{program} COMMAND [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if set(arguments) & {"-h", "--help"}:
        lines = [f"  {name:16s}{_summary(command)}" for name, command in commands.items()]
        hint = f"`{program} COMMAND --help` shows a command's options; `--debug` shows where an error came from."
        parser.epilog = "\n".join(["commands:", *lines, "", hint])
    if arguments and not arguments[0].startswith("-"):
        parser.error(f"unknown command {arguments[0]!r}; the commands are {', '.join(commands)}")
    parser.parse_args(arguments)
    parser.error(f"no command given; the commands are {', '.join(commands)}")


def _call(usage: str, program: str, command: Command, arguments: Sequence[str]) -> None:
    outline = _outline(command)
    parameters = inspect.signature(outline).parameters.values()
    told = {one.arg_name: one.description for one in docstring_parser.parse(inspect.getdoc(outline) or "").params}
    parser = _Parser(prog=usage, program=program, description=_summary(command))
    for parameter in parameters:
        parser.add_parameter(parameter, told.get(parameter.name))
    parser.usage = " ".join([usage, *parser.needed, "[options]"])
    values = parser.parse_args(arguments).as_dict()
    positional = [values.pop(one.name) for one in parameters if one.kind is one.POSITIONAL_ONLY]
    _resolve(command)(*positional, **values)


def _resolve(command: Command) -> Callable[..., Any]:
    if callable(command):
        return command
    module, name = command.split(":")
    return getattr(importlib.import_module(module), name)


def _summary(command: Command | Commands) -> str:
    if isinstance(command, Mapping):
        return f"A group of commands: {', '.join(command)}."
    return _first_paragraph(inspect.getdoc(_outline(command)))


def _outline(command: Command) -> Callable[..., Any]:
    """Return a function with a command's signature and docstring, that does nothing.

    It is made from the source, as to import what a command needs takes many seconds. So annotations are of built-in
    types, `Path` and `Literal`, and defaults are literals.
    """
    if callable(command):
        return command
    module, name = command.split(":")
    source = importlib.util.find_spec(module)
    if source is None or source.origin is None:
        raise ModuleNotFoundError(f"no module named {module!r}")
    tree = ast.parse(Path(source.origin).read_bytes())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    function.body, function.returns = function.body[:1], None
    namespace: dict[str, Any] = {"Path": Path, "Literal": Literal}
    exec(compile(ast.Module([function], []), source.origin, "exec"), namespace)
    return namespace[name]


def _in_words(kind: Any) -> str:
    """Return what a user has to give for a parameter of this type."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return f"{_in_words(*get_args(kind))}, or several"
    return _KINDS.get(kind) or " or ".join(dict.fromkeys(map(_in_words, _alternatives(kind))))


def _alternatives(kind: Any) -> list[Any]:
    """Return what a union of types holds beside None."""
    return [one for one in get_args(kind) if one is not type(None)]


def _first_paragraph(text: str | None) -> str:
    return (text or "").split("\n\n")[0].replace("\n", " ")


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _report(program: str, error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        print(f"{program}: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    speaks_for_itself = str(error) and isinstance(error, (*_FOR_THE_USER_TO_MEND, RuntimeError))
    kind = "" if speaks_for_itself else f"{type(error).__name__}: "
    print(f"{program}: error: {kind}{_one_line(str(error))}", file=sys.stderr)
    return 2 if isinstance(error, _FOR_THE_USER_TO_MEND) else 1
