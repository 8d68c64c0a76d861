from __future__ import annotations

from pathlib import Path

import pytest

from agents.service.settings import (
    SETTINGS_VARIABLE,
    ServiceSecrets,
    ServiceSettings,
    ServiceSettingsError,
)

SECRETS = {"COUPONLAB_API_KEYS": "0123456789abcdef", "COUPONLAB_PSEUDONYM_KEY": "fedcba9876543210"}


def test_settings_reach_the_workers_unchanged() -> None:
    settings = ServiceSettings(Path("runs/x/export"), "postgresql://u:p@h/d", burst=7, grace_hours=12.5)
    assert ServiceSettings.from_environment({SETTINGS_VARIABLE: settings.to_json()}) == settings
    with pytest.raises(ServiceSettingsError, match="couponlab serve"):
        ServiceSettings.from_environment({})


@pytest.mark.parametrize(
    "wrong", [{"burst": 0}, {"request_seconds": float("inf")}, {"most_bytes": -1}, {"grace_hours": -0.1}]
)
def test_limits_are_positive_and_finite(wrong: dict[str, float]) -> None:
    with pytest.raises(ServiceSettingsError, match=next(iter(wrong))):
        ServiceSettings(Path("x"), **wrong)  # type: ignore[arg-type]


def test_several_keys_are_read_from_a_variable_or_a_file(tmp_path: Path) -> None:
    keys = ("0123456789abcdef", "a-second-key-000", "a-third-key-0000")
    given = ServiceSecrets.from_environment(
        SECRETS | {"COUPONLAB_API_KEYS": f"{keys[0]},{keys[1]}\n{keys[2]}"}
    )
    (tmp_path / "keys").write_text("\n".join(keys) + "\n")
    (tmp_path / "pseudonym.key").write_text("fedcba9876543210\n")
    from_files = ServiceSecrets.from_environment(
        {
            "COUPONLAB_API_KEYS_FILE": str(tmp_path / "keys"),
            "COUPONLAB_PSEUDONYM_KEY_FILE": str(tmp_path / "pseudonym.key"),
        }
    )
    assert given == from_files
    assert given.api_keys == keys
    assert given.keys.secret == b"fedcba9876543210"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "set COUPONLAB_API_KEYS, or COUPONLAB_API_KEYS_FILE"),
        (SECRETS | {"COUPONLAB_API_KEYS": " , "}, "holds no key"),
        (SECRETS | {"COUPONLAB_API_KEYS": "0123456789abcdef short"}, "key 2"),
        (SECRETS | {"COUPONLAB_API_KEYS": "0123456789abcdeé"}, "ASCII"),
        (SECRETS | {"COUPONLAB_PSEUDONYM_KEY": "short"}, "at least 16 bytes"),
        (SECRETS | {"COUPONLAB_API_KEYS_FILE": "/no/such/file"}, "COUPONLAB_API_KEYS_FILE"),
    ],
)
def test_bad_secrets_are_named_but_not_shown(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ServiceSettingsError, match=message) as caught:
        ServiceSecrets.from_environment(environment)
    assert "0123456789" not in str(caught.value)


def test_secrets_do_not_show_themselves() -> None:
    secrets = ServiceSecrets.from_environment(SECRETS)
    assert "0123" not in repr(secrets)
    assert "fedc" not in repr(secrets) + repr(secrets.keys)
