"""Whether there is a W&B login on this machine, found out without network, prompt or wandb's own session.

Looked at, as wandb does: WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, the netrc entry of the host, the settings file.
"""

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

PUBLIC = ("api.wandb.ai", "api.forge.coreweave.com")
"""Two names of one public service (wandb 0.31); a login for either is a login."""

ONLINE, OFFLINE = ("online", "run", "shared"), ("offline", "dryrun")


def has_login() -> bool:
    """Whether an upload could be tried. The key is looked for, never kept or shown."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = _settings_file()
    return bool(settings.get("api_key")) or _in_netrc(host(settings))


def host(settings: dict[str, str] | None = None) -> str:
    """The host that wandb talks to."""
    known = _settings_file() if settings is None else settings
    url = os.environ.get("WANDB_BASE_URL") or known.get("base_url") or f"https://{PUBLIC[0]}"
    return urlsplit(url).netloc


def choose(mode: str) -> tuple[str, str | None]:
    """`online`, `offline` or `disabled`, and what to tell the user if it is not what was asked for."""
    if mode == "auto":
        wish = os.environ.get("WANDB_MODE", "").lower()
        if wish == "disabled":
            return "disabled", None
        if wish in OFFLINE:
            return "offline", None
        if wish not in ONLINE:
            return ("online" if has_login() else "offline"), None
    if mode == "offline" or has_login():
        return mode if mode != "auto" else "online", None
    return "offline", f"online was asked for, but there is no login for {host()}; tracked offline, see `ablora sync`"


def _settings_file() -> dict[str, str]:
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    parser = configparser.ConfigParser()
    try:
        parser.read(folder / "settings")
        return dict(parser["default"]) if parser.has_section("default") else {}
    except (configparser.Error, OSError, UnicodeDecodeError):
        return {}


def _in_netrc(name: str) -> bool:
    places = [Path(given).expanduser()] if (given := os.environ.get("NETRC")) else []
    for path in places or [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]:
        try:
            entries = netrc.netrc(str(path))
        except (OSError, netrc.NetrcParseError):
            continue
        if any((found := entries.authenticators(one)) and found[2] for one in (PUBLIC if name in PUBLIC else (name,))):
            return True
    return False
