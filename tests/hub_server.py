"""
A Hub on loopback: as much of the Hugging Face Hub's HTTP API as pushing and loading models takes.

Used through ``HF_ENDPOINT``. Repositories live in memory; every commit is a snapshot of all files.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Files = dict[str, bytes]


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


@dataclass
class Repository:
    """Commits by id, the newest last, and what branches and tags point to."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str, files: Files) -> str:
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        sha = digest.hexdigest()
        self.commits[sha] = files
        self.refs[revision] = sha
        return sha

    def sha(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.sha(revision) or ""]


class HubServer:
    """
    The server, to be used in a ``with`` statement.

    :param tokens: user by token; whoever sends one may write into that user's repositories and read
        them when they are private
    """

    def __init__(self, tokens: dict[str, str] | None = None):
        self.tokens = {"hf_alice": "alice", "hf_bob": "bob"} if tokens is None else tokens
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def changed(self, repo_id: str, files: Files, revision: str = "main") -> Iterator[str]:
        """Another commit on top, with these files changed, as long as the block lasts."""
        repository = self.repositories[repo_id]
        before = repository.refs[revision]
        try:
            yield repository.commit(revision, {**repository.files(revision), **files})
        finally:
            repository.refs[revision] = before


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        """Silent: what was asked for is in ``HubServer.requests``."""

    def _serve(self) -> None:
        self.server_hub.requests.append(f"{self.command} {self.path}")
        try:
            with self.server_hub.lock:
                self._route()
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
            self._send({"error": str(refused)}, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(
        self, content: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        all_headers = {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}
        for name, value in all_headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def user(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            return None
        if token not in self.server_hub.tokens:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return self.server_hub.tokens[token]

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        body = self._body()
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        match self.command, parts:
            case "GET", ["api", "whoami-v2"]:
                self._whoami()
            case "POST", ["api", "repos", "create"]:
                self._create(json.loads(body))
            case "POST", ["api", "validate-yaml"]:
                self._validate(json.loads(body)["content"])
            case "GET", ["api", "models", owner, name]:
                self._info(f"{owner}/{name}", "main")
            case "GET", ["api", "models", owner, name, "revision", revision]:
                self._info(f"{owner}/{name}", revision)
            case "GET", ["api", "models", owner, name, "tree", revision, *folder]:
                self._tree(f"{owner}/{name}", revision, "/".join(folder))
            case "POST", ["api", "models", owner, name, "preupload", revision]:
                self._preupload(f"{owner}/{name}", revision, json.loads(body))
            case "POST", ["api", "models", owner, name, "commit", revision]:
                self._commit(f"{owner}/{name}", revision, body)
            case "POST", ["api", "models", owner, name, "branch" | "tag" as kind, ref]:
                self._make_ref(f"{owner}/{name}", kind, ref, json.loads(body or b"{}"))
            case "HEAD" | "GET", [owner, name, "resolve", revision, *path]:
                self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case _:
                raise _Refused(404, "", f"No such address: {self.command} {self.path}")

    # -- repositories --------------------------------------------------------------------------

    def _repository(self, repo_id: str, write: bool = False) -> Repository:
        repository = self.server_hub.repositories.get(repo_id)
        is_owner = self.user == repo_id.split("/")[0]
        if repository is None or (repository.private and not is_owner):
            # As the Hub does: what may not be seen cannot be told from what is not there.
            status = 404 if self.user else 401
            raise _Refused(status, "RepoNotFound", "Repository not found")
        if write and not is_owner:
            raise _Refused(403, "", "You have no right to write here")
        return repository

    def _at(self, repository: Repository, revision: str) -> tuple[str, Files]:
        sha = repository.sha(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]

    def _whoami(self) -> None:
        if self.user is None:
            raise _Refused(401, "", "Invalid username or password.")
        self._send({"type": "user", "name": self.user, "orgs": []})

    def _create(self, asked: dict[str, Any]) -> None:
        if self.user is None:
            raise _Refused(401, "", "Invalid username or password.")
        repo_id = f"{asked.get('organization') or self.user}/{asked['name']}"
        if not repo_id.startswith(f"{self.user}/"):
            raise _Refused(403, "", f"You may not create a repository for {repo_id}")
        url = {"url": f"{self.server_hub.endpoint}/{repo_id}"}
        if repo_id in self.server_hub.repositories:
            self._send({**url, "error": "You already created this model repo"}, 409)
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        repository = Repository(private=bool(private))
        repository.commit("main", {".gitattributes": b""})
        self.server_hub.repositories[repo_id] = repository
        self._send(url)

    def _make_ref(self, repo_id: str, kind: str, ref: str, asked: dict[str, Any]) -> None:
        repository = self._repository(repo_id, write=True)
        if kind == "tag":  # the address names what is tagged, the body the tag
            ref, start = asked["tag"], ref
        else:
            start = asked.get("startingPoint", "main")
        if ref in repository.refs:
            raise _Refused(409, "", f"Reference already exists: {ref}")
        repository.refs[ref], _ = self._at(repository, start)
        self._send({})

    def _info(self, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_id)
        sha, files = self._at(repository, revision)
        siblings = [{"rfilename": name} for name in sorted(files)]
        about = {"id": repo_id, "modelId": repo_id, "private": repository.private, "tags": []}
        self._send({**about, "sha": sha, "siblings": siblings, "downloads": 0, "likes": 0})

    def _tree(self, repo_id: str, revision: str, folder: str) -> None:
        _, files = self._at(self._repository(repo_id), revision)
        prefix = f"{folder}/" if folder else ""
        inside = {name: content for name, content in files.items() if name.startswith(prefix)}
        if folder and not inside:
            raise _Refused(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for name, content in sorted(inside.items()):
            first, *rest = name.removeprefix(prefix).split("/")
            # A name that leads out of the repository is passed on as it is: clients must cope.
            if rest and not recursive and first != "..":
                path = prefix + first
                oid = hashlib.sha1(path.encode()).hexdigest()
                entries[path] = {"type": "directory", "path": path, "oid": oid, "size": 0}
            else:
                about = {"oid": git_blob_id(content), "size": len(content)}
                entries[name] = {"type": "file", "path": name, **about}
        self._send(list(entries.values()))

    # -- upload --------------------------------------------------------------------------------

    def _validate(self, content: str) -> None:
        """The front matter, as far as the Hub insists on its types."""
        errors = []
        try:
            _, matter, _ = content.split("---\n", 2)
            metadata = yaml.safe_load(matter)
            for name, kind in (("tags", list), ("library_name", str), ("license", str)):
                if not isinstance(metadata.get(name, kind()), kind):
                    errors.append(f'"{name}" must be a {kind.__name__}')
            for model in metadata.get("model-index", []):
                for result in model["results"]:
                    if not (result["task"]["type"] and result["dataset"]["type"]):
                        errors.append('"model-index": a result needs task.type and dataset.type')
                    errors += [
                        '"model-index": a metric needs type and value'
                        for metric in result["metrics"]
                        if not metric.get("type") or "value" not in metric
                    ]
        except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            errors.append(f"metadata cannot be read: {error!r}")
        messages = [{"message": message} for message in errors]
        self._send({"errors": messages, "warnings": []}, 400 if errors else 200)

    def _preupload(self, repo_id: str, revision: str, asked: dict[str, Any]) -> None:
        _, files = self._at(self._repository(repo_id, write=True), revision)
        answer = []
        for file in asked["files"]:
            oid = git_blob_id(files[file["path"]]) if file["path"] in files else None
            mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": oid}
            answer.append({"path": file["path"], **mode})
        self._send({"files": answer})

    def _commit(self, repo_id: str, revision: str, body: bytes) -> None:
        repository = self._repository(repo_id, write=True)
        _, files = self._at(repository, revision)
        files = dict(files)
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "deletedFile":
                    del files[value["path"]]
                case "deletedFolder":
                    files = {n: c for n, c in files.items() if not n.startswith(value["path"])}
                case "header":
                    pass
                case key:
                    raise _Refused(400, "", f"Unknown operation {key}")
        sha = repository.commit(revision, files)
        url = f"{self.server_hub.endpoint}/{repo_id}/commit/{sha}"
        self._send({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # -- download ------------------------------------------------------------------------------

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        sha, files = self._at(self._repository(repo_id), revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound", f"Entry not found: {path}")
        etag = git_blob_id(files[path])
        self._send(files[path], headers={"X-Repo-Commit": sha, "ETag": f'"{etag}"'})
