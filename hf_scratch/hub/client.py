"""Talks to the Hub: one commit or none, patience with a Hub that fails, and errors that say what to do.

`huggingface_hub` retries the upload of files by itself. Creating a repository or branch, validating a card, looking
something up and the commit itself it does not; here they are, and a commit whose answer was lost is not made twice.
No message of ours holds a token.
"""

import logging
import queue
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import (
    CommitOperation,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_scratch.hub.files import link_or_copy
from hf_scratch.hub.leaks import SECRET

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")

WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second and later tries
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP states that may be over at the next try
HTTP_ERROR = HfHubHTTPError.__mro__[1]  # of httpx or httpx2, whichever the Hub's client was built on
STALE = 412  # the branch has moved since the commit was prepared
# Weights that programs would load in place of, or beside, those that are committed.
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
MADE, HOLDING = "Made by hf-scratch", "It holds:"  # in the message of a commit, which lists our files


class HubError(ValueError):
    """What the Hub refused or could not do, and what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(hide(message))


def hide(text: str) -> str:
    """Return the text without the token that is in use, nor anything that looks like one."""
    token = get_token()
    return SECRET.sub("(hidden)", text.replace(token, "(hidden)") if token else text)


@dataclass(frozen=True)
class Target:
    """A branch of a repository."""

    repo_id: str
    kind: Literal["model", "space", "dataset"] = "model"
    branch: str = "main"

    @property
    def where(self) -> dict[str, str]:
        """The arguments by which the client knows the repository."""
        return {"repo_id": self.repo_id, "repo_type": self.kind}

    def __str__(self) -> str:
        kind = "" if self.kind == "model" else f"the {self.kind} "
        return f"{kind}{self.repo_id}" + ("" if self.branch == "main" else f" (branch {self.branch})")


def check_repo_id(repo_id: str) -> None:
    """Raise HubError for a name that the Hub does not take; no request is sent."""
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        reason = str(error).split(":")[0].rstrip(".")
        raise HubError(
            f"{repo_id!r} is not a name that the Hub takes ({reason}); write OWNER/NAME with letters, digits, "
            "'-', '_' and '.', at most 96 of them."
        ) from None


def find_model(model: str) -> Path | None:
    """Return the folder of a model, None if it is a Hub id.

    Raises:
        ValueError: It is neither: a folder without a model, a path where there is nothing, or no name for the Hub.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        # A run's release, the model of a stage, or the checkpoints of one that goes on.
        places = ("release/model", "model", "checkpoints/step-*")
        inside = [path for place in places for path in sorted(folder.glob(f"{place}/config.json"))[-1:]]
        hint = f"did you mean {inside[0].parent}?" if inside else "give a model's folder or a Hub id."
        raise ValueError(f"{model} holds no model (no config.json); {hint}")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ValueError(f"there is no folder {model}; give a model's folder, or a Hub id such as user/name.")
    check_repo_id(model)
    return None


def find_folder(model: str, revision: str, cache: Path) -> Path:
    """Return the folder of a model; a repository of the Hub is downloaded into the cache if it is not there."""
    return find_model(model) or download(HfApi(), Target(model), revision, cache)


# ---- requests ----


def call(what: str, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call the Hub's client and try again while the failure may pass; so the function must be safe to call twice.

    Raises:
        HubError: It failed for good, or at every try.
    """
    for wait in (*WAITS, None):
        try:
            return function(*args, **kwargs)
        except HubError:  # it says already what to do
            raise
        except Exception as error:
            if wait is None or not may_pass(error):
                raise explain(what, error) from None
            LOG.warning("%s: %s; trying again in %.0f s", what, reason(error), wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def http_error(error: BaseException | None) -> Exception | None:
    """Return the HTTP error that an exception is or was raised from."""
    while error is not None and not isinstance(error, (HTTP_ERROR, OfflineModeIsEnabled)):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, Exception) else None


def status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception came from; None without an answer."""
    found = http_error(error)
    return found.response.status_code if isinstance(found, HfHubHTTPError) else None


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: the Hub was busy or broken, or the connection was lost."""
    found = http_error(error)
    if found is None or isinstance(found, OfflineModeIsEnabled):
        return False
    return status(error) in PASSING if isinstance(found, HfHubHTTPError) else True


def reason(error: BaseException) -> str:
    """Return in a few words why a request failed, without tokens."""
    found = http_error(error)
    if isinstance(found, HfHubHTTPError):
        said = found.server_message or found.response.headers.get("X-Error-Message") or ""
        text = f"HTTP {found.response.status_code}" + (f", {said}" if said else "")
    else:
        text = " ".join(str(found or error).split())[:200] or type(found or error).__name__
    return hide(text)


def explain(what: str, error: Exception) -> Exception:
    """Return the error to show: what was tried, why it failed and what to do."""
    if isinstance(error, LocalTokenNotFoundError):
        return HubError(f"{what}: there is no token; run `hf auth login` or set HF_TOKEN.")
    found = http_error(error)
    if isinstance(found, OfflineModeIsEnabled):
        return HubError(f"{what}: the Hub is switched off by HF_HUB_OFFLINE; unset it.")
    if found is None:
        return error
    mend = {
        400: "mend what it names.",
        401: "the token is missing, wrong or expired, or there is no such repository; `hf auth whoami` says who you "
        "are, `hf auth login` or HF_TOKEN sets a token.",
        402: "new Gradio Spaces are for PRO accounts, so take `--space-kind static`, which is free and runs a small "
        "model in the visitor's browser, or `--space-hardware zero-a10g`, of which a free account in good standing "
        "gets two.",
        403: "the token has no right to do this; take one with write access to this owner's repositories.",
        404: "there is no such repository, branch or file; check the name.",
    }.get(status(error) or 0)
    if mend is None and may_pass(error):
        mend = "the Hub does not work right now; the same command goes on where this one stopped."
    return HubError(f"{what}: {reason(error)}; {mend or 'run the same command again.'}")


# ---- repositories ----


def ensure_repo(api: HfApi, target: Target, private: bool | None = None, **space: Any) -> None:
    """Create the repository and the branch where they do not exist.

    Raises:
        HubError: The Hub refused, or the repository is there and public where it is to be private.
    """
    what = f"creating {target}"
    call(what, api.create_repo, **target.where, private=private, exist_ok=True, **space)
    if private:
        require_private(api, target)
    if target.branch != "main":
        # Branches off from the first commit: what main holds is not part of it.
        first = call(what, api.list_repo_commits, **target.where)[-1].commit_id
        call(what, api.create_branch, **target.where, branch=target.branch, revision=first, exist_ok=True)


def require_private(api: HfApi, target: Target) -> None:
    """Raise HubError if the repository is there and anybody may read it."""
    what = f"looking up {target}"
    there = call(what, api.repo_exists, **target.where)
    if there and not is_private(api, target):
        raise HubError(
            f"{target} is there and public, and what goes there was to be private; nothing was sent. Make it private "
            "in its settings on the Hub, or take another name."
        )


def is_private(api: HfApi, target: Target) -> bool:
    """Whether only its owner may read a repository."""
    return bool(call(f"looking up {target}", api.repo_info, **target.where).private)


def head(api: HfApi, target: Target) -> str:
    """Return the newest commit of the branch."""
    found = call(f"looking up {target}", api.repo_info, **target.where, revision=target.branch).sha
    assert found is not None, "the Hub names a commit for every branch"
    return found


def commit(api: HfApi, target: Target, files: Mapping[str, Path | bytes], title: str) -> str:
    """Make the branch hold the files, in one commit, and return its id; without a difference there is no commit.

    Each commit lists its files in its message. Those that our last one lists and this one lacks are removed, and
    weights that are not these; other people's files stay.

    Raises:
        HubError: Nothing was committed, because the Hub refused, failed at every try, or somebody else committed
            meanwhile.
    """
    parent = head(api, target)
    operations: list[CommitOperation] = [CommitOperationAdd(path, content) for path, content in files.items()]
    there = call(f"listing {target}", api.list_repo_files, **target.where, revision=parent)
    ours = committed_before(api, target)
    stale = [path for path in there if path not in files and (path in ours or WEIGHTS.fullmatch(path))]
    operations += [CommitOperationDelete(path) for path in stale]
    mark = f"{MADE} {uuid.uuid4().hex}"
    what = f"the commit to {target}"

    def try_once() -> str:
        try:
            info = api.create_commit(
                target.repo_id,
                repo_type=target.kind,
                operations=operations,
                commit_message=title,
                commit_description="\n".join([mark, "", HOLDING, *sorted(files)]),
                revision=target.branch,
                parent_commit=parent,
            )
        except Exception as error:
            if found := find_commit(api, target, parent, mark):
                return found
            if status(error) == STALE:
                raise HubError(f"{what}: somebody else has changed it meanwhile; run the command again.") from None
            raise
        return str(info.oid)

    return call(f"{what} (nothing was committed)", try_once)


def committed_before(api: HfApi, target: Target) -> set[str]:
    """Return the files that our last commit on the branch lists."""
    commits = call(f"listing {target}", api.list_repo_commits, **target.where, revision=target.branch)
    listed = (found.message.partition(f"{HOLDING}\n") for found in commits if MADE in found.message)
    return next((set(files.splitlines()) for _, holding, files in listed if holding), set())


def find_commit(api: HfApi, target: Target, parent: str, mark: str) -> str | None:
    """Return the commit with the mark among those after `parent`: it was made, and only the answer was lost."""
    if head(api, target) == parent:
        return None
    commits = call(f"listing {target}", api.list_repo_commits, **target.where, revision=target.branch)
    return next((found.commit_id for found in commits if mark in found.message), None)


def download(api: HfApi, target: Target, revision: str, cache: Path) -> Path:
    """Download a revision into a cache folder and return where its files are."""
    folder = call(
        f"downloading {target}",
        snapshot_download,
        **target.where,
        revision=revision,
        cache_dir=cache,
        token=api.token,
        endpoint=api.endpoint,
    )
    return Path(folder)


# ---- checkpoints while training goes on ----


class CheckpointPusher:
    """Pushes checkpoints as branches `step-N` of a repository, from a thread of its own.

    Training waits neither for the Hub nor for a failure of it: one that could not be pushed is said and left out.
    """

    def __init__(self, repo_id: str, waiting: Path, *, leave_out: Sequence[str], private: bool = True) -> None:
        """Give the repository, which is made if need be, a folder for what waits, and what is not pushed."""
        check_repo_id(repo_id)
        self.repo_id, self.folder, self.leave_out, self.private = repo_id, waiting, leave_out, private
        self.api = HfApi()
        self.failed: list[str] = []
        self.waiting: queue.Queue[tuple[int, Path] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self.thread.start()

    def push(self, step: int, checkpoint: Path) -> None:
        """Take a checkpoint, a model's folder; returns at once.

        Its files are linked, not copied, so that they may be removed from where they are.
        """
        folder = self.folder / f"step-{step}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir(parents=True)
        for path in checkpoint.iterdir():
            if path.name not in self.leave_out:
                link_or_copy(path, folder / path.name)
        self.waiting.put((step, folder))

    def close(self) -> None:
        """Wait until everything was pushed."""
        self.waiting.put(None)
        self.thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self) -> None:
        while (item := self.waiting.get()) is not None:
            step, folder = item
            target = Target(self.repo_id, branch=f"step-{step}")
            try:
                ensure_repo(self.api, target, private=self.private)
                commit(self.api, target, {path.name: path for path in folder.iterdir()}, f"Step {step}")
            except Exception as error:  # whatever it is, training goes on
                LOG.warning("step %d was not pushed: %s", step, error)
                self.failed.append(target.branch)
            shutil.rmtree(folder, ignore_errors=True)


def endpoint() -> str:
    """Return the address of the Hub."""
    return str(constants.ENDPOINT)
