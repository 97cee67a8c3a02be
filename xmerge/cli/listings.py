"""`xmerge families`, `xmerge methods` and `xmerge schema`: what there is to choose from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from xmerge.errors import ConfigError, nearest

if TYPE_CHECKING:
    from xmerge.methods import MergeMethod, Parameter


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print data instead of text.")
def families(name: str | None, as_json: bool) -> None:
    """List the model families that xmerge knows, or the tensors of one."""
    from xmerge.architecture import list_families

    known = {family.family: family for family in list_families()}
    if name is not None and name not in known:
        raise ConfigError(f"there is no family '{name}'; {nearest(name, known)}")
    if as_json:
        chosen = [known[name]] if name else list(known.values())
        click.echo(json.dumps([family.model_dump(mode="json") for family in chosen], indent=1))
    elif name is None:
        width = max(map(len, known))
        for family in known.values():
            click.echo(f"{family.family:<{width}}  {', '.join(family.architectures)}")
    else:
        family = known[name]
        click.echo(
            f"{family.family}: {', '.join(family.architectures)}; {family.norm} norms that multiply by "
            f"{family.norm_gain}; rotation: {family.rope}"
        )
        if family.unchecked:
            click.echo(f"  not compared with a class of transformers: {family.unchecked}")
        for template in family.templates:
            condition = f"  if {template.when}" if template.when else ""
            condition = f"  unless {template.when_not}" if template.when_not else condition
            condition = "  maybe" if template.maybe else condition
            click.echo(f"  {template.role:<24} {template.name} [{template.layout}]{condition}")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print data instead of text.")
def methods(name: str | None, as_json: bool) -> None:
    """List the merge methods, or explain one."""
    from xmerge.methods import find_method, list_methods

    chosen = [find_method(name)] if name else list(list_methods())
    if as_json:
        click.echo(json.dumps([_describe(method) for method in chosen], indent=1))
    elif name is None:
        width = max(len(method.name) for method in chosen)
        for method in chosen:
            click.echo(f"{method.name:<{width}}  {method.summary}")
    else:
        method = chosen[0]
        click.echo(f"{method.name}: {method.text}\n\nModels: {_tell_models(method)}\n")
        click.echo("Parameters:" if method.parameters else "Parameters: none")
        for each in method.parameters:
            kind = "true or false" if each.is_switch else str(each.range)
            owner = "one for each model" if each.per_model else "one for all models"
            click.echo(f"  {each.name}: {each.range.text} ({kind}; {owner}; {_tell_default(each)})")


def _describe(method: MergeMethod) -> dict[str, Any]:
    """A method as data."""
    return {
        "name": method.name,
        "text": method.text,
        "base": method.base,
        "models": method.inputs,
        "parameters": [
            {
                "name": each.name,
                "per_model": each.per_model,
                "default": each.default,
                "range": str(each.range),
                "text": each.range.text,
            }
            for each in method.parameters
        ],
    }


def _tell_models(method: MergeMethod) -> str:
    """How many models meet, and what the base is among them."""
    least, most = (None if number is None else number - (method.base == "required") for number in method.inputs)
    count = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
    if method.base == "required":
        return f"the base, and {count} beside it"
    return (
        f"{count}; a base_model is one of them" if method.base == "as_input" else f"{count}, and a base if one is named"
    )


def _tell_default(parameter: Parameter) -> str:
    if parameter.default is None and parameter.per_model:
        return "no default: a model without a value for a tensor takes no part in it"
    if parameter.default is None:
        return "no default: tensors without a value keep the base's"
    return f"default: {str(bool(parameter.default)).lower() if parameter.is_switch else f'{parameter.default:g}'}"


@click.command()
def schema() -> None:
    """Print the JSON schema of a configuration, for editors."""
    from xmerge.config import MergeConfig

    click.echo(json.dumps(MergeConfig.model_json_schema(), indent=2))
