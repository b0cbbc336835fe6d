"""The command lines of podman and apptainer: what of the config stands in them, and that no client adds to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from matrix.containers.apptainer import Apptainer
from matrix.containers.podman import Podman
from matrix.containers.runtime import Command, check_reference
from matrix.errors import AppError
from matrix.spec.services import ContainerEngine

ROOT = Path("/place")


def engine(backend: str) -> ContainerEngine:
    return ContainerEngine.model_validate(
        {
            "kind": "container",
            "backend": backend,
            "memory_mb": 100,
            "processes": 20,
            "mounts": {"/data": "/shared/data"},
            "environment": {"A": "1,2"},
            "args": ["--more"],
        }
    )


def test_podman() -> None:
    line = " ".join(Podman(engine("podman")).start_line("matrix-a-b", "debian:12", ROOT))
    assert line.startswith("podman run --detach --name matrix-a-b --label matrix=/place --http-proxy=false ")
    for part in ("--memory 100m", "--pids-limit 20", "--network none", "--cap-drop all", "--env A=1,2"):
        assert f" {part} " in line
    assert " --mount type=bind,source=/shared/data,destination=/data,readonly --env" in line
    assert line.endswith("--more --entrypoint sh debian:12 -c while :; do sleep 86400; done")


def test_apptainer() -> None:
    # https://apptainer.org/docs/user/latest/cli/apptainer_instance_start.html
    box = Apptainer(engine("apptainer"))
    assert box.start_line("matrix-a-b", "docker://debian:12", ROOT) == [
        *("apptainer", "instance", "start", "--containall", "--cleanenv", "--no-home", "--fakeroot"),
        *("--writable-tmpfs", "--memory", "100M", "--pids-limit", "20", "--net", "--network", "none"),
        *("--bind", "/shared/data:/data:ro", "--more", "docker://debian:12", "matrix-a-b"),
    ]
    command = Command(["ls", "-l"], timeout_s=1, limit=1, cwd="/etc")
    line = "apptainer exec --cleanenv --pwd /etc instance://matrix-a-b ls -l"
    assert box.execute_line("matrix-a-b", command) == line.split()


def test_a_client_reaches_apptainers_environment_by_prefix_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPTAINERENV_TOKEN", "secret")
    made = Apptainer(engine("apptainer")).environment({"LD_PRELOAD": "/x.so"})
    assert made["APPTAINERENV_LD_PRELOAD"] == "/x.so"
    assert made["APPTAINERENV_A"] == "1,2"
    assert "LD_PRELOAD" not in made
    assert "APPTAINERENV_TOKEN" not in made


@pytest.mark.parametrize("image", ["/etc", "oci-archive:/etc/passwd", "-v", "../x", "dir:/x", "a b", ""])
def test_no_client_names_a_file_of_the_host(image: str) -> None:
    with pytest.raises(AppError, match="should be an image's name"):
        check_reference(image, "podman")


def test_names_of_images() -> None:
    for name in ("debian:12", "ghcr.io/a/b.c:1", "swebench/sweb.eval.x86_64.a_1776_b-1:latest"):
        assert check_reference(name, "apptainer") == f"docker://{name}"
    # Also what podman alone would take for a folder.
    assert check_reference("oci:folder", "podman") == "docker://oci:folder"
    with pytest.raises(AppError, match="rootfs has the images of"):
        check_reference("debian:12", "rootfs")
