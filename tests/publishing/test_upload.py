"""Uploads by the real client to the loopback Hub: each fault, and what is left of it."""

import json
import re
import sys

import pytest
from loopback_hub import READ_TOKEN, TOKEN

# One process for all cases: the client reads its variables when it is imported.
CLIENT = """
import json, logging, os, sys, time
from pathlib import Path
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from mtl_diffusion.publishing import upload
upload.DELAYS = (0.01, 0.01, 0.01)
cases, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
files = {name: folder / name for name in ("model.safetensors", "config.json", "README.md")}
answers = {}
for name, case in cases.items():
    os.environ["HF_TOKEN"] = case.pop("token", os.environ["GOOD"])
    if not os.environ["HF_TOKEN"]:
        del os.environ["HF_TOKEN"]
    sent = files | ({"notes.json": folder / "secret.json"} if case.pop("secret", False) else {})
    repository, start = case.pop("repository", f"me/{name}"), time.monotonic()
    for _ in range(case.pop("times", 1)):
        try:
            answer = {"address": upload.upload(sent, repository, message="Trained", **case)}
        except upload.UploadError as error:
            answer = {"error": str(error)}
    answers[name] = answer | {"seconds": time.monotonic() - start}
print(json.dumps(answers))
"""
# Name of a case and of its repository -> the options of its upload, if it has any.
OPTIONS = {
    "plain": {},
    "twice": {"times": 2},
    "short": {"repository": "short"},
    "private": {"private": True},
    "branch": {"revision": "v1"},
    "logged-out": {"token": ""},
    "bad-token": {"token": "hf_wrongwrongwrongwrong"},
    "read-only": {"token": READ_TOKEN},
    "secret": {"secret": True},
}
# Faults that pass, and those that do not: the request of the case, what happens to it, how often.
PASSING = {
    "create-429": ("repos/create", 429, 1),  # of the first case, which is "plain"
    "preupload-500": ("me/preupload-500/preupload", 500, 1),
    "commit-429": ("me/commit-429/commit/", 429, 2),
    "commit-429-wait": ("me/commit-429-wait/commit/", 429, 1),
    "commit-500": ("me/commit-500/commit/", 500, 3),
    "commit-reset": ("me/commit-reset/commit/", "reset", 2),
    "commit-lost": ("me/commit-lost/commit/", "lost", 1),
    "head-reset": (r"GET .*me/head-reset\b", "reset", 1),
    "race": ("me/race/commit/", 412, 1),
}
LASTING = {
    "500-always": ("me/500-always/commit/", 500, 99),
    "reset-always": ("me/reset-always/commit/", "reset", 99),
    "commit-400": ("me/commit-400/commit/", 400, 1),
    "commit-403": ("me/commit-403/commit/", 403, 1),
}


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """What all cases answered, what was logged, and what was sent."""
    for name, fault in (PASSING | LASTING).items():
        hub.fail(*fault, **({"Retry_After": "1"} if name == "commit-429-wait" else {}))
    folder = tmp_path_factory.mktemp("client")
    files = {
        "model.safetensors": b"\0" * 999,
        "config.json": b"{}",
        "README.md": b"---\nlicense: mit\n---\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "secret.json").write_text(json.dumps({"token": TOKEN}))
    cases = OPTIONS | {name: {} for name in (*PASSING, *LASTING)}
    command = [sys.executable, "-c", CLIENT, json.dumps(cases), folder]
    done = hub.run(command, folder / "home", GOOD=TOKEN)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr, files


def test_what_is_asked_for_ends_in_one_commit_also_after_a_fault(hub, client):
    answers, log, files = client
    for name in ("plain", "twice", "short", "private", "branch", *PASSING):
        branch = "v1" if name == "branch" else "main"
        assert "error" not in answers[name], answers[name]
        commits = hub.commits(f"me/{name}", branch)
        assert [commit.title for commit in commits] == ["Trained"], name
        assert hub.tree(f"me/{name}", branch) == files
        assert answers[name]["address"] == f"{hub.url}/me/{name}/commit/{commits[0].oid}"
    assert hub.commits("me/branch", "main") == []
    private = [name for (_, name), found in hub.repositories.items() if found.private]
    assert private == ["me/private"]
    assert not any(fault.times for fault in hub.faults if fault.times < 9), "a fault did not come"
    # The Hub asked for a wait.
    assert answers["commit-429-wait"]["seconds"] > 1 and "next attempt in 1 s" in log


@pytest.mark.parametrize(
    "name, words, attempts",
    [
        ("500-always", "me/500-always could not be uploaded", 4),  # the first and three delays
        ("reset-always", "me/reset-always could not be uploaded", 4),
        ("commit-400", r"me/commit-400 could not be uploaded \(HTTP 400\).*<token>", 1),
        ("commit-403", "HTTP 403.*the token lacks the right to write me/commit-403", 1),
        ("logged-out", "HTTP 401.*you are not logged in.*the right to write me/logged-out", 0),
        ("bad-token", "HTTP 401.*the right to write me/bad-token", 0),
        ("read-only", "HTTP 403.*the token lacks the right to write me/read-only", 0),
        ("secret", "notes.json holds your token, so nothing is uploaded", 0),
    ],
)
def test_what_does_not_pass_is_told(hub, client, name, words, attempts):
    assert re.search(words, client[0][name]["error"])
    sent = [request for request in hub.requests if f"POST /api/models/me/{name}/commit/" in request]
    assert len(sent) == attempts
    assert ("model", f"me/{name}") not in hub.repositories or hub.commits(f"me/{name}") == []


def test_no_token_is_told(client):
    for token in (TOKEN, READ_TOKEN, "hf_wrong"):
        assert token not in json.dumps(client[0]) + client[1]
