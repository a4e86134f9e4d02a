"""Publishes a release: verified before the upload, pushed as one commit, downloaded and verified again.

The Space that goes with it is pinned to the commit that was verified. What fails a check is not pushed.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi

from hf_scratch.hub import client
from hf_scratch.hub.card import citation
from hf_scratch.hub.check import require
from hf_scratch.hub.client import HubError, Target
from hf_scratch.hub.files import link_or_copy
from hf_scratch.hub.leaks import check_leaks
from hf_scratch.hub.page import MAX_BYTES, STAGES, BuildPage, fits, page_models, pin_page, size
from hf_scratch.hub.verify import FOLDER, load_reference, verify_with_exports

PINNED = ("MODEL_ID", "MODEL_REVISION", "STAGES")  # what the Space's app reads, and is set for it
NOT_OURS = {".DS_Store", "__pycache__"}


@dataclass(frozen=True, kw_only=True)
class Space:
    """What the demo Space gets: its id, and what is not in its files."""

    repo_id: str
    kind: Literal["static", "gradio"] | None = None  # None: static where the model is small enough for a browser
    page: BuildPage | None = None  # makes what a static Space holds; None: the Space is a Gradio one
    hardware: str | None = None  # the Hub's name of it; `zero-a10g` is ZeroGPU
    secrets: Sequence[str] = ()  # names of environment variables whose values become secrets of the Space


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be published, where."""

    repo_id: str
    space: Space | None = None
    private: bool | None = None  # None: private repositories stay so, new ones are public
    branch: str = "main"
    stages: Sequence[str] = field(default=())  # empty: the release itself


@dataclass(frozen=True)
class Ready:
    """What was copied and verified, and may go up."""

    models: list[tuple[Target, Path]]  # where each goes, and its folder; the one that the Space shows is the last
    page: Path | None = None  # folder of a static Space
    app: dict[str, Path] = field(default_factory=dict)  # files of a Gradio Space by their path in the repository


def publish(run: Path, plan: Plan, say: Callable[[str], None], *, dry_run: bool = False) -> None:
    """Publish the release of a run.

    Args:
        run: Folder of the run, or of its release.
        say: Gets each line about what is done.
        dry_run: Do all but what needs the Hub.

    Raises:
        ValueError: No release, a check failed, or the Hub refused. Except after the upload, nothing was changed then.
    """
    release, api = find_release(run), HfApi()
    plans = targets(release, plan)
    for target, _ in plans:
        check_names(target, plan.space)
    # In the release, where files are linked and not copied.
    with tempfile.TemporaryDirectory(dir=release, prefix=".publish-") as scratch:
        ready = prepare(release, plan, plans, Path(scratch), say)
        if dry_run:
            for target, folder in ready.models:
                list_files(target, folder, say)
            if plan.space and ready.page:
                list_files(Target(plan.space.repo_id, kind="space"), ready.page, say)
            return
        push(api, ready, plan, released_as(release), say)
    last = plans[-1][0]
    branch = "" if last.branch == "main" else f" --revision {last.branch}"
    say(f"Talk to it:  hf-scratch chat {last.repo_id}{branch}")


def prepare(
    release: Path, plan: Plan, plans: list[tuple[Target, Path]], folder: Path, say: Callable[[str], None]
) -> Ready:
    """Copy into the folder what is to go up, and verify all of it, before the first of it does.

    Raises:
        ValueError: A check failed.
    """
    static = plan.space is not None and is_static(plan.space, release)
    app = copy_space(release, folder / "space") if plan.space and not static else {}
    models = [(target, folder / source.name) for target, source in plans]
    for (target, copy), (_, source) in zip(models, plans, strict=True):
        copy_for(target, source, copy, release, plan.space)
        require_good(copy, say)
    if not (static and plan.space and plan.space.page):
        return Ready(models, app=app)
    page = folder / "page"
    plan.space.page(release / "browser", page_models(release), page, say)
    own = [path for name, path in listing(page).items() if not name.startswith("vendor/")]
    require([check_leaks(page, own)], "nothing was pushed: the page in the browser")
    return Ready(models, page)


