"""Whether a person asked for no network: one word for hubs, registries and addresses alike."""

from __future__ import annotations

import os

from owngpt.errors import DownloadError, OwnGPTError

VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""The first that is set decides, read as Hugging Face's own libraries read them."""
YES = frozenset({"1", "ON", "YES", "TRUE"})


def offline_variable() -> str | None:
    """The environment variable that forbids the network, as it is set ("HF_HUB_OFFLINE=1"), or None."""
    name = next((name for name in VARIABLES if os.environ.get(name)), None)
    return f"{name}={os.environ[name]}" if name is not None and os.environ[name].upper() in YES else None


def refuse_offline(what: str, error: type[OwnGPTError] = DownloadError) -> None:
    """
    :param what: is about to be downloaded, for the message.
    :param error: what a download that cannot be made is where the caller is.
    :raises OwnGPTError: the person asked for no network; nothing was asked of anybody.
    """
    if (variable := offline_variable()) is not None:
        raise error(f"{what} is not here, and {variable} forbids to download it; unset it, or name a file or folder that is here")
