"""A small Hub on 127.0.0.1, with faults on demand: enough of it for huggingface_hub's own client.

Repositories live in memory. Every commit is a whole tree; branches and commits are revisions.
"""

import hashlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

from loopback_requests import READ_TOKEN, TOKEN, Handler

__all__ = ["READ_TOKEN", "TOKEN", "LoopbackHub"]


@dataclass
class Commit:
    oid: str
    tree: dict[str, bytes]
    title: str = "initial commit"
    message: str = ""


@dataclass
class Repository:
    kind: str
    name: str
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)  # oldest first

    def commit(self, branch: str, tree: dict[str, bytes], title: str, message: str) -> Commit:
        before = self.branches.setdefault(branch, [])
        parent = before[-1].oid if before else ""
        content = repr((self.name, parent, title, message, sorted(tree)))
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), tree, title, message)
        before.append(commit)
        return commit

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
    headers: dict[str, str] = field(default_factory=dict)


class LoopbackHub:
    """`with LoopbackHub() as hub:` and `HF_ENDPOINT=hub.url` in a process of its own."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}  # sha256 -> content of LFS files
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD /path"
        self.gate = None  # called with "METHOD /path" before a request is answered; it may wait
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {}))
        self.server.RequestHandlerClass.hub = self
        self.server.daemon_threads = True
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
        repository = Repository(kind, name, private)
        repository.commit("main", {".gitattributes": b""}, "initial commit", "")
        self.repositories[kind, name] = repository
        return repository

    def add(self, name: str, files: dict[str, bytes], kind: str = "model") -> str:
        """A commit made on the server's side; returns its oid."""
        repository = self.repositories.get((kind, name)) or self.create(name, kind)
        tree = repository.find("main").tree | files
        return repository.commit("main", tree, f"commit {time.monotonic_ns()}", "").oid

    def commits(self, name: str, branch: str = "main") -> list[Commit]:
        """Oldest first, without the initial one."""
        return self.repositories["model", name].branches[branch][1:]

    def tree(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        files = dict(self.repositories[kind, name].find(revision).tree)
        files.pop(".gitattributes")
        return files

    def fail(self, pattern: str, kind: int | str, times: int = 1, **headers: str) -> None:
        self.faults.append(Fault(pattern, kind, times, headers))