def push(api: HfApi, ready: Ready, plan: Plan, released: str, say: Callable[[str], None]) -> None:
    """Push the models, and then the Space, which names the commits that they got.

    Args:
        released: The Hub id that the release was made for, which the Space's files name.
    """
    if plan.private:
        spaces = [Target(plan.space.repo_id, kind="space")] if plan.space else []
        for target in [*(target for target, _ in ready.models), *spaces]:
            client.require_private(api, target)
    pushed = {copy.name: push_model(api, target, copy, plan.private, say) for target, copy in ready.models}
    if plan.space and ready.page:
        push_page(api, plan.space, ready.page, released, list(pushed.values())[-1], plan.private, say)
    elif plan.space:
        push_space(api, plan.space, ready.app, released, pushed, plan.private, say)
        if plan.private and "HF_TOKEN" not in plan.space.secrets:
            say("The Space needs a token to read the private model: run again with --space-secret HF_TOKEN.")


def find_release(run: Path) -> Path:
    """Return the release folder, which holds `model` and `space`."""
    for folder in (run / "release", run):
        if (folder / "model" / "config.json").is_file():
            return folder
    raise ValueError(
        f"{run} holds no release (no release/model/config.json); make it with "
        f"`python -m training.release --run {run} --output_dir {run}/release`, or check the path."
    )


def targets(release: Path, plan: Plan) -> list[tuple[Target, Path]]:
    """Return which folder goes where, the one that a Space shows last.

    Stages go to branches of their own beside the release, or, where the id has `{stage}` in it, to repositories.
    """
    own, stages = "{stage}" in plan.repo_id, " ".join(plan.stages)
    found = []
    for stage in plan.stages:
        if stage not in STAGES:
            raise ValueError(f"--stages {stage!r} is not one of {', '.join(STAGES)}.")
        folder = release / "stages" / stage
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} does not exist; {make_again(release, stages)}.")
        if load_reference(folder) is None:
            raise ValueError(
                f"{folder} was copied only, for the Space, without what its model said when it was trained; "
                f"{make_again(release, stages)}."
            )
        target = Target(plan.repo_id.replace("{stage}", stage), branch="main" if own else stage)
        found.append((target, folder))
    return found if own else [*found, (Target(plan.repo_id, branch=plan.branch), release / "model")]


def make_again(release: Path, stages: str) -> str:
    """Say how a release is made whose stages are fit to be published."""
    where = f"--run {release.parent} --output_dir {release}"
    return f"make it with `python -m training.release {where} --stages {stages}`"


def check_names(target: Target, space: Space | None) -> None:
    """Raise HubError for a name that cannot be, before anything is done."""
    client.check_repo_id(target.repo_id)
    if space:
        client.check_repo_id(space.repo_id)
        for name in space.secrets:
            if name not in os.environ:
                raise ValueError(f"--space-secret {name}: there is no such environment variable; set it first.")


# ---- the model ----


def copy_for(target: Target, folder: Path, ready: Path, release: Path, space: Space | None) -> None:
    """Copy the model's folder with the card naming the id and branch it will have, and the Space that shows it."""
    for path in listing(folder).values():
        copy = ready / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, copy)
    card = ready / "README.md"
    if card.is_file():
        text, released = card.read_text(encoding="utf-8"), released_as(release)
        title = text.partition("\n# ")[2].partition("\n")[0]
        text = text.replace(citation(title, released), citation(title, target.repo_id))
        text = name_model(text, released, target.repo_id)
        if target.branch != "main":
            text = text.replace("(name, trust_remote", f'(name, revision="{target.branch}", trust_remote')
        if space:
            link = f"[a page to talk to it]({client.endpoint()}/spaces/{space.repo_id})"
            text = text.replace("## Results\n", f"In the browser: {link}.\n\n## Results\n", 1)
        card.unlink()  # it is the release's own file under a second name
        card.write_text(text, encoding="utf-8")


