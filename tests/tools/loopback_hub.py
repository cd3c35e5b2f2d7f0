"""A small Hub on 127.0.0.1, with faults on demand: enough of it for huggingface_hub's own client.

Repositories live in memory. Every commit is a whole tree; branches and commits are revisions. All
files are sent within the commit, none by git-LFS.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

USER = "me"
TOKEN = "hf_" + "secretsecretsecretsecretsecretsecr"
READ_TOKEN = "hf_" + "readonlyreadonlyreadonlyreadonlyre"


@dataclass
class Commit:
    tree: dict[str, bytes]
    title: str = "initial commit"
    message: str = ""
    oid: str = field(default_factory=lambda: secrets.token_hex(20))


class Repository:
    def __init__(self, private: bool):
        self.private = private
        # Oldest first.
        self.branches: dict[str, list[Commit]] = {"main": [Commit({".gitattributes": b""})]}

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (commit for branch in self.branches.values() for commit in branch)
        return next((commit for commit in commits if commit.oid == revision), None)


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches `pattern`.

    kind: a status; "reset", the connection is cut before anything is done; or "lost", the work is
    done and the connection is cut before the answer.
    """

    pattern: str
    kind: int | str
    times: int = 1


class LoopbackHub:
    """`with LoopbackHub() as hub:` and `HF_ENDPOINT=hub.url` in a process of its own."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD /path"
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self})
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home) -> dict[str, str]:
        """For a client in a process of its own, with nothing in its cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_MODULES_CACHE": f"{home}/modules",
            "HF_DATASETS_CACHE": f"{home}/datasets",
        }

    def run(self, command, home, **variables: str) -> subprocess.CompletedProcess:
        """A client in a process of its own, at the repository's root; its output is text."""
        return subprocess.run(
            list(map(str, command)),
            env=os.environ | self.environment(home) | variables,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )

    def create(self, name: str, kind: str = "model", private: bool = False) -> Repository:
        return self.repositories.setdefault((kind, name), Repository(private))

    def add(self, name: str, files: dict[str, bytes], kind: str = "model") -> None:
        """A commit made on the server's side."""
        repository = self.create(name, kind)
        repository.branches["main"].append(Commit(repository.find("main").tree | files))

    def commits(self, name: str, branch: str = "main") -> list[Commit]:
        """Oldest first, without the initial one."""
        return self.repositories["model", name].branches[branch][1:]

    def tree(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        files = dict(self.repositories[kind, name].find(revision).tree)
        files.pop(".gitattributes")
        return files

    def fail(self, pattern: str, kind: int | str, times: int = 1) -> None:
        self.faults.append(Fault(pattern, kind, times))


class Handler(BaseHTTPRequestHandler):
    """What the Hub answers: a method for each of its routes that a client asks for."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        url = urlsplit(self.path)
        route, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = f"{self.command} {route}"
        with self.hub.lock:
            self.hub.requests.append(name)
            faults = (f for f in self.hub.faults if f.times and re.search(f.pattern, name))
            fault = next(faults, None)
            if fault is not None:
                fault.times -= 1
            self.lost = fault is not None and fault.kind == "lost"
            if fault is not None and fault.kind == "reset":
                self.cut()
            elif fault is not None and not self.lost:
                self.refuse(fault.kind)
            else:
                self.answer(route)

    do_HEAD = do_POST = do_GET

    def answer(self, route):
        for method, pattern, answer in _ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, route)):
                return answer(self, **match.groupdict())
        self.refuse(404)

    def cut(self):
        """A reset, not a polite end of the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def send(self, content: bytes, status: int = 200, **headers: str):
        if self.lost:
            return self.cut()
        self.send_response(status)
        for key, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value, status: int = 200, **headers: str):
        self.send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def refuse(self, status: int, code: str = "", **headers: str):
        """Echoes the token, as a careless server might: the client must not pass it on."""
        self.lost = False
        message = f"refused with {status}; you sent {self.headers.get('Authorization')}"
        known = {"X_Error_Code": code} if code else {}
        self.json({"error": message}, status, X_Error_Message=message, **known, **headers)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def may_write(self) -> bool:
        if self.token != TOKEN:
            self.refuse(403 if self.token == READ_TOKEN else 401)
        return self.token == TOKEN

    def repository(self, kind: str | None, name: str) -> Repository | None:
        found = self.hub.repositories.get(((kind or "models").removesuffix("s"), name))
        if found is None or (found.private and self.token not in (TOKEN, READ_TOKEN)):
            self.refuse(404, "RepoNotFound")
            return None
        return found

    def commit_of(self, kind: str | None, name: str, revision: str) -> Commit | None:
        repository = self.repository(kind, name)
        commit = repository and repository.find(revision)
        if repository and commit is None:
            self.refuse(404, "RevisionNotFound")
        return commit

    # --- accounts, repositories and commits

    def whoami(self):
        if self.token not in (TOKEN, READ_TOKEN):
            return self.refuse(401)
        self.json({"type": "user", "name": USER, "orgs": []})

    def create(self):
        if not self.may_write():
            return
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        kind = asked.get("type") or "model"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if (kind, name) in self.hub.repositories:
            return self.json({"error": "You already created this", **answer}, 409)
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.hub.create(name, kind, private)
        self.json(answer)

    def authorised(self, kind, name):
        if self.repository(kind, name) and self.may_write():
            self.json({})

    def branch(self, kind, name, branch):
        repository = self.repository(kind, name)
        if repository and self.may_write():
            if branch in repository.branches:
                return self.json({"error": "Reference already exists"}, 409)
            repository.branches[branch] = list(repository.branches["main"])
            self.json({})

    def validate(self):
        self.json({"errors": [], "warnings": []})

    def preupload(self, kind, name, revision):
        commit = self.commit_of(kind, name, revision)
        if commit is None or not self.may_write():
            return
        paths = [asked["path"] for asked in json.loads(self.body)["files"]]
        there = {path: {"oid": _oid(commit.tree[path])} for path in paths if path in commit.tree}
        common = {"uploadMode": "regular", "shouldIgnore": False}
        self.json({"files": [{"path": p, **common, **there.get(p, {})} for p in paths]})

    def commit(self, kind, name, revision):
        repository = self.repository(kind, name)
        if not repository or not self.may_write():
            return
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = repository.branches[revision][-1]
        if header.get("parentCommit") not in (None, head.oid):
            return self.refuse(412)
        tree = dict(head.tree)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        done = Commit(tree, header["summary"], header.get("description", ""))
        repository.branches[revision].append(done)
        address = f"{self.hub.url}/{name}/commit/{done.oid}"
        self.json({"success": True, "commitOid": done.oid, "commitUrl": address, "hookOutput": ""})

    # --- reading

    def info(self, kind, name, revision="main"):
        commit = self.commit_of(kind, name, revision)
        if commit is not None:
            about = {"id": name, "modelId": name, "sha": commit.oid}
            about["private"] = self.repository(kind, name).private
            self.json(about | {"siblings": [{"rfilename": path} for path in sorted(commit.tree)]})

    def listing(self, kind, name, revision, under=""):
        """The files and folders in a folder; those below it too, as `recursive=true` asks."""
        commit = self.commit_of(kind, name, revision)
        if commit is None:
            return
        deep = self.query.get("recursive", [""])[0].lower() == "true"
        start = f"{under}/" if under else ""
        found = [e for e in _entries(commit.tree) if e["path"].startswith(start)]
        if start and not found:
            return self.refuse(404, "EntryNotFound")
        self.json([e for e in found if deep or "/" not in e["path"].removeprefix(start)])

    def paths_info(self, kind, name, revision):
        commit = self.commit_of(kind, name, revision)
        if commit is not None:
            asked = parse_qs(self.body.decode())["paths"]
            self.json([entry for entry in _entries(commit.tree) if entry["path"] in asked])

    def resolve(self, name, revision, path, kind=None):
        commit = self.commit_of(kind, name, revision)
        if commit is None:
            return
        headers = {"X_Repo_Commit": commit.oid}
        if path not in commit.tree:
            return self.refuse(404, "EntryNotFound", **headers)
        content = commit.tree[path]
        headers |= {"ETag": f'"{_oid(content)}"', "Accept_Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            size, first = len(content), int(asked[1])
            content = content[first : int(asked[2] or size - 1) + 1]
            headers["Content_Range"] = f"bytes {first}-{first + len(content) - 1}/{size}"
        self.send(content, 206 if asked else 200, **headers)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entries(tree: dict[str, bytes]) -> list[dict]:
    """The files of a commit and their folders, as the Hub describes them."""
    folders = {str(folder) for path in tree for folder in PurePosixPath(path).parents} - {"."}
    found = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
    found += [
        {"type": "file", "path": path, "oid": _oid(content), "size": len(content)}
        for path, content in tree.items()
    ]
    return sorted(found, key=lambda entry: entry["path"])


_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_FILE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)/resolve"
_ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", rf"{_REPO}/auth-check(?:/write)?", Handler.authorised),
    ("POST", rf"{_REPO}/branch/(?P<branch>[^/]+)", Handler.branch),
    ("POST", rf"{_REPO}/preupload/{_REVISION}", Handler.preupload),
    ("POST", rf"{_REPO}/commit/{_REVISION}", Handler.commit),
    ("POST", rf"{_REPO}/paths-info/{_REVISION}", Handler.paths_info),
    ("GET", rf"{_REPO}/revision/{_REVISION}", Handler.info),
    ("GET", rf"{_REPO}/tree/{_REVISION}(?:/(?P<under>.+))?", Handler.listing),
    ("GET", _REPO, Handler.info),
    ("GET HEAD", rf"{_FILE}/{_REVISION}/(?P<path>.+)", Handler.resolve),
]
