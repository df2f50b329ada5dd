"""``narrowgate completion``: what a shell needs to complete commands, flags, recipes and files."""

import argparse
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import shtab

from compression.presets import PRESETS
from compression.recipe import FULL
from gateway.terminal import Terminal

SHELLS = ("bash", "zsh", "fish", "tcsh")
_NAMES = " ".join([*PRESETS, FULL])
_RECIPES: Mapping[str, str | dict[str, str]] = MappingProxyType(
    {
        "bash": "_narrowgate_recipes",
        "zsh": "_narrowgate_recipes",
        "fish": f"{_NAMES} (__fish_complete_path (commandline -ct))",
        "tcsh": "f",
        "preamble": {
            "bash": "_narrowgate_recipes() {\n"
            f'  compgen -W "{_NAMES}" -- $1\n'
            '  compgen -f -X "!*.yaml" -- $1\n'
            "  compgen -d -- $1\n}",
            "zsh": "_narrowgate_recipes() {\n"
            f"  _alternative 'presets:preset:({_NAMES})' 'files:file:_files -g \"*.yaml\"'\n}}",
        },
    }
)


def run_completion(options: argparse.Namespace, terminal: Terminal) -> int:
    """Print the script for a shell."""
    for action in _actions(options.parser):
        if action.dest == "recipe":
            vars(action)["complete"] = dict(_RECIPES)
        elif action.metavar == "FILE":
            vars(action)["complete"] = shtab.FILE
        elif action.metavar == "DIR" or action.dest == "model":
            vars(action)["complete"] = shtab.DIRECTORY
    print(shtab.complete(options.parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # argparse has no public way
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
