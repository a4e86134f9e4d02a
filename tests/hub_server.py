"""A Hub for tests: speaks the parts of its HTTP protocol that publishing and loading need, on loopback, in memory.

Repositories of models, data sets and Spaces with branches and commits, files in git or LFS, tokens with rights,
and faults on demand: an answer with an error status, a connection that breaks in the middle of an upload, an answer
that is lost after its request was carried out. By hand, it says what to set, and runs until it is stopped:

    python tests/hub_server.py
"""

import base64
import hashlib
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_pages import front_matter_errors, static_file

MAX_REGULAR = 10_000_000  # bytes; git takes no more in a commit
LFS_SUFFIXES = (".safetensors", ".gguf", ".onnx", ".png", ".bin", ".data")
WRITER, READER = "hf_" + "w" * 34, "hf_" + "r" * 34
TOKENS = {WRITER: ("user", True), READER: ("user", False)}
PAGE = 5  # entries of a listing; the real Hub gives 1,000, and this makes a test of what comes after the first page


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD path" the pattern finds."""

    pattern: str
    action: int | str  # an HTTP status; "drop": the connection breaks; "lose": it breaks once all is done
    times: int = 1


@dataclass(frozen=True)
class Commit:
    """A state of a branch: files by path, as content or as ("lfs", SHA-256)."""

    oid: str
    title: str
    message: str
    files: dict[str, Any]


