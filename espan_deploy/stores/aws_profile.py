"""Profiles of Amazon's own configuration files, as far as no other credentials are in the environment."""

from __future__ import annotations

import os
from configparser import ConfigParser, Error
from pathlib import Path
from typing import Any

from espan_deploy.errors import InputError

OTHER_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
"""Of credentials: each comes before a profile, unless AWS_PROFILE asks for one."""

KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "region": "region",
    "endpoint_url": "endpoint",
}
"""In a profile -> of an S3 store."""

ENVIRONMENT = {
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
}
"""What comes before a profile's own values."""


def profile_options() -> dict[str, Any]:
    """Arguments for an S3 store from the profile that AWS_PROFILE names, or the default one if there is no other way.

    A profile without keys of its own (single sign-on, roles) is left to boto3. Raises InputError where the profile is
    not there, cannot be read, or needs boto3 and there is none.
    """
    wanted = os.environ.get("AWS_PROFILE", "")
    if not wanted and any(os.environ.get(name) for name in OTHER_SOURCES):
        return {}
    profile = _profile(wanted or "default")
    if profile is None:
        if wanted:
            raise InputError(f"there is no profile {wanted!r}", hint="check AWS_PROFILE and ~/.aws/config")
        return {}
    options = {ours: profile[theirs] for theirs, ours in KEYS.items() if theirs in profile}
    for ours, variables in ENVIRONMENT.items():
        if any(os.environ.get(variable) for variable in variables):
            options.pop(ours, None)
    if wanted and "access_key_id" not in options:
        return options | {"credential_provider": _from_boto3(wanted)}
    return options


def _profile(name: str) -> dict[str, str] | None:
    """What both files say of a profile; None where neither knows it."""
    home = Path.home() / ".aws"
    files = (
        (os.environ.get("AWS_CONFIG_FILE") or home / "config", "default" if name == "default" else f"profile {name}"),
        (os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials", name),
    )
    found: dict[str, str] = {}
    known = False
    for path, section in files:
        parser = ConfigParser(interpolation=None, default_section="")
        try:
            parser.read(path, encoding="utf-8")
        except (Error, UnicodeDecodeError) as exc:
            raise InputError(f"cannot read {path}: {str(exc).partition(chr(10))[0]}") from exc
        if parser.has_section(section):
            known = True
            found |= dict(parser[section])
    return found if known else None


def _from_boto3(profile: str) -> Any:
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as exc:
        raise InputError(
            f"the profile {profile!r} has no keys of its own, and boto3, which resolves it, is not installed",
            hint="pip install boto3",
        ) from exc
    return Boto3CredentialProvider(boto3.session.Session(profile_name=profile))
