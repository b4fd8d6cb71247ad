"""A checkpoint or an export to a model hub: its folder as a commit, its card completed by what was measured.

    push("runs/flowers/checkpoints/nf4", "someone/flowers-nf4")["url"]

The address is huggingface-hub's own (`HF_ENDPOINT`), and so is the token (`HF_TOKEN`, or what `hf auth login` keeps).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from petalite.card import complete_card
from petalite.checkpoint import read_checkpoint
from petalite.console import say
from petalite.errors import PetaliteError
from petalite.files import disk_bytes
from petalite.importers import is_transformers_folder

#: What an export leaves in its folder, and by which it is known.
_EXPORTED = "export.json"
#: The packages whose errors say that a server cannot be reached: which one huggingface-hub uses depends on its version.
_NETWORK = ("httpx", "httpx2", "requests")


def push(
    folder: str | Path, repo: str, *, private: bool = False, message: str = "Upload by petalite"
) -> dict[str, Any]:
    """Upload `folder` to the model repository `repo` (`OWNER/NAME`), made where there is none; `url` says where it is.

    Before that, a checkpoint is read and checked, and its card gets what its study has measured.
    Raises PetaliteError for a folder that is neither a checkpoint nor an export, offline, and for what the hub refuses.
    """
    path = Path(folder)
    if not (path / _EXPORTED).is_file():
        read_checkpoint(path)
        if (path / "README.md").is_file() and not is_transformers_folder(path):
            complete_card(path)
    owner, _, name = repo.partition("/")
    if not owner or not name or "/" in name:
        raise PetaliteError(f"'{repo}' is no repository; give OWNER/NAME, e.g. someone/flowers-nf4")
    return _upload(path, repo, private, message)


def _upload(path: Path, repo: str, private: bool, message: str) -> dict[str, Any]:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if constants.HF_HUB_OFFLINE:
        raise PetaliteError("offline: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it first")
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    api = HfApi(endpoint=endpoint, library_name="petalite")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        say(f"{repo}: {disk_bytes(path) / 1e6:.1f} MB to upload")
        done = api.upload_folder(
            repo_id=repo, folder_path=path, commit_message=message, ignore_patterns=[".*", "*.tmp"]
        )
    except OfflineModeIsEnabled:
        raise PetaliteError("offline: nothing can be pushed") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        hint = "; log in with `hf auth login` or set HF_TOKEN" if status in (401, 403) else ""
        raise PetaliteError(f"the hub refused {repo}: {_line(error)}{hint}") from error
    except RuntimeError as error:  # a large file that did not arrive; why is in its cause
        raise PetaliteError(f"{repo}: {_line(error)} ({_line(error.__cause__ or error)}); try again") from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _NETWORK:
            raise
        raise PetaliteError(f"offline: {endpoint} cannot be reached ({_line(error)}); check the network") from error
    return {"repository": repo, "url": str(made), "commit": done.oid, "bytes": disk_bytes(path)}


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
