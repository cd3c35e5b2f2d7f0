"""What the loopback Hub answers: a method for each route of the Hub that its client asks for."""

import base64
import hashlib
import json
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

USER = "me"
TOKEN = "hf_" + "secretsecretsecretsecretsecretsecr"
READ_TOKEN = "hf_" + "readonlyreadonlyreadonlyreadonlyre"
LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".parquet")


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub = None  # the LoopbackHub, set in a class of its own for each
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_GET

    def handle_request(self):
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.read_body()
        name = f"{self.command} {self.route}"
        if self.hub.gate is not None:
            self.hub.gate(name)
        with self.hub.lock:
            self.hub.requests.append(name)
            fault = next(
                (f for f in self.hub.faults if f.times and re.search(f.pattern, name)), None
            )
            if fault is not None:
                fault.times -= 1
            if fault is not None and fault.kind == "reset":
                return self.cut()
            if fault is not None and isinstance(fault.kind, int):
                return self.refuse(fault.kind, **fault.headers)
            self.lost = fault is not None
            self.answer_request()

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def cut(self):
        """A reset, not a polite end of the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def send(self, content: bytes, status: int = 200, **headers: str):
        if self.lost:
            return self.cut()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
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
        if self.token not in (TOKEN, READ_TOKEN):
            self.refuse(401)
        elif self.token == READ_TOKEN:
            self.refuse(403)
        return self.token == TOKEN

    def answer_request(self):
        for method, pattern, answer in _ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, self.route)):
                return answer(self, **match.groupdict())
        self.refuse(404)

    def repository(self, kind: str, name: str):
        found = self.hub.repositories.get(((kind or "models").removesuffix("s"), name))
        if found is None or (found.private and self.token not in (TOKEN, READ_TOKEN)):
            self.refuse(404, "RepoNotFound")
            return None
        return found

    def commit_of(self, kind: str, name: str, revision: str):
        repository = self.repository(kind, name)
        commit = repository and repository.find(revision)
        if repository and commit is None:
            self.refuse(404, "RevisionNotFound")
        return commit

    # --- accounts and repositories

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

    # --- writing

    def validate(self):
        self.json({"errors": [], "warnings": []})

    def preupload(self, kind, name, revision):
        repository = self.repository(kind, name)
        if not repository or not self.may_write():
            return
        tree = repository.find(revision).tree
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            is_lfs = path.endswith(LFS_SUFFIXES)
            entry = {"path": path, "uploadMode": "lfs" if is_lfs else "regular"}
            if path in tree:
                entry["oid"] = (_sha256 if is_lfs else _git_oid)(tree[path])
            files.append(entry | {"shouldIgnore": False})
        self.json({"files": files})

    def lfs_batch(self, kind, name):
        if not self.may_write():
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            if asked["oid"] not in self.hub.blobs:
                asked["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            objects.append(asked)
        self.json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid):
        if _sha256(self.body) != oid:
            return self.refuse(400)
        self.hub.blobs[oid] = self.body
        self.send(b"")

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
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        done = repository.commit(revision, tree, header["summary"], header.get("description", ""))
        address = f"{self.hub.url}/{name}/commit/{done.oid}"
        self.json({"success": True, "commitOid": done.oid, "commitUrl": address, "hookOutput": ""})

    # --- reading

    def info(self, kind, name, revision="main"):
        commit = self.commit_of(kind, name, revision)
        if commit is None:
            return
        siblings = [{"rfilename": path} for path in sorted(commit.tree)]
        private = self.repository(kind, name).private
        about = {"id": name, "modelId": name, "sha": commit.oid, "private": private}
        self.json(about | {"siblings": siblings})

    def commits(self, kind, name, revision):
        repository = self.repository(kind, name)
        if repository:
            common = {"authors": [{"user": USER}], "date": "2026-01-01T00:00:00.000Z"}
            newest_first = reversed(repository.branches[revision])
            self.json(
                [
                    common | {"id": c.oid, "title": c.title, "message": c.message}
                    for c in newest_first
                ]
            )

    def listing(self, kind, name, revision, under=""):
        """All files, as `recursive=true` asks; or those of one folder, and its folders."""
        commit = self.commit_of(kind, name, revision)
        if commit is None:
            return
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        start = f"{under}/" if under else ""
        entries, folders = [], set()
        for path, content in sorted(commit.tree.items()):
            if not path.startswith(start):
                continue
            parts = path[len(start) :].split("/")
            folders |= {start + "/".join(parts[:i]) for i in range(1, len(parts))}
            if len(parts) == 1 or recursive:
                entry = {"type": "file", "oid": _git_oid(content), "size": len(content)}
                if path.endswith(LFS_SUFFIXES):
                    lfs = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
                    entry["lfs"] = lfs
                entries.append(entry | {"path": path})
        if start and not entries and not folders:
            return self.refuse(404, "EntryNotFound")
        deep = [f for f in sorted(folders) if recursive or "/" not in f[len(start) :]]
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f} for f in deep]
        self.json(entries)

    def paths_info(self, kind, name, revision):
        repository = self.repository(kind, name)
        if not repository:
            return
        tree = repository.find(revision).tree
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.body)["paths"]
        else:
            asked = parse_qs(self.body.decode())["paths"]
        self.json(
            [
                {"type": "file", "path": p, "oid": _git_oid(tree[p]), "size": len(tree[p])}
                if p in tree
                else {"type": "directory", "path": p, "oid": "0" * 40, "size": 0}
                for p in asked
                if p in tree or any(path.startswith(f"{p}/") for path in tree)
            ]
        )

    def resolve(self, name, revision, path, kind="models"):
        commit = self.commit_of(kind, name, revision)
        if commit is None:
            return
        if path not in commit.tree:
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit.oid)
        content = commit.tree[path]
        is_lfs = path.endswith(LFS_SUFFIXES)
        size = len(content)
        headers = {
            "X_Repo_Commit": commit.oid,
            "ETag": f'"{_sha256(content) if is_lfs else _git_oid(content)}"',
            "Accept_Ranges": "bytes",
        }
        if is_lfs:
            headers |= {"X_Linked_Size": str(size), "X_Linked_Etag": headers["ETag"]}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{size}"
            return self.send(content[first : last + 1], 206, **headers)
        if self.command == "HEAD":
            headers["Content_Length"] = str(size)
        self.send(content, **headers)


_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", rf"{_REPO}/auth-check(?:/write)?", Handler.authorised),
    ("POST", rf"{_REPO}/branch/(?P<branch>[^/]+)", Handler.branch),
    ("POST", rf"{_REPO}/preupload/{_REVISION}", Handler.preupload),
    ("POST", rf"{_REPO}/commit/{_REVISION}", Handler.commit),
    ("POST", rf"{_REPO}/paths-info/{_REVISION}", Handler.paths_info),
    ("GET", rf"{_REPO}/commits/{_REVISION}", Handler.commits),
    ("GET", rf"{_REPO}/revision/{_REVISION}", Handler.info),
    ("GET", rf"{_REPO}/tree/{_REVISION}(?:/(?P<under>.+))?", Handler.listing),
    ("GET", _REPO, Handler.info),
    (
        "POST",
        r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
        Handler.lfs_batch,
    ),
    ("PUT", r"/lfs/(?P<oid>\w+)", Handler.lfs_upload),
    (
        "GET HEAD",
        rf"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)/resolve/{_REVISION}/(?P<path>.+)",
        Handler.resolve,
    ),
]
