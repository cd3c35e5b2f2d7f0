"""Uploads files to a repository on the Hub: one commit, bounded retries, no secret in a message."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

logger = logging.getLogger(__name__)

DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds before each new attempt
LONGEST_DELAY = 60.0  # seconds; the upper limit of a delay that the Hub requests
# The base classes of lost connections and timeouts, in every HTTP library the client has used.
_LOST_CONNECTION = {"TransportError", "RequestException", "ConnectionError", "TimeoutError"}
_TOKEN = re.compile(r"\bhf_\w{8,}")

T = TypeVar("T")


class UploadError(RuntimeError):
    """Nothing was uploaded: the repository, the Hub's answer, and what to do. Never a token."""


def upload(
    files: Mapping[str, Path],
    repository: str,
    *,
    message: str,
    kind: str = "model",
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Creates the repository if necessary, and adds the files in one commit.

    Other files of the repository stay. If it already has all of these, byte for byte, there is no
    commit.

    Args:
        files: path in the repository -> path here.
        repository: user/name, or a name under the own account.
        kind: of the repository, "model" or "space".
        private: whether a repository that is created here is private.
        revision: branch; created if it does not exist. None: main.

    Returns:
        The commit's address.

    Raises:
        UploadError: the Hub refuses, at once; or it can't be reached, after the last attempt.
    """
    _refuse_secrets(files)
    api = HfApi()
    of_kind = {"repo_type": kind}
    asked = of_kind | ({"private": True} if private else {})
    asked |= {"space_sdk": "gradio"} if kind == "space" else {}
    created = _insist(lambda: api.create_repo(repository, exist_ok=True, **asked), repository)
    name, folder = created.repo_id, "spaces/" if kind == "space" else ""
    if revision is not None:
        _insist(lambda: api.create_branch(name, branch=revision, exist_ok=True, **of_kind), name)
    mark = f"upload {uuid.uuid4().hex}"
    attempts = 0

    def commit() -> str:
        nonlocal attempts
        attempts += 1
        # If an answer was lost, the commit may have been made: look before trying again. A request
        # that arrives later still is refused, because its parent is no longer the newest commit.
        if attempts > 1:
            for entry in api.list_repo_commits(name, revision=revision, **of_kind):
                if mark in entry.message:
                    return f"{api.endpoint}/{folder}{name}/commit/{entry.commit_id}"
        return api.create_commit(
            name,
            [CommitOperationAdd(path, str(file)) for path, file in files.items()],
            commit_message=message,
            commit_description=mark,
            revision=revision,
            **of_kind,
            parent_commit=api.repo_info(name, revision=revision, **of_kind).sha,
        ).commit_url

    return _insist(commit, name)


def full_name(repository: str) -> str | None:
    """user/name, also of a repository that is named without its user.

    None: the account is not known, and so an upload would fail too.
    """
    if "/" in repository:
        return repository
    try:
        return f"{HfApi().whoami()['name']}/{repository}"
    except Exception:  # no token, no network; its HTTP library depends on its version
        return None


def check_right_to_write(repository: str) -> None:
    """Checks with the Hub that this account may write to a repository.

    Raises:
        HfHubHTTPError: it may not; 404: the Hub has no such check.
    """
    # `HfApi.auth_check` asks only whether it may read, before huggingface_hub 1.5.
    address = f"{HfApi().endpoint}/api/models/{repository}/auth-check/write"
    hf_raise_for_status(get_session().get(address, headers=build_hf_headers()))


def _insist(request: Callable[[], T], repository: str) -> T:
    """Repeats a request as long as its failures look temporary."""
    for delay in (*DELAYS, None):
        try:
            return request()
        except Exception as error:
            if delay is None or not _may_pass(error):
                # Without the cause: its traceback could contain a token that the Hub repeated.
                raise UploadError(_explanation(error, repository)) from None
            delay = min(max(delay, _asked_delay(error)), LONGEST_DELAY)
            logger.warning("%s; next attempt in %g s", _explanation(error, repository), delay)
        time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _root(error: BaseException) -> BaseException:
    """The cause of an error of the client, which wraps those of single files."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    error = _root(error)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code
    return None


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        # 412: another commit came first, and this one has to follow it.
        return status in (408, 412, 429) or status >= 500
    return bool(_LOST_CONNECTION & {base.__name__ for base in type(_root(error)).__mro__})


def _asked_delay(error: Exception) -> float:
    """The Hub's Retry-After in seconds; 0 if there is none."""
    if _status(error) is None:
        return 0.0
    asked = _root(error).response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def _explanation(error: Exception, repository: str) -> str:
    status = _status(error)
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return (
            f"the Hub refuses {repository} (HTTP 401): you are not logged in, or the token is "
            f"not valid. Run `hf auth login`, with a token that has the right to write {repository}"
        )
    if status == 403:
        return (
            f"the Hub refuses {repository} (HTTP 403): the token lacks the right to write "
            f"{repository}. Give it that right (write access to the repository or to all of its "
            "owner's) at https://huggingface.co/settings/tokens"
        )
    said = without_secrets(" ".join(str(_root(error)).split()))[:400]
    what = f"HTTP {status}" if status else type(_root(error)).__name__
    return f"{repository} could not be uploaded ({what}): {said}"


def without_secrets(text: str) -> str:
    """The text with every token of the Hub replaced by "<token>"."""
    token = get_token()
    return _TOKEN.sub("<token>", text.replace(token, "<token>") if token else text)


def _refuse_secrets(files: Mapping[str, Path]) -> None:
    token = get_token()
    for path, file in files.items():
        if token and token.encode() in file.read_bytes():
            raise UploadError(f"{path} holds your token, so nothing is uploaded: {file}")
