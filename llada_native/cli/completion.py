"""`llada-native completion`: what a shell needs to complete commands and options, made from the parser."""
from __future__ import annotations

import argparse
import re
import shlex
from typing import Any, NamedTuple

from . import arguments
from .arguments import EXIT_OK

FILES = ("PATH", "FILE", "FOLDER", "SOURCE", "OUT", "IN")  # metavars of what is a file


class Option(NamedTuple):
    """One option of a command."""

    names: list[str]
    help: str
    takes: bool  # a value
    choices: list[str]
    files: bool


class Command(NamedTuple):
    name: str
    help: str
    options: list[Option]
    choices: list[str]  # of its arguments


def add(commands: Any) -> None:
    parser = arguments.add_command(commands, "completion", run, "print what a shell needs to complete commands and options",
                                   "source <(llada-native completion bash)",
                                   "source <(llada-native completion zsh)",
                                   "llada-native completion fish > ~/.config/fish/completions/llada-native.fish")
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(a: argparse.Namespace) -> int:
    from . import build_parser

    print(SHELLS[a.shell](described(build_parser())), end="")
    return EXIT_OK


def described(parser: argparse.ArgumentParser) -> list[Command]:
    """The commands of a parser."""
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    return [_command(name, helps.get(name, ""), sub) for name, sub in commands.choices.items()]


def _command(name: str, help: str, parser: argparse.ArgumentParser) -> Command:
    options = [Option(list(a.option_strings), _line(a.help), a.nargs != 0, [str(c) for c in a.choices or ()], a.metavar in FILES)
               for a in parser._actions if a.option_strings]
    choices = [str(c) for a in parser._actions if not a.option_strings for c in a.choices or ()]
    return Command(name, _line(help), options, choices)


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _words(command: Command) -> str:
    return " ".join([*(name for option in command.options for name in option.names), *command.choices])


def bash(commands: list[Command]) -> str:
    cases = "".join(f'    {_patterns(c, o)}) COMPREPLY=($(compgen {f"-W {shlex.quote(chr(32).join(o.choices))}" if o.choices else "-f"} '
                    f'-- "$cur")); return ;;\n' for c in commands for o in c.options if o.choices or o.files)
    free = "".join(f"    {_patterns(c, o)}) return ;;\n" for c in commands for o in c.options if o.takes and not (o.choices or o.files))
    words = "".join(f"    {c.name}) words={shlex.quote(_words(c))} ;;\n" for c in commands)
    return f"""\
_llada_native() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W {shlex.quote(' '.join(c.name for c in commands) + ' --help --version')} -- "$cur"))
    return
  fi
  case "$command $prev" in
{cases}{free}  esac
  case "$command" in
{words}  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  if [[ $cur != -* ]]; then COMPREPLY+=($(compgen -f -- "$cur")); fi
}}
complete -o filenames -F _llada_native llada-native
"""


def zsh(commands: list[Command]) -> str:
    cases = "".join(f"    {_patterns(c, o)}) {'compadd -- ' + shlex.join(o.choices) if o.choices else '_files'}; return ;;\n"
                    for c in commands for o in c.options if o.choices or o.files)
    free = "".join(f"    {_patterns(c, o)}) return ;;\n" for c in commands for o in c.options if o.takes and not (o.choices or o.files))
    words = "".join(f"    {c.name}) compadd -- {_words(c)} ;;\n" for c in commands)
    return f"""\
#compdef llada-native
_llada_native() {{
  local previous=$words[CURRENT-1] command=$words[2]
  if ((CURRENT == 2)); then
    compadd -- {' '.join(c.name for c in commands)} --help --version
    return
  fi
  case "$command $previous" in
{cases}{free}  esac
  case "$command" in
{words}  esac
  [[ $words[CURRENT] == -* ]] || _files
}}
if (($+functions[compdef])); then compdef _llada_native llada-native; fi
"""


def fish(commands: list[Command]) -> str:
    lines = ["complete -c llada-native -n __fish_use_subcommand -f"]
    lines += [f"complete -c llada-native -n __fish_use_subcommand -a {c.name} -d {_quoted(c.help)}" for c in commands]
    for c in commands:
        seen = f"complete -c llada-native -n '__fish_seen_subcommand_from {c.name}'"
        lines += [f"{seen} -f -a {_quoted(' '.join(c.choices))}"] if c.choices else []
        for o in c.options:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in o.names)
            value = f" -x -a {_quoted(' '.join(o.choices))}" if o.choices else " -r" if o.files else " -x" if o.takes else ""
            lines.append(f"{seen} {names}{value} -d {_quoted(o.help)}")
    return "\n".join(lines) + "\n"


def _patterns(command: Command, option: Option) -> str:
    return "|".join(f'"{command.name} {name}"' for name in option.names)


def _quoted(text: str) -> str:
    """For fish, where a backslash quotes only itself and the quote."""
    return "'" + re.sub(r"([\\'])", r"\\\1", text) + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
