"""Uploads by the real client to the loopback Hub: each fault, and what is left of it."""

import json
import re
import sys

import huggingface_hub
import pytest
from loopback_hub import READ_TOKEN, TOKEN, LoopbackHub

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
    os.environ["HF_TOKEN"] = case.get("token", os.environ["GOOD"])
    if not os.environ["HF_TOKEN"]:
        del os.environ["HF_TOKEN"]
    start = time.monotonic()
    for _ in range(case.get("times", 1)):
        try:
            sent = dict(files)
            if case.get("secret"):
                sent["notes.json"] = folder / "secret.json"
            address = upload.upload(
                sent,
                case.get("repository", f"me/{name}"),
                message="Trained",
                private=case.get("private", False),
                revision=case.get("revision"),
            )
            answer = {"address": address}
        except upload.UploadError as error:
            answer = {"error": str(error)}
    answers[name] = answer | {"seconds": time.monotonic() - start}
print(json.dumps(answers))
"""

CASES = {
    "plain": {},
    "twice": {"times": 2},
    "without-a-user": {"repository": "short"},
    "private": {"private": True},
    "branch": {"revision": "v1"},
    "preupload-500": {},
    "lfs-503": {},
    "lfs-reset": {},
    "commit-429": {},
    "commit-429-wait": {},
    "commit-500": {},
    "commit-reset": {},
    "commit-lost": {},
    "head-reset": {},
    "race": {},
    "commit-500-always": {},
    "commit-reset-always": {},
    "commit-400": {},
    "logged-out": {"token": ""},
    "bad-token": {"token": "hf_wrongwrongwrongwrong"},
    "read-only": {"token": READ_TOKEN},
    "commit-403": {},
    "secret": {"secret": True},
}
if huggingface_hub.__version__.startswith("0."):  # whose client does not repeat these
    for name in ("preupload-500", "lfs-503", "lfs-reset", "head-reset"):
        del CASES[name]
FAULTS = [
    ("/repos/create", 429, 1),  # the first case that creates anything: "plain"
    ("PUT /lfs/", "reset", 1),  # likewise: all cases send the same file
    ("me/preupload-500/preupload", 500, 1),
    ("me/commit-429/commit/", 429, 2),
    ("me/commit-500/commit/", 500, 3),
    ("me/commit-reset/commit/", "reset", 2),
    ("me/commit-lost/commit/", "lost", 1),
    (r"GET .*me/head-reset\b", "reset", 1),
    ("me/race/commit/", 412, 1),
    ("me/commit-500-always/commit/", 500, 99),
    ("me/commit-reset-always/commit/", "reset", 99),
    ("me/commit-400/commit/", 400, 1),
    ("me/commit-403/commit/", 403, 1),
]


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        for pattern, kind, times in FAULTS:
            hub.fail(pattern, kind, times)
        hub.fail("me/commit-429-wait/commit/", 429, 1, Retry_After="1")
        hub.fail("me/lfs-503.git/info/lfs/objects/batch", 503, 1)
        hub.fail("me/lfs-reset.git/info/lfs/objects/batch", "reset", 1)
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """What all cases answered, what was logged, and what was sent."""
    folder = tmp_path_factory.mktemp("client")
    files = {
        "model.safetensors": b"\0" * 999,
        "config.json": b"{}",
        "README.md": b"---\nlicense: mit\n---\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "secret.json").write_text(json.dumps({"token": TOKEN}))
    command = [sys.executable, "-c", CLIENT, json.dumps(CASES), folder]
    done = hub.run(command, folder / "home", GOOD=TOKEN)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr, files


@pytest.mark.parametrize("name", list(CASES)[: list(CASES).index("race") + 1])
def test_each_fault_that_passes_ends_in_one_commit(hub, client, name):
    answers, _, files = client
    repository = {"without-a-user": "me/short"}.get(name, f"me/{name}")
    branch = CASES[name].get("revision", "main")
    assert "error" not in answers[name], answers[name]
    commits = hub.commits(repository, branch)
    assert [commit.title for commit in commits] == ["Trained"]
    assert hub.tree(repository, branch) == files
    assert answers[name]["address"] == f"{hub.url}/{repository}/commit/{commits[0].oid}"


def test_a_branch_leaves_main_alone(hub, client):
    assert hub.commits("me/branch", "main") == []


def test_only_what_is_asked_to_be_is_private(hub, client):
    names = [name for (_, name), found in hub.repositories.items() if found.private]
    assert names == ["me/private"]


def test_a_wait_that_the_hub_asks_for_is_kept(client):
    answers, log, _ = client
    assert answers["commit-429-wait"]["seconds"] > 1
    assert "next attempt in 1 s" in log


@pytest.mark.parametrize("name", ["commit-500-always", "commit-reset-always"])
def test_what_does_not_pass_is_given_up(hub, client, name):
    answers, *_ = client
    assert f"me/{name} could not be uploaded" in answers[name]["error"]
    sent = [request for request in hub.requests if f"me/{name}/commit/" in request]
    assert len(sent) == 4  # one for each of three delays, and the first
    assert hub.commits(f"me/{name}") == []


@pytest.mark.parametrize(
    "name, words",
    [
        ("logged-out", "HTTP 401.*you are not logged in.*the right to write me/logged-out"),
        ("bad-token", "HTTP 401.*the right to write me/bad-token"),
        ("read-only", "HTTP 403.*the token lacks the right to write me/read-only"),
        ("commit-403", "HTTP 403.*the token lacks the right to write me/commit-403"),
        ("commit-400", r"me/commit-400 could not be uploaded \(HTTP 400\)"),
        ("secret", "notes.json holds your token, so nothing is uploaded"),
    ],
)
def test_a_refusal_is_told_at_once(hub, client, name, words):
    answers, *_ = client
    assert re.search(words, answers[name]["error"])
    sent = [r for r in hub.requests if f"me/{name}/commit/" in r and r.startswith("POST")]
    assert len(sent) == (1 if name.startswith("commit") else 0)


def test_no_token_is_told(client):
    answers, log, _ = client
    for text in (json.dumps(answers), log):
        for token in (TOKEN, READ_TOKEN, "hf_wrong"):
            assert token not in text
    assert "<token>" in answers["commit-400"]["error"]  # the server echoes it