@dataclass
class Repo:
    """A repository."""

    kind: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)  # of each branch, oldest first
    extra: dict[str, Any] = field(default_factory=dict)  # hardware, secrets, sdk

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch or id names."""
        return self.commits.get(self.history[revision][-1] if revision in self.history else revision)


class Refused(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class HubServer:
    """The Hub: start it with `with HubServer() as hub`, then give `hub.url` to a client as HF_ENDPOINT."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.pro = False  # whether the account pays: a free one gets static Spaces, and two on ZeroGPU
        self.spoils = False  # flips a bit of every file that it stores
        self.requests: list[str] = []  # "METHOD path" of each
        self.lock = threading.RLock()
        self.counter = itertools.count()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        # Files come from another host, to which the client must not send its token.
        self.storage = f"http://localhost:{self.http.server_port}/lfs"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def fail(self, pattern: str, action: int | str, times: int = 1) -> None:
        """Make the next requests that the pattern finds go wrong."""
        self.faults.append(Fault(pattern, action, times))

    def take_fault(self, request: str) -> int | str | None:
        """Return what goes wrong with this request."""
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault.action
        return None

    def create(self, repo_id: str, kind: str = "model", private: bool = False) -> Repo:
        """Make a repository with its first commit."""
        repo = self.repos[kind, repo_id] = Repo(kind, private)
        self.commit(repo, "main", "initial commit", "", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repo

    def commit(self, repo: Repo, branch: str, title: str, message: str, files: dict[str, Any]) -> str:
        """Put a commit on a branch."""
        text = f"{next(self.counter)} {title} {sorted(files)}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        repo.commits[oid] = Commit(oid, title, message, files)
        repo.history.setdefault(branch, []).append(oid)
        return oid

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Return what a revision holds."""
        found = self.repos[kind, repo_id].find(revision)
        assert found, revision
        return {path: self.content(entry) for path, entry in found.files.items()}

    def content(self, entry: Any) -> bytes:
        """Return the bytes of a file."""
        return self.lfs[entry[1]] if isinstance(entry, tuple) else entry


Routes = list[tuple[str, str, Callable[..., Any]]]


class Handler(BaseHTTPRequestHandler):
    """One connection; `route` says which method answers which path."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; `hub.requests` has it."""

    def answer(self) -> None:
        """Answer a request, or fail as was asked for."""
        url = urlsplit(self.path)
        request = f"{self.command} {url.path}"
        fault = self.hub.take_fault(request)
        self.hub.requests.append(request)
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "drop":
            self.rfile.read(length // 2)
            return self.break_off()
        self.body = self.read_body(length)
        if isinstance(fault, int):
            return self.send(fault, {"error": "a fault on demand"})
        try:
            with self.hub.lock:
                status, content, headers = self.route(url.path, parse_qs(url.query))
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            status, content = refused.status, {"error": refused.message}
        if fault == "lose":
            return self.break_off()
        self.send(status, content, headers)

    def read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        """Send JSON or bytes."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- which method answers ----

    def route(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any, dict[str, str]]:
        """Return status, content and headers."""
        kind, repo = r"(models|spaces|datasets)", r"([\w.-]+/[\w.-]+)"
        routes: Routes = [
            ("POST", r"/api/repos/create", self.create_repo),
            ("POST", r"/api/validate-yaml", self.validate_yaml),
            ("GET", r"/api/whoami-v2", lambda: {"name": self.writer(None), "type": "user"}),
            ("GET", rf"/api/{kind}/{repo}", self.repo_info),
            ("GET", rf"/api/{kind}/{repo}/revision/([^/]+)", self.repo_info),
            ("GET", rf"/api/{kind}/{repo}/tree/([^/]+)((?:/.*)?)", lambda *args: self.tree(query, *args)),
            ("POST", rf"/api/{kind}/{repo}/paths-info/([^/]+)", self.paths_info),
            ("GET", rf"/api/{kind}/{repo}/commits/([^/]+)", self.commits),
            ("POST", rf"/api/{kind}/{repo}/preupload/([^/]+)", self.preupload),
            ("POST", rf"/api/{kind}/{repo}/commit/([^/]+)", self.make_commit),
            ("POST", rf"/api/{kind}/{repo}/branch/([^/]+)", self.make_branch),
            ("POST", rf"/api/{kind}/{repo}/(secrets|hardware)", self.set_extra),
            ("POST", rf"/((?:spaces/|datasets/)?){repo}\.git/info/lfs/objects/batch", self.lfs_batch),
            ("PUT", r"/lfs/(\w+)", self.lfs_put),
            ("POST", r"/lfs-verify", dict),
            ("GET", r"/lfs/(\w+)", self.lfs_get),
            ("GET", rf"/((?:spaces/|datasets/)?){repo}/resolve/([^/]+)/(.+)", self.resolve),
            ("GET", rf"/static/{repo}/(.*)", self.static),
        ]
        method = "GET" if self.command == "HEAD" else self.command
        for allowed, pattern, function in routes:
            if method == allowed and (found := re.fullmatch(pattern, path)):
                answer = function(*map(unquote, found.groups()))
                return answer if isinstance(answer, tuple) else (200, answer, {})
        raise Refused(404, f"no such page: {path}", "EntryNotFound" if "/tree/" in path else "")

    def json(self) -> Any:
        return json.loads(self.body)

    # ---- rights ----

    def user(self) -> tuple[str, bool] | None:
        """Return who asks and whether they may write; None is anybody."""
        sent = self.headers.get("Authorization")
        if sent is None:
            return None
        if (token := sent.removeprefix("Bearer ")) not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def writer(self, repo_id: str | None) -> str:
        """Return who asks; refuse who may not write."""
        found = self.user()
        if found is None:
            raise Refused(401, "Invalid username or password.")
        if repo_id and (not found[1] or repo_id.split("/")[0] != found[0]):
            raise Refused(403, f"You don't have the rights to write to {repo_id.split('/')[0]}")
        return found[0]

    def repo(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        who = self.user()
        repo = self.hub.repos.get((kind.rstrip("s/") or "model", repo_id))
        if repo is None or (repo.private and who is None):
            raise Refused(404 if who else 401, "Repository not found", "RepoNotFound")
        if write:
            self.writer(repo_id)
        return repo

    def found(self, kind: str, repo_id: str, revision: str) -> Commit:
        commit = self.repo(kind, repo_id).find(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- repositories ----

    def create_repo(self) -> Any:
        asked = self.json()
        kind = asked.get("type") or "model"
        owner = asked.get("organization") or self.writer(None)
        repo_id = f"{owner}/{asked['name']}"
        self.writer(repo_id)
        url = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            return 409, {"error": "You already created this repo", "url": url}, {}
        hardware = asked.get("hardware")
        if kind == "space" and asked.get("sdk") != "static" and not self.hub.pro and not self.may_have(hardware):
            raise Refused(402, "Payment Required: creating Gradio and Docker Spaces needs a PRO subscription")
        repo = self.hub.create(repo_id, kind, asked.get("visibility") == "private")
        repo.extra |= {"sdk": asked.get("sdk")} | ({"hardware": hardware} if hardware else {})
        return {"url": url, "name": repo_id}

    def may_have(self, hardware: str | None) -> bool:
        """Whether a free account gets a Space that computes."""
        taken = [repo for repo in self.hub.repos.values() if repo.extra.get("hardware") == "zero-a10g"]
        return hardware == "zero-a10g" and len(taken) < 2

    def validate_yaml(self) -> Any:
        wrong = front_matter_errors(self.json()["content"])
        return 400 if wrong else 200, {"errors": [{"message": text} for text in wrong], "warnings": []}, {}

    def repo_info(self, kind: str, repo_id: str, revision: str = "main") -> Any:
        commit, repo = self.found(kind, repo_id, revision), self.repo(kind, repo_id)
        siblings = [{"rfilename": path} for path in commit.files]
        return {"id": repo_id, "sha": commit.oid, "private": repo.private, "siblings": siblings, "tags": []}

    def commits(self, kind: str, repo_id: str, revision: str) -> Any:
        self.found(kind, repo_id, revision)
        repo = self.repo(kind, repo_id)
        same = {"date": "2026-01-01T00:00:00.000Z", "authors": []}
        found = [repo.commits[oid] for oid in reversed(repo.history[revision])]
        return [same | {"id": commit.oid, "title": commit.title, "message": commit.message} for commit in found]

    def make_branch(self, kind: str, repo_id: str, branch: str) -> Any:
        repo = self.repo(kind, repo_id, write=True)
        if branch in repo.history:
            raise Refused(409, "Reference already exists")
        repo.history[branch] = [self.found(kind, repo_id, self.json().get("startingPoint", "main")).oid]
        return {}

    def set_extra(self, kind: str, repo_id: str, what: str) -> Any:
        repo, asked = self.repo(kind, repo_id, write=True), self.json()
        if what == "secrets":
            repo.extra.setdefault("secrets", {})[asked["key"]] = asked["value"]
            return {}
        repo.extra["hardware"] = asked["flavor"]
        return {"stage": "BUILDING", "hardware": {"current": None, "requested": asked["flavor"]}}

    # ---- files ----

    def tree(self, query: dict[str, list[str]], kind: str, repo_id: str, revision: str, under: str) -> Any:
        files = self.found(kind, repo_id, revision).files
        listed = [
            self.describe(path, entry) for path, entry in sorted(files.items()) if path.startswith(under.lstrip("/"))
        ]
        if under and not listed:
            raise Refused(404, f"{under} does not exist", "EntryNotFound")
        start = int(query.get("cursor", ["0"])[0])
        more = {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}>; rel="next"'}
        return 200, listed[start : start + PAGE], more if start + PAGE < len(listed) else {}

    def paths_info(self, kind: str, repo_id: str, revision: str) -> Any:
        files = self.found(kind, repo_id, revision).files
        return [self.describe(path, files[path]) for path in parse_qs(self.body.decode())["paths"] if path in files]

    def describe(self, path: str, entry: Any) -> dict[str, Any]:
        about = {"type": "file", "path": path, "size": len(self.hub.content(entry)), "oid": git_oid(entry)}
        if isinstance(entry, tuple):
            about["lfs"] = {"oid": entry[1], "size": about["size"], "pointerSize": 134}
        return about

    def preupload(self, kind: str, repo_id: str, revision: str) -> Any:
        there = self.repo(kind, repo_id, write=True) and self.found(kind, repo_id, revision).files
        answer = []
        for file in self.json()["files"]:
            path, entry = file["path"], there.get(file["path"])
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or file["size"] > MAX_REGULAR else "regular"
            oid = entry[1] if isinstance(entry, tuple) else git_oid(entry) if entry is not None else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def lfs_batch(self, kind: str, repo_id: str) -> Any:
        self.repo(kind, repo_id, write=True)
        objects = []
        for asked in self.json()["objects"]:
            actions = {"upload": {"href": f"{self.hub.storage}/{asked['oid']}", "header": {}}}
            actions["verify"] = {"href": f"{self.hub.url}/lfs-verify", "header": {}}
            objects.append(asked | ({} if asked["oid"] in self.hub.lfs else {"actions": actions}))
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> Any:
        assert "Authorization" not in self.headers
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content does not have the hash that was announced")
        self.hub.lfs[oid] = self.body[:-1] + bytes([self.body[-1] ^ 1]) if self.hub.spoils else self.body
        return {}

    def lfs_get(self, oid: str) -> Any:
        assert "Authorization" not in self.headers
        data, start = self.hub.lfs[oid], re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            return 200, data, {"ETag": f'"{oid}"'}
        first = int(start[1])
        return 206, data[first:], {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}", "ETag": f'"{oid}"'}

    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> Any:
        commit = self.found(kind, repo_id, revision)
        if path not in commit.files:
            message, headers = "Entry not found", {"X-Repo-Commit": commit.oid}
            return 404, {"error": message}, headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": message}
        entry, headers = commit.files[path], {"X-Repo-Commit": commit.oid}
        if isinstance(entry, tuple):
            headers |= {"X-Linked-Etag": f'"{entry[1]}"', "X-Linked-Size": str(len(self.hub.lfs[entry[1]]))}
            return 302, b"", headers | {"Location": f"{self.hub.storage}/{entry[1]}"}
        return 200, entry, headers | {"ETag": f'"{git_oid(entry)}"'}

    def static(self, repo_id: str, path: str) -> Any:
        found = static_file(self.hub.files(repo_id, kind="space"), path)
        if found is None:
            raise Refused(404, f"no such file: {path}", "EntryNotFound")
        return 200, *found

    def make_commit(self, kind: str, repo_id: str, branch: str) -> Any:
        """Carry out a commit, all of it or nothing."""
        repo = self.repo(kind, repo_id, write=True)
        if branch not in repo.history:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.history[branch][-1]) != repo.history[branch][-1]:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.found(kind, repo_id, branch).files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                if len(files[value["path"]]) > MAX_REGULAR:
                    raise Refused(400, f"{value['path']} is larger than 10 MB and must be in LFS")
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise Refused(400, f"{value['path']}: the object was not uploaded")
                files[value["path"]] = ("lfs", value["oid"])
            elif files.pop(value["path"], None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        oid = self.hub.commit(repo, branch, header["summary"], header["description"], files)
        return {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "commitOid": oid, "success": True}


def git_oid(entry: Any) -> str:
    """Return the id by which git knows a file."""
    data = f"lfs {entry[1]}".encode() if isinstance(entry, tuple) else entry
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


if __name__ == "__main__":
    with HubServer() as server:
        print("Its user is called `user`. For a shell that talks to it:")
        print(f"export HF_ENDPOINT={server.url} HF_TOKEN={WRITER}", end=" ")
        print("HF_HUB_DISABLE_XET=1 HF_HOME=$(mktemp -d)", flush=True)
        threading.Event().wait()
