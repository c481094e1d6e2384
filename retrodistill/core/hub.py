"""The Hugging Face hub: names of repositories, whether it can be reached, and its errors in one line."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

from retrodistill.core.errors import UserError, first_line
from retrodistill.core.http import without_key
from retrodistill.core.runtime import is_quiet

PREFIX = "hf:"  # of what is on the hub and is not a model, whose name has its kind
_ADVICE = {
    401: "the token was refused: log in with 'hf auth login', or set HF_TOKEN",
    403: "the token may not do this: use one that may write there",
}


def check_repository(name: str) -> str:
    """The name of a repository, ``USER/NAME``; another one is refused before the hub is asked."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        is_valid = re.fullmatch(r"[^/]+/[^/]+", name) is not None
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UserError(
            f"{name!r} is not the name of a repository; write USER/NAME, with letters, digits, . - _ and at most 96 of "
            "them."
        )
    return name


def hub_token() -> str:
    """The user's token, which is never shown; a missing one and the offline mode are a `UserError`."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it.")
    token = get_token()
    if not token:
        raise UserError("there is no token of the Hugging Face hub; log in with 'hf auth login', or set HF_TOKEN.")
    return token


@contextlib.contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn errors of the hub and of the way to it into a `UserError`, without the token, which servers may repeat."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except UserError:
        raise
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise UserError(
            f"{repository} is not in the hub's cache here, and the hub cannot be reached or HF_HUB_OFFLINE is set."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = without_key(error.server_message or first_line(error), get_token() or "")[:160].rstrip(".")
        advice = _ADVICE.get(status, "check the name, or that the token may read it" if status == 404 else "try again")
        # without the hub's own error, whose text may repeat the token
        raise UserError(f"the hub answered {status} for {repository} ({said}); {advice}.") from None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        said = without_key(" ".join(str(error).split()), get_token() or "")[:160].rstrip(".")
        raise UserError(f"the exchange with the hub about {repository} failed ({said}); try again.") from None


@contextlib.contextmanager
def bars_unless_quiet() -> Iterator[None]:
    """Show the hub's own bars of a transfer only where progress is shown on a terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or (sys.stderr.isatty() and not is_quiet()):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextlib.contextmanager
def offline_unless_reachable() -> Iterator[None]:
    """Use only the hub's cache if the hub cannot be reached: its client would retry for more than a minute."""
    import requests
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        if not offline:
            requests.head(constants.ENDPOINT, timeout=5)
    except requests.RequestException:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
