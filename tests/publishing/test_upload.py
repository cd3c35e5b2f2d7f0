"""Uploads by the real client to the loopback Hub: each fault, and what is left of it."""

import json
import re
import sys

import pytest
from loopback_hub import READ_TOKEN, TOKEN

# One process for all cases: the client reads its variables when it is imported.
CLIENT = """
import json, logging, os, sys
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
    repository, times = case.pop("repository", f"me/{name}"), case.pop("times", 1)
    try:
        if case.pop("check", False):
            answers[name] = {"address": upload.check_right_to_write(repository, private=True)}
        for _ in range(times if name not in answers else 0):
            answers[name] = {"address": upload.upload(sent, repository, message="Trained", **case)}
    except upload.UploadError as error:
        answers[name] = {"error": str(error)}
print(json.dumps(answers))
"""
# Name of a case and of its repository -> the options of its upload, if it has any.
OPTIONS = {
    "plain": {},
    "twice": {"times": 2},
    "short": {"repository": "short", "private": True},
    "branch": {"revision": "v1"},
    "logged-out": {"token": ""},
    "bad-token": {"token": "hf_wrongwrongwrongwrong"},
    "read-only": {"token": READ_TOKEN},
    "secret": {"secret": True},
    "checked": {"check": True},
    "checked-by-an-old-hub": {"check": True},
    "check-read-only": {"check": True, "token": READ_TOKEN},  # and the repository is there
    "check-500": {"check": True},
}
# Faults that pass, and those that do not: the request of the case, what happens to it, how often.
PASSING = {
    "create-429": ("repos/create", 429, 1),  # of the first case, which is "plain"
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
    "checked-by-an-old-hub": ("me/checked-by-an-old-hub/auth-check", 404, 1),
    "check-500": ("me/check-500/auth-check", 500, 1),
}


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """What all cases answered, what was logged, and what was sent."""
    for fault in (PASSING | LASTING).values():
        hub.fail(*fault)
    hub.create("me/check-read-only")
    folder = tmp_path_factory.mktemp("client")
    files = {
        "model.safetensors": b"\0" * 999,
        "config.json": b"{}",
        "README.md": b"---\nlicense: mit\n---\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "secret.json").write_text(json.dumps({"token": TOKEN}))
    cases = {name: {} for name in (*PASSING, *LASTING)} | OPTIONS
    cases = {"plain": cases.pop("plain")} | cases
    command = [sys.executable, "-c", CLIENT, json.dumps(cases), folder]
    done = hub.run(command, folder / "home", GOOD=TOKEN)
    assert done.returncode == 0, done.stderr
    assert not any(fault.times for fault in hub.faults if fault.times < 9), "a fault did not come"
    return json.loads(done.stdout.splitlines()[-1]), done.stderr, files


def test_what_is_asked_for_ends_in_one_commit_also_after_a_fault(hub, client):
    answers, _, files = client
    for name in ("plain", "twice", "short", "branch", *PASSING):
        branch = "v1" if name == "branch" else "main"
        assert "error" not in answers[name], answers[name]
        commits = hub.commits(f"me/{name}", branch)
        assert [commit.title for commit in commits] == ["Trained"], name
        assert hub.tree(f"me/{name}", branch) == files
        assert answers[name]["address"] == f"{hub.url}/me/{name}/commit/{commits[0].oid}"
    assert hub.commits("me/branch", "main") == []
    private = {name for (_, name), found in hub.repositories.items() if found.private}
    assert private == {"me/short", "me/checked", "me/checked-by-an-old-hub", "me/check-500"}


@pytest.mark.parametrize(
    "name, words, attempts",
    [
        ("500-always", "me/500-always can't be written", 4),  # the first and three delays
        ("reset-always", "me/reset-always can't be written", 4),
        ("commit-400", r"me/commit-400 can't be written .*\(HTTP 400\).*<token>", 1),
        ("logged-out", "HTTP 401.*you are not logged in.*the right to write me/logged-out", 0),
        ("bad-token", "HTTP 401.*the right to write me/bad-token", 0),
        ("read-only", "me/read-only .*HTTP 403.*the token lacks the right to write there", 0),
        ("check-read-only", "HTTP 403.*the token lacks the right to write there", 0),
        ("check-500", "me/check-500 can't be written .*HTTP 500", 0),
        ("secret", "notes.json holds your token, so nothing is uploaded", 0),
    ],
)
def test_what_does_not_pass_is_told(hub, client, name, words, attempts):
    assert re.search(words, client[0][name]["error"])
    sent = [request for request in hub.requests if f"POST /api/models/me/{name}/commit/" in request]
    assert len(sent) == attempts
    assert ("model", f"me/{name}") not in hub.repositories or hub.commits(f"me/{name}") == []


def test_a_check_passes_and_no_token_is_told(client):
    assert client[0]["checked"] == client[0]["checked-by-an-old-hub"] == {"address": None}
    for token in (TOKEN, READ_TOKEN, "hf_wrong"):
        assert token not in json.dumps(client[0]) + client[1]
