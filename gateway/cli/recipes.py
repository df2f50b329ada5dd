"""``narrowgate recipes``: the presets."""

import argparse

from compression.errors import CompressionError
from gateway.cli.jobs import run_job, source
from gateway.errors import LoadRefused, SettingsError
from gateway.terminal import Terminal


def run_recipes(options: argparse.Namespace, terminal: Terminal) -> int:
    """List the presets, or print one."""
    from compression.catalog import describe_presets, render_presets
    from compression.presets import load_recipe, recipe_yaml

    if options.name is not None:
        try:
            terminal.note(recipe_yaml(load_recipe(options.name)).rstrip())
        except CompressionError as error:
            raise LoadRefused(str(error)) from None
        return 0
    if options.model is None:
        if options.revision is not None:
            raise SettingsError("--revision needs --model: it describes that model")
        terminal.show(render_presets(describe_presets(None), None))
        return 0
    words = ["-m", "compression", "recipes", *source(options)]
    return show_recipes(words, options, terminal)


def show_recipes(words: list[str], options: argparse.Namespace, terminal: Terminal) -> int:
    """Run a child that lists recipes and show its table."""
    from compression.catalog import render_presets

    code, listed = run_job(words, terminal)
    if listed is not None:
        terminal.show(render_presets(listed["recipes"], options.model))
    return code