def name_model(card: str, released: str, repo_id: str) -> str:
    """Return a card with the id that was released replaced; a longer id that it is a part of is another model's."""
    return re.sub(rf"(?<![\w.-]){re.escape(released)}(?![\w-]|\.\w)", repo_id, card)


def released_as(release: Path) -> str:
    """Return the Hub id that the release was made for, which its card and Space name."""
    path = release / "stage.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder that training.release made.")
    return json.loads(path.read_text(encoding="utf-8"))["config"]["repo_id"]


def require_good(folder: Path, say: Callable[[str], None]) -> None:
    """Verify the folder against what its model said when it was trained.

    Raises:
        ValueError: A check failed; nothing was pushed.
    """
    if load_reference(folder) is None:
        raise ValueError(
            f"{folder.name} of the release does not say what its model said when it was trained (no {FOLDER}/); "
            "remove the release's stage.json and make it again with `python -m training.release`."
        )
    checks = verify_with_exports(folder)
    require(checks, "nothing was pushed: the release")
    say(f"{len(checks)} checks passed in a clean process.")


def list_files(target: Target, folder: Path, say: Callable[[str], None]) -> None:
    """Say what would be pushed."""
    say(f"{target} would get these files; nothing was sent.")
    for path, length in sorted(sizes(folder).items()):
        say(f"  {length:>13,} bytes  {path}")


def push_model(api: HfApi, target: Target, ready: Path, private: bool | None, say: Callable[[str], None]) -> str:
    """Push the folder in one commit, verify what the Hub now holds, and return ID@COMMIT."""
    client.ensure_repo(api, target, private)
    commit = client.commit(api, target, dict(listing(ready)), f"Publish {target.repo_id.split('/')[1]}")
    say(f"{client.endpoint()}/{target.repo_id}/tree/{commit} holds {sum(sizes(ready).values()):,} bytes.")
    with tempfile.TemporaryDirectory() as cache:
        pushed = client.download(api, target, commit, Path(cache))
        checks = verify_with_exports(pushed, load_reference(ready))
    try:
        require(checks, f"commit {commit} of {target} is bad; do not use it, and publish again: it")
    except ValueError as error:
        raise HubError(str(error)) from None
    say(f"{len(checks)} checks passed with what was downloaded from there.")
    return f"{target.repo_id}@{commit}"


def listing(folder: Path) -> dict[str, Path]:
    """Return the folder's files by their path in the repository.

    What lies in a hidden folder is no part of it: git's own, a cache, or an export that was killed on the way.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {path.relative_to(folder): path for path in files}
    return {
        name.as_posix(): path
        for name, path in named.items()
        if not NOT_OURS & set(name.parts) and not any(part.startswith(".") for part in name.parts[:-1])
    }


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file by its path in the repository."""
    return {name: path.stat().st_size for name, path in listing(folder).items()}


# ---- the Space ----


def is_static(space: Space, release: Path) -> bool:
    """Whether the Space is the page that computes in the visitor's browser.

    Raises:
        ValueError: That cannot be: the model is too large, or the Space is to have hardware or secrets.
    """
    model = release / "model"
    if space.page is None:
        return False
    if space.hardware or space.secrets:
        if space.kind == "static":
            raise ValueError(
                "a static Space has no hardware and no secrets; leave them out, or take --space-kind gradio."
            )
        return False
    if space.kind == "static" and not fits(model):
        raise ValueError(
            f"the weights have {size(model):,} bytes in 16 bits; a page in the browser takes {MAX_BYTES:,}, which "
            "people wait for and a phone can compute with. Take --space-kind gradio."
        )
    return fits(model) if space.kind is None else space.kind == "static"


