"""Models from the Hugging Face hub, kept in the hub's own cache, which other tools share.

Without a network this gives up within seconds. `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME` and tokens work as the
hub's client documents them.
"""

from __future__ import annotations

from pathlib import Path

from rhizome.models.store import Say, is_complete

PROBE_TIMEOUT_S = 3.0
_REASON_CHARS = 300
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


class HubUnavailable(Exception):
    """The hub cannot be reached or does not give this model."""


def fetch(repo_id: str, say: Say) -> Path:
    """Directory of the newest snapshot; downloads what is missing.

    A complete snapshot in the local cache is used without asking the network.

    Raises:
        HubUnavailable: offline, unreachable, unknown, or not allowed.
    """
    import httpx2 as httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        cached = Path(snapshot_download(repo_id, local_files_only=True, allow_patterns=_PATTERNS))
        if is_complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        # The probe has a short timeout; the download itself may take as long as it likes.
        HfApi().model_info(repo_id, timeout=PROBE_TIMEOUT_S)
        say(f"downloading {repo_id} from the Hugging Face hub")
        folder = Path(snapshot_download(repo_id, allow_patterns=_PATTERNS))
    except (
        HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError
    ) as fault:  # fmt: skip
        raise HubUnavailable(" ".join(str(fault).split())[:_REASON_CHARS] or type(fault).__name__) from fault
    if not is_complete(folder):
        raise HubUnavailable(f"{repo_id} has no config.json, tokenizer.json or *.safetensors")
    return folder
