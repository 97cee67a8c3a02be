"""`xmerge merge`: a configuration becomes a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from xmerge.cli.orchestration import load_flow_module
from xmerge.cli.plan import make_plans
from xmerge.cli.progress import BarReporter, LineReporter, choose_reporter
from xmerge.cli.screen import print_report
from xmerge.errors import ConfigError
from xmerge.planning.downloads import FETCH_MODES, FetchMode
from xmerge.runners import RunnerName, check_runner, parse_runner
from xmerge.validation.findings import ValidationReport

DEFAULT_WORKERS = max(1, min(os.cpu_count() or 1, 8))

task_runner_option = click.option(
    "--task-runner",
    default="thread",
    show_default=True,
    metavar="thread|dask[:ADDRESS]|ray[:ADDRESS]",
    help="Who merges layers: this process, or the workers of a cluster, started here or running at ADDRESS.",
)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(min=1), default=DEFAULT_WORKERS, help="Layers under way at once.")
@click.option("--store", type=click.Path(path_type=Path), help="Keep finished layers here, to share between merges.")
@click.option("--seed", type=click.IntRange(min=0), help="Takes the place of the configuration's random_seed.")
@click.option(
    "--fetch",
    type=click.Choice(FETCH_MODES),
    default="auto",
    show_default=True,
    help="From the Hub: whole shards, only the tensors that are read, or whichever is less.",
)
@task_runner_option
@click.option("--direct", is_flag=True, help="A plain loop, without Prefect.")
@click.option("--skip-trial-load", is_flag=True, help="Do not load the output with transformers before it appears.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one line of JSON.")
@click.option("--quiet", is_flag=True, help="Say only what should not be missed.")
def merge(
    config: Path,
    out: Path,
    device: str,
    workers: int,
    store: Path | None,
    seed: int | None,
    fetch: FetchMode,
    task_runner: str,
    direct: bool,
    skip_trial_load: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Merge the models of CONFIG into a checkpoint at OUT, which appears whole or not at all.

    CONFIG may be one of mergekit's. Run the same command again to resume an interrupted merge.
    """
    # Told in half a second, before a server is started for it.
    runner = _choose_runner(task_runner, direct=direct)
    _refuse_early(config, out, None if runner.address else device, seed)
    options = {"device": device, "workers": workers, "store": store, "seed": seed, "trial": not skip_trial_load}
    options |= {"fetch": fetch, "task_runner": task_runner}
    with choose_reporter(quiet=quiet) as reporter:
        outcome = (_merge_directly if direct else _merge_as_flow)(config, out, reporter, **options)
    if as_json:
        click.echo(json.dumps(outcome))
        return
    if outcome["report"] is not None:
        print_report(ValidationReport.model_validate(outcome["report"]))
    click.echo(_tell(outcome, quiet=quiet))


def _choose_runner(text: str, *, direct: bool) -> RunnerName:
    runner = parse_runner(text)
    if direct and runner.is_cluster:
        raise ConfigError(
            f"--direct is a plain loop in this process; it has no {runner.kind} workers.",
            remedy="leave out --direct, or --task-runner.",
        )
    check_runner(runner)
    return runner


def _refuse_early(config: Path, out: Path, device: str | None, seed: int | None) -> None:
    from xmerge.finished import is_finished

    if config.exists() and not config.is_file():
        raise ConfigError(f"{config} is no file that can be read again.", remedy="save the configuration to a file.")
    place = out.expanduser().absolute()
    is_finished(place, make_plans(config, place, seed)[-1].plan)
    # None: that of other machines.
    if device not in (None, "auto", "cpu"):
        from xmerge.engine.devices import choose_device

        choose_device(device)


def _merge_directly(config: Path, out: Path, reporter: LineReporter | BarReporter, **options: Any) -> dict[str, Any]:
    from xmerge.config import load_stages
    from xmerge.run import merge as run
    from xmerge.signals import stop_on_signals

    stages = load_stages(config)
    if options["seed"] is not None:
        stages = tuple(stage.model_copy(update={"random_seed": options["seed"]}) for stage in stages)
    with stop_on_signals():
        outcome = run(
            stages,
            out,
            device=options["device"],
            workers=options["workers"],
            store=options["store"],
            trial=options["trial"],
            fetch=options["fetch"],
            reporter=reporter,
        )
    return outcome.model_dump(mode="json")


def _merge_as_flow(config: Path, out: Path, reporter: LineReporter | BarReporter, **options: Any) -> dict[str, Any]:
    outcome: dict[str, Any] = load_flow_module("command").run_merge(config, out, reporter=reporter, **options)
    return outcome


def _tell(outcome: dict[str, Any], *, quiet: bool) -> str:
    publication = outcome["publication"]
    published = _tell_publication(publication)
    if outcome["report"] is None:
        there = f"{publication['folder']} is there already and is this very merge"
        return "\n".join([f"{there}: nothing to merge." if published else f"{there}: nothing to do.", *published])
    lines = [f"shards: {outcome['layers']}, {outcome['reused']} of them from an earlier run", *published]
    run = outcome.get("flow_run")
    # With --direct there is none to look at.
    lines += [f"look at the run: {run['url'] or 'xmerge ui'}"] if run and not quiet else []
    return "\n".join([*lines, f"done: {publication['folder']}"])


def _tell_publication(publication: dict[str, Any]) -> list[str]:
    if not publication["url"]:
        return []
    told = "published" if publication["uploaded"] else "nothing to upload, all of it is there already"
    return [f"{told}: {publication['url']}"]
