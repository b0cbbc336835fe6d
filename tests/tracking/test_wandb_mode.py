from __future__ import annotations

from pathlib import Path

import pytest

from matrix.errors import ConfigError
from matrix.spec.tracker import WandbTracker
from matrix.tracking.tracker import check_tracker
from matrix.tracking.wandb import choose_mode

KEY = "local" + "0" * 40


def _spec(mode: str = "auto") -> WandbTracker:
    return WandbTracker.model_validate({"kind": "wandb", "mode": mode})


def _netrc(place: Path) -> None:
    path = place / "home" / ".netrc"
    path.write_text(f"machine wandb.here\n  login user\n  password {KEY}\n")
    path.chmod(0o600)


def test_auto_without_a_key_is_offline_and_asks_for_none(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert choose_mode(_spec()) == "offline"
    assert capfd.readouterr() == ("", "")


def test_auto_finds_a_key_in_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert choose_mode(_spec()) == "online"


def test_auto_finds_a_key_in_netrc_of_the_server_that_is_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _netrc(place)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.here")
    assert choose_mode(_spec()) == "online"


def test_auto_does_not_take_the_key_of_another_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _netrc(place)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.elsewhere")
    assert choose_mode(_spec()) == "offline"


def test_auto_finds_a_key_in_the_settings_file_quietly(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = place / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\napi_key = {KEY}\nbase_url = https://wandb.here\n")
    assert choose_mode(_spec()) == "online"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("said", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")])
def test_the_environment_wins_over_auto(place: Path, monkeypatch: pytest.MonkeyPatch, said: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", said)
    assert choose_mode(_spec()) == mode


def test_wandb_offline_in_this_folder_wins_over_auto(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (place / "wandb").mkdir()
    (place / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert choose_mode(_spec()) == "offline"


def test_the_config_wins_over_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode(_spec("online")) == "online"
    assert choose_mode(_spec("offline")) == "offline"


def test_online_without_a_key_is_a_config_error_with_the_way_out(place: Path) -> None:
    [problem] = check_tracker(_spec("online"))
    assert str(problem) == (
        "tracker.mode=online: no W&B key was found "
        "(set WANDB_API_KEY, run `wandb login`, or choose tracker.mode=offline)"
    )
    with pytest.raises(ConfigError, match="can't be logged to W&B"):
        choose_mode(_spec("online"))


def test_online_by_the_environment_needs_a_key_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert [problem.key for problem in check_tracker(_spec())] == ["tracker.mode"]


def test_a_key_that_cannot_be_one_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    [problem] = check_tracker(_spec("online"))
    assert problem.message == "WANDB_API_KEY invalid: API key must have 40+ characters, has 5."
    assert choose_mode(_spec()) == "offline"


def test_a_mode_that_does_not_exist_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    [problem] = check_tracker(_spec())
    assert str(problem).startswith("WANDB_MODE=ofline: no such mode (the environment may say online, run, offline")
