"""Whether the model hub can be reached: checked once, so that a machine without network gets its
error at once, not after many retries."""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlsplit

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
TIMEOUT_SECONDS = 5


@functools.cache
def prepare_hub() -> bool:
    """Put the hub's library in offline mode where its server cannot be reached; returns whether it
    can.

    Files that were downloaded before are found either way. Behind a proxy the question is left to
    the library.
    """
    from huggingface_hub import constants, utils

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in PROXIES):
        return True
    server = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection(
            (server.hostname or "", server.port or 443), timeout=TIMEOUT_SECONDS
        ).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
        # Sessions that are open already would keep trying.
        for name in ("reset_sessions", "close_session"):
            reset = getattr(utils, name, None) or getattr(utils._http, name, None)
            if reset is not None:
                reset()
        return False
    return True
