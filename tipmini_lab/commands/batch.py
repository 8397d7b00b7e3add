"""The commands on a whole profile: they measure its cells, check claims and build the book."""

import json
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from tipmini.cli.arguments import AsJson
from tipmini.errors import TipminiError, require
from tipmini_lab.commands.arguments import Dtype, Profile, Tasks, group_names, option
from tipmini_lab.paths import in_checkout


@in_checkout
def measure(
    method: option(
        list[str] | None, "again for several; all by default", "--method", "--variant"
    ) = None,
    group: option(str | None, "what experiments/*/GROUP.yaml declares", known=group_names) = None,
    task: Tasks = None,
    profile: Profile = "mini",
    dtype: Dtype = "auto",
    part: option(str | None, "K/N: every Nth variant alone, from the Kth") = None,
    dry_run: option(bool, "say what is stored, what would be measured and how long") = False,
    as_json: AsJson = False,
) -> None:
    """Measure cells of a profile and store them; what is stored is read, in whatever format.

    With a group, its variants: several such commands share the work, and a killed one goes on.
    The group `pruning` holds the pruned models of experiments/loraprune/pruning.yaml; a file that
    names a `module` is measured by that one of tipmini_lab/experiments.
    """
    from tipmini_lab.experiments import estimate, groups, readiness
    from tipmini_lab.experiments.lab import Lab
    from tipmini_lab.experiments.variants import TABLE_1

    chosen, show = _profile(profile, dtype), partial(show_cell, as_json=as_json)
    _refuse_unknown(task, chosen)
    readiness.refuse_unready(chosen)
    module = group and groups.module_of(group)
    if task and module and module != groups.MERGES:
        raise TipminiError(f"group {group}: a run is scored on all it declares; omit --task")
    if part:
        every = method or (groups.names(chosen, group) if group else TABLE_1)
        method = groups.part(every, part)
        if not method:  # there are more parts than variants
            return
    if dry_run:
        found = estimate.estimate(chosen, group, method or (), task or ())
        print(f"{group or 'Table 1'} at {chosen.name}: {found.line}")
    elif module:
        only = {"only": task or ()} if module == groups.MERGES else {}
        measured_by = import_module(f"tipmini_lab.experiments.{module}")
        measured_by.measure(chosen, group, method or (), show=show, **only)
    else:
        lab = Lab(chosen)
        for name in task or chosen.tasks:
            for way in method or TABLE_1:
                show(lab.cell(way, name))


@in_checkout
def norms(task: Tasks = None, profile: Profile = "mini", dtype: Dtype = "auto") -> None:
    """Measure the input norms of a profile's adapters and store them; what is stored is kept.

    Those of the first examples alone are stored too, for `again` to compare with.
    """
    from tipmini_lab.experiments import readiness
    from tipmini_lab.experiments.lab import Lab

    lab = Lab(_profile(profile, dtype))
    _refuse_unknown(task, lab.profile)
    readiness.refuse_unready(lab.profile)
    for name in task or lab.profile.tasks:
        lab.norms.of(name, lab.norms.first)
        print(f"norms   {name:14} of {len(lab.input_norms(name))} inputs", flush=True)


def _profile(name: str, dtype: str = "auto"):
    """A profile; its own number format where none is asked for."""
    from tipmini_lab.experiments.profiles import load_profile

    found = load_profile(name)
    return found if dtype == "auto" else found.model_copy(update={"dtype": dtype})


def _refuse_unknown(tasks: list[str] | None, profile) -> None:
    for name in tasks or ():
        require("task", name, profile.tasks)


@in_checkout
def again(
    profile: Profile = "mini",
    minutes: option(float | None, "that it may take, about; 3 by default", min=0) = None,
) -> None:
    """Compute a part of a profile's stored results again, and compare.

    How much is chosen by this machine's speed. An answer that differs, and is no tie, is an error
    that names its cell: one line, exit code 2.
    """
    from tipmini_lab.book.again import line
    from tipmini_lab.book.recomputing import MINUTES, run

    asked = MINUTES if minutes is None else minutes
    print(line(run(_profile(profile), minutes=asked)))


@in_checkout
def reproduce(profile: Profile = "mini") -> None:
    """Compute every norm and every cell of TIP's Table 1 from scratch, and compare.

    An estimate of the time comes first; a killed run resumes. Answers that differ as in `again`.
    """
    from tipmini_lab.book.again import line
    from tipmini_lab.book.recomputing import run
    from tipmini_lab.experiments import readiness

    chosen = _profile(profile)
    readiness.refuse_unready(chosen)
    print(line(run(chosen, whole=True)))


@in_checkout
def book(profile: Profile = "mini") -> None:
    """Recompute what changed, execute the notebooks, build `_build/html/index.html`."""
    from tipmini_lab.book import workflow
    from tipmini_lab.experiments import readiness

    readiness.refuse_unready(_profile(profile))
    workflow.run(profile)