def push_page(
    api: HfApi, space: Space, page: Path, released: str, shown: str, private: bool | None, say: Callable[[str], None]
) -> None:
    """Create or update the static Space, whose weights were made from what was pushed at this very commit.

    Args:
        released: The Hub id that the release was made for, to be replaced.
        shown: ID@COMMIT of the model.
    """
    target, (model_id, _, commit) = Target(space.repo_id, kind="space"), shown.partition("@")
    pin_page(page, model_id, commit, client.endpoint())
    readme = page / "README.md"
    readme.write_text(name_model(readme.read_text(encoding="utf-8"), released, model_id), encoding="utf-8")
    if not private and client.is_private(api, Target(model_id)):
        private = True  # the weights lie in the Space, too
    client.ensure_repo(api, target, private, space_sdk="static")
    head = client.commit(api, target, dict(listing(page)), f"Show {model_id} at {commit[:8]}")
    say(f"{client.endpoint()}/spaces/{space.repo_id} runs it in the visitor's browser (commit {head}).")


def copy_space(release: Path, folder: Path) -> dict[str, Path]:
    """Copy the Space's files and return them by their path in the repository; what goes up is what was looked at here.

    Raises:
        ValueError: A secret or a path of this machine is in them, or the app cannot be pinned to a commit.
    """
    files = {name: folder / name for name in listing(release / "space")}
    for name, copy in files.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(release / "space" / name, copy)
    require([check_leaks(release / "space", list(files.values()))], "nothing was pushed: the Space")
    pin(files["app.py"].read_text(encoding="utf-8"), dict.fromkeys(PINNED, ""))
    return files


def push_space(
    api: HfApi, space: Space, copied: dict[str, Path], released: str, pushed: dict[str, str],
    private: bool | None, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Create or update the Space, whose app loads what was pushed at these very commits.

    Args:
        released: The Hub id that the Space's files name, to be replaced.
        pushed: ID@COMMIT of each model by the name of its folder; the last one is shown, the others are compared.
    """
    target = Target(space.repo_id, kind="space")
    *others, (_, shown) = pushed.items()
    model_id, _, commit = shown.partition("@")
    stages = " ".join(f"{name}={place}" for name, place in others)
    files: dict[str, Path | bytes] = dict(copied)
    files["README.md"] = name_model(copied["README.md"].read_text(encoding="utf-8"), released, model_id).encode()
    app = copied["app.py"].read_text(encoding="utf-8")
    files["app.py"] = pin(app, dict(zip(PINNED, (model_id, commit, stages), strict=True))).encode()
    files["requirements.txt"] = fit_hardware(copied["requirements.txt"].read_text(encoding="utf-8"), space.hardware)
    there = client.call(f"looking up {target}", api.repo_exists, **target.where)
    # With its hardware from the start: a free account gets a Gradio Space on ZeroGPU only, and only so.
    client.ensure_repo(api, target, private, space_sdk="gradio", space_hardware=space.hardware)
    for name in space.secrets:
        client.call(f"setting a secret of {target}", api.add_space_secret, space.repo_id, name, os.environ[name])
    if space.hardware and there:
        client.call(f"asking hardware for {target}", api.request_space_hardware, space.repo_id, space.hardware)
    head = client.commit(api, target, files, f"Show {model_id} at {commit[:8]}")
    say(f"{client.endpoint()}/spaces/{space.repo_id} shows it (commit {head}).")


def fit_hardware(requirements: str, hardware: str | None) -> bytes:
    """Return the Space's requirements; on a GPU without the index of builds for processors."""
    lines = requirements.splitlines(keepends=True)
    on_gpu = hardware is not None and not hardware.startswith("cpu")
    return "".join(line for line in lines if not (on_gpu and "/whl/cpu" in line)).encode()


def pin(app: str, defaults: dict[str, str]) -> str:
    """Return the app's code with what these environment variables are unless the Space's settings say otherwise."""
    for name, value in defaults.items():
        app, count = re.subn(rf'environ\.get\("{name}"(, "[^"]*")?\)', f'environ.get("{name}", "{value}")', app)
        if count != 1:
            raise ValueError(f"the Space's app.py does not read {name} once, so it cannot be pinned to a commit.")
    return app
