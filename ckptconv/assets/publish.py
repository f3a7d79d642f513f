"""Send files to a repository on the hub: what is there is not sent again, and all appear in one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any

from ckptconv.errors import CkptconvError, UsageError, keep_secret
from ckptconv.records import dataclass

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Repository", "repository"]

_NO_SUCH_PATH = 404
_LOGIN = "hf auth login, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True, slots=True)
class Repository:
    """Hold where a model goes; nothing is sent or made before `send`.

    Attributes:
        name: ``USER/MODEL``.
        private: Whether only its owners are to see it.
        revision: The branch; None is the main one.
        api: The hub's client, for the endpoint that HF_ENDPOINT names.
    """

    name: str
    private: bool
    revision: str | None
    api: HfApi

    @property
    def url(self) -> str:
        """Where people see it."""
        address = f"{self.api.endpoint}/{self.name}"
        return address if self.revision is None else f"{address}/tree/{self.revision}"

    def knock(self) -> None:
        """Ask the hub whether it knows who is asking, before much is done for nothing.

        Raises:
            CkptconvError: if it does not, or cannot be reached.
        """
        with _explained(self.name):
            try:
                self.api.whoami()
            except Exception as e:
                if _status(e) != _NO_SUCH_PATH:  # of a hub that is none of Hugging Face's
                    raise

    def make(self) -> None:
        """Make the repository and the branch, unless they are there.

        Raises:
            CkptconvError: if the hub does not allow it, or what is to be private is public already.
        """
        with _explained(self.name):
            self.api.create_repo(self.name, private=self.private or None, exist_ok=True)
            if self.private and not self.api.repo_info(self.name).private:
                raise CkptconvError(
                    "the repository is there, and public",
                    where=self.url,
                    hint="make it private on the hub, choose another name, or leave out --private",
                )
            if self.revision is not None:
                self.api.create_branch(self.name, branch=self.revision, exist_ok=True)

    def text(self, name: str) -> str | None:
        """Return a small file of the repository; None if it has none of this name."""
        from huggingface_hub.errors import EntryNotFoundError

        with _explained(self.name):
            try:
                path = self.api.hf_hub_download(self.name, name, revision=self.revision)
            except EntryNotFoundError:
                return None
        return Path(path).read_text(encoding="utf-8", errors="replace")

    def send(self, files: Mapping[str, Path | bytes], message: str, sent: Callable[[int], None]) -> str:
        """Send files, and name them all in one commit; return its address.

        Large ones are sent one after the other. The hub says which of them it has, so that a second run after
        an interruption sends the rest.

        Args:
            files: Paths or contents, by name.
            message: The commit's first line.
            sent: Told the bytes of each file that is there.
        """
        from huggingface_hub import CommitOperationAdd

        operations = []
        with _explained(self.name):
            for name, content in files.items():
                size = len(content) if isinstance(content, bytes) else content.stat().st_size
                held = content if isinstance(content, bytes) else str(content)
                operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=held)
                self.api.preupload_lfs_files(self.name, additions=[operation], revision=self.revision)
                operations.append(operation)
                sent(size)
            made = self.api.create_commit(
                self.name, operations=operations, commit_message=message, revision=self.revision
            )
        return str(made.commit_url)


def repository(name: str, *, private: bool = False, revision: str | None = None) -> Repository:
    """Return where a model is to go, once it is known that it may.

    Raises:
        UsageError: if it is no name of a repository.
        CkptconvError: if huggingface_hub is not installed, or nobody is logged in.
    """
    if not fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"{name!r} names no repository", hint="write USER/MODEL or ORGANISATION/MODEL")
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()  # what is sent is said in our own words
    token = huggingface_hub.get_token()
    if token is None:
        raise CkptconvError("nobody is logged in to the hub", hint=_LOGIN)
    keep_secret(token)
    return Repository(name, private, revision, huggingface_hub.HfApi(token=token))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the client raises into an error of ours; it has a dozen classes, by release."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except (CkptconvError, KeyboardInterrupt):
        raise
    except OfflineModeIsEnabled as e:
        raise CkptconvError("HF_HUB_OFFLINE is set", where=name, hint="unset it to publish") from e
    except HFValidationError as e:
        raise UsageError(_first(e), where=name, hint="write USER/MODEL") from e
    except Exception as e:
        status = _status(e)
        if status in (401, 403):
            raise CkptconvError(f"the hub does not allow it: {_first(e)}", where=name, hint=_LOGIN) from e
        if isinstance(e, HfHubHTTPError) or status is not None:
            hint = "check the name; if the hub fails, the same command goes on where it stopped"
            raise CkptconvError(f"the hub refuses: {_first(e)}", where=name, hint=hint) from e
        hint = "check the network and HF_ENDPOINT; the same command goes on where it stopped"
        raise CkptconvError(f"sending failed: {_first(e)}", where=name, hint=hint) from e


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error, or what it was raised from, tells of."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if isinstance(status := getattr(response, "status_code", None), int):
            return status
        error = error.__cause__
    return None


def _first(error: BaseException) -> str:
    """Return the first line of an error, and that of what it was raised from."""
    said = [(str(e).strip().splitlines() or [type(e).__name__])[0] for e in (error, error.__cause__) if e]
    return ": ".join(dict.fromkeys(said))
