"""``narrowgate build`` and ``narrowgate inspect``: artifacts."""

import argparse

from compression.errors import CompressionError
from gateway.cli.jobs import run_job, run_until_signal, source
from gateway.cli.recipes import show_recipes
from gateway.errors import LoadRefused, SettingsError
from gateway.fixed_reading import with_reading
from gateway.terminal import Terminal

_NOT_VERIFIED = "Files were not hashed: --verify does that."


def run_build(options: argparse.Namespace, terminal: Terminal) -> int:
    """Compress a model into a directory, or tell what that would take."""
    words = ["-m", "compression", "build", *source(options), f"--recipe={options.recipe}"]
    if options.dry_run:
        return show_recipes([*words, "--dry-run"], options, terminal)
    if options.out is None:
        raise SettingsError("build needs --out, a new directory, or --dry-run")
    words += [f"--out={options.out}"]
    words += ["--fidelity"] if options.fidelity else []
    code, ready = run_job(words, terminal, stall_s=options.prepare_timeout_s)
    if ready is not None and options.fidelity:
        reading = with_reading(
            options.out,
            ready["manifest"],
            terminal.on_progress,
            stall_s=options.prepare_timeout_s,
        )
        code, manifest = run_until_signal(reading)
        ready["manifest"] = manifest or ready["manifest"]
    if ready is not None:
        terminal.built(ready["directory"], ready["manifest"])
    return code


def run_inspect(options: argparse.Namespace, terminal: Terminal) -> int:
    """Show what an artifact is."""
    from compression.inspection import render_manifest
    from compression.manifest import read_manifest
    from compression.verification import verify

    try:
        manifest = read_manifest(options.directory)
        if manifest is None:
            raise LoadRefused(
                f"{str(options.directory)!r} is no artifact (it has no compression_manifest.json): "
                "give a directory that `narrowgate build` made"
            )
        if options.verify:
            verify(options.directory, manifest, terminal.on_progress)
    except CompressionError as error:
        raise LoadRefused(str(error)) from None
    if options.json:
        terminal.note(manifest.model_dump_json(indent=1))
    else:
        terminal.show(render_manifest(manifest, width=terminal.width))
        terminal.note("every file is as it was built" if options.verify else _NOT_VERIFIED)
    return 0