@in_checkout
def rehearse(profile: Profile = "a40", as_json: AsJson = False) -> None:
    """Walk a profile's paths with random weights of its model's shapes, on this CPU.

    In minutes and a few GB it counts what each path computes, moves and holds, and projects the
    time and the memory on a 48 GB GPU. What is found is stored, and shown in the book.
    """
    from transformers.utils import logging

    from tipmini_lab.book import rehearsed
    from tipmini_lab.experiments import rehearsal
    from tipmini_lab.paths import REHEARSAL
    from tipmini_lab.results import store

    logging.disable_progress_bar()  # of loading a model, which is done for every walk
    found = rehearsal.rehearse(_profile(profile))
    store.write(REHEARSAL, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found) if as_json else rehearsed.told(found))


@in_checkout
def batch(
    step: Annotated[
        str, typer.Argument(help="all (a book), measured, trained, or reproduced")
    ] = "measured",
    group: option(
        list[str] | None,
        "what experiments/*/GROUP.yaml declares; again for several",
        known=group_names,
    ) = None,
    profile: Profile = "mini",
    jobs: option(int, "in which each group is split", min=1, max=999) = 1,
    cluster: option(Path | None, "folder of Snakemake settings, such as workflow/slurm") = None,
    dry_run: option(bool, "say what is stored, what would be measured and how long") = False,
) -> None:
    """Run a step of the workflow and what it needs, here or as jobs of a cluster.

    A killed one goes on by the same command; jobs that it left on the cluster are cancelled first.
    """
    from tipmini_lab.book import workflow

    if dry_run:
        require("step of a dry run", step, ("measured", "all"))
        for name in group or [None]:
            measure(group=name, profile=profile, dry_run=True)
        return
    workflow.run(profile, step, group or (), jobs, cluster)


@in_checkout
def publish(executed: Annotated[Path, typer.Argument(help="folder of executed notebooks")]) -> None:
    """Check executed notebooks and build the book of them (a step of `tipmini book`)."""
    from tipmini_lab import paths
    from tipmini_lab.book import again, answers, explorer, performance
    from tipmini_lab.book.claims import page
    from tipmini_lab.book.front_page import front_page_values
    from tipmini_lab.book.site import about, runs_page, staging

    audited = page.audit()
    values = page.page_values(audited=audited)  # a changed verdict is found at once
    values |= answers.page_values(audited) | front_page_values() | again.page_values()
    values |= about.page_values() | runs_page.page_values()
    pictures = performance.pictures() | answers.pictures(audited) | explorer.pictures()
    staging.stage(executed, paths.BUILD / "stage", values, pictures)
    weights = staging.build(paths.BUILD / "stage", paths.BUILD / "html")
    for name, size in sorted(weights.items(), key=lambda one: -one[1]):
        print(f"{size / 1e6:6.2f} MB  {name}")


@in_checkout
def pdf(
    out: Annotated[Path, typer.Argument(help="the file to write")] = Path("_build/book.pdf"),
) -> None:
    """Print the built book to one PDF file, by Chromium."""
    from tipmini_lab import paths
    from tipmini_lab.book.site import printing

    printing.pdf(paths.BUILD / "html", out)


@in_checkout
def archive() -> None:
    """Pack the commit, the book that was built of it, and their SHA-256 into one file."""
    from tipmini_lab import paths
    from tipmini_lab.book.site import archive

    print(archive.write(paths.BUILD / "html", paths.BUILD))


def show_cell(cell, as_json: bool) -> None:
    facts = cell.model_dump(include={"method", "task", "metric", "dtype"})
    facts |= {"mean": cell.mean, "stderr": cell.stderr, "count": cell.count}
    line = f"{cell.method:7} {cell.task:14} {cell.metric:8} {cell.mean:.4f} +- {cell.stderr:.4f}"
    line += f" ({cell.count} examples, {cell.dtype})"
    print(json.dumps(facts) if as_json else line, flush=True)


@in_checkout
def claims(as_json: AsJson = False) -> None:
    """List every audited claim with its verdict in print and at this book's scale.

    Nothing is measured. A verdict that is not the declared one is an error: one line, exit code 2.
    """
    from tipmini_lab.book.claims import declared, page

    audited = page.audit()
    wide = max(len(each.claim.id) for each in audited)
    for name, paper in declared().items() if not as_json else ():
        own = [each for each in audited if each.claim.paper == name]
        print(f"{paper.title}: {len(own)} claims\n\n{'claim':{wide}}  {'in print':46}  here")
        for each in own:
            print(f"{each.claim.id:{wide}}  {each.in_print.verdict:46}  {page.told(each.here)}")
        print()
    if as_json:
        print(json.dumps([_facts(each) for each in audited], ensure_ascii=False))
    page.refuse_changed(audited)


def _facts(each) -> dict[str, object]:
    facts = each.claim.model_dump(mode="json")
    for level in ("in_print", "here"):
        asked = getattr(each.claim, level).model_dump(mode="json", exclude_defaults=True)
        told, found = {"declared": asked.pop("verdict")}, getattr(each, level)._asdict()
        facts[level] = asked | told | {k: v for k, v in found.items() if k != "compared"}
    return facts
