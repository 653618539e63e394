"""`cinemo info`: show what is in a model directory, and where a model, a video or a dataset came from.

The facts come from cinemo.checkpoint and cinemo.lineage.
"""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer


def info(
    what: Annotated[
        str, typer.Argument(help="builtin:tiny, a model directory or a hub id; a dataset; a job's video or its .json")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Show where a model, a video or a dataset came from; of a model its parts, sizes and fingerprint too."""
    from cinemo import lineage
    from cinemo.checkpoint import describe, resolve

    chain = lineage.trace(what)
    facts = describe(resolve(what)) if chain.kind == "model" else {}
    if as_json:
        typer.echo(json.dumps({**facts, "chain": asdict(chain)}, indent=2))
        return
    for line in text(facts):
        typer.echo(line)
    for line in lineage.lines(chain):
        typer.echo(line)


def text(facts: dict[str, Any]) -> list[str]:
    """Format facts in two columns; those of a dictionary follow its name."""
    lines = []
    for name, value in facts.items():
        if name == "lineage":  # the chain shows more
            continue
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [
                f"  {key:<22} {inner:,}" if isinstance(inner, int) else f"  {key:<22} {inner}"
                for key, inner in value.items()
            ]
        else:
            lines.append(f"{name:<24} {value}")
    return lines
