"""A finished run's model on the Hugging Face hub, with its card: into a new or empty repository, never over another.

`check_access` is asked before a run starts, `push` at its end or by `opd push`. The client (huggingface_hub) finds the
token as everywhere: HF_TOKEN, or what `hf auth login` stored.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from opd.errors import HubError, UploadError, reason_of
from opd.record import Record

Part = Literal["model", "merged", "best"]
PARTS: dict[Part, str] = {"model": "model", "merged": "model/merged", "best": "best"}
"""What can be uploaded, and where it lies in the run folder."""
LACKS: dict[Part, str] = {
    "model": "it was moved, or the run is of another tool",
    "merged": "only student.lora.merge: true leaves one; take --part model, an adapter where student.lora was given",
    "best": "evaluate.every was 0; upload the last student (--part model)",
}
"""Why a part is not there, and the way out."""
MADE_WITH_A_REPOSITORY = {".gitattributes"}
HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
"""What the hub takes for a model or a data set."""


class HubSettings(Record):
    """Where the model goes when the run has ended: a repository of the Hugging Face hub."""

    repo: str = Field(pattern=r"^\w[\w.-]*/\w[\w.-]*$")
    """user/name or organisation/name; new, or without a file."""
    private: bool = True
    """Whether the repository is private: a new one is made so, an empty one must be so already."""
    part: Part = "model"
    """model (with student.lora the adapter), merged (of student.lora.merge) or best (of evaluate.every)."""


def is_hub_id(name: str) -> bool:
    """Whether a recipe's model or data set is one of the hub's, which others find too, and no local folder."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).is_dir()


def check_base(hub: HubSettings, base: str, *, adapted: bool) -> None:
    """HubError for an adapter of a model that lies on this machine alone, beside which nobody else could load it."""
    if adapted and hub.part != "merged" and not is_hub_id(base):
        raise HubError(
            f"{hub.part!r} is an adapter of {base!r}, a local folder, beside which nobody else can load it; take part "
            "merged (of student.lora.merge: true), or train from the model on the hub"
        )


def check_access(hub: HubSettings) -> None:
    """HubError in one line unless somebody is logged in who may write there, and nothing would be overwritten."""
    api = _client()
    try:
        who = api.whoami()
    except Exception as error:
        raise HubError(
            f"can't log in to the hub to upload {hub.repo!r} ({reason_of(error)}); run `hf auth login` or set HF_TOKEN"
            ", or leave hub out of the recipe and upload with `opd push` later"
        ) from error
    owner, own = hub.repo.split("/")[0], [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if owner not in own:
        raise HubError(f"{own[0]!r} can't upload {hub.repo!r} to the hub; write {'/… or '.join(own)}/…")
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"the token of {own[0]!r} only reads, and {hub.repo!r} is to be written; log in with another")
    _head(api, hub)


def push(run: Path, hub: HubSettings) -> str:
    """Upload that part of a run folder in one commit; returns its address.

    Raises HubError before anything is sent, UploadError (which says the command that goes on) after that.
    """
    folder, api = run / PARTS[hub.part], _client()
    if not (run / "summary.json").is_file():
        raise HubError(f"there is no finished run in {str(run)!r}; give a folder below runs/ that has a summary.json")
    if not folder.is_dir():
        raise HubError(f"run {str(run)!r} has no {PARTS[hub.part]}/ to upload: {LACKS[hub.part]}")
    student = json.loads((run / "summary.json").read_text())["recipe"]["student"]
    check_base(hub, student["model"], adapted=bool(student.get("lora")))
    check_access(hub)
    try:
        head = _head(api, hub)
        if head is None:
            api.create_repo(hub.repo, private=hub.private)
            head = _head(api, hub)
        # The parent makes the hub refuse if anything was written there meanwhile.
        api.upload_folder(
            repo_id=hub.repo,
            folder_path=folder,
            ignore_patterns=None if hub.part == "merged" else ["merged/*"],
            commit_message=f"{hub.part} of {run.name}, by opd",
            parent_commit=head,
        )
    except Exception as error:
        raise UploadError(
            f"the model was not uploaded ({reason_of(error)}); the run is whole, and `{push_command(run, hub)}` goes on"
        ) from error
    return f"{api.endpoint}/{hub.repo}"


def push_command(run: Path, hub: HubSettings) -> str:
    """What uploads the same by hand."""
    part = "" if hub.part == "model" else f" --part {hub.part}"
    return f"opd push {run} {hub.repo}{part}{'' if hub.private else ' --public'}"


def _client() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="opd")


def _head(api: Any, hub: HubSettings) -> str | None:
    """The commit of an empty repository, None where there is none; HubError for one with files, or seen by others."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(hub.repo)
    except RepositoryNotFoundError:
        return None
    except Exception as error:
        raise HubError(f"can't look at {hub.repo!r} on the hub ({reason_of(error)}); try again") from error
    if files := sorted({file.rfilename for file in found.siblings or []} - MADE_WITH_A_REPOSITORY):
        raise HubError(
            f"{hub.repo!r} on the hub holds {files[0]} already, and nothing is overwritten; give another name"
        )
    if bool(found.private) != hub.private:
        raise HubError(
            f"{hub.repo!r} on the hub is {'private' if found.private else 'public'}, and this upload is to be "
            f"{'private' if hub.private else 'public'}; change it there, give another name, or set hub.private "
            "(opd push: --public)"
        )
    return found.sha
