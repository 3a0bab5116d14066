"""Presets: each lets its program work, and none that reads gives out what is worth more than reading."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

import pytest

from sockguard.protocols.http.presets import PRESETS, READING
from tests.unit.protocols.http.ruling import DOCKER, allowed, ask, compiled, preset

NEVER = [
    "/containers/{}/export",
    "/containers/{}/archive",
    "/containers/{}/attach/ws",
    "/containers/{}/attach",
    "/containers/{}/changes",
    "/images/{}/get",
    "/images/get",
    "/secrets",
    "/secrets/{}",
    "/secrets/{}/json",
    "/secrets/json",
    "/configs",
    "/configs/{}",
    "/swarm",
    "/swarm/unlockkey",
    "/generate/{}/kube",
    "/images/export",
    "/volumes/{}/export",
    "/exec/{}/json",
    "/session",
]
CHANGING = [
    "/containers/create",
    "/containers/{}/exec",
    "/containers/{}/start",
    "/build",
    "/images/create",
    "/exec/{}/start",
]
PREFIXES = ["", "/v1.43", "/libpod", "/v4.6.1/libpod"]


@pytest.mark.parametrize("name", sorted(READING))
@pytest.mark.parametrize("thing", ["x", "team/app", "a/b/c", "json", "x%2Fy", "sha256:0a"])
def test_what_reads_gives_out_no_files_and_no_secrets(name: str, thing: str) -> None:
    judge = compiled(preset(name), options=DOCKER)
    for prefix in PREFIXES:
        for path in NEVER:
            for method in ("GET", "HEAD", "POST"):
                assert not allowed(judge, f"{method} {prefix}{path.format(thing)}")
        for path in CHANGING:
            for method in ("POST", "PUT", "DELETE", "PATCH"):
                assert not allowed(judge, f"{method} {prefix}{path.format(thing)}")


@pytest.mark.parametrize("name", sorted(READING))
def test_what_reads_only_reads(name: str) -> None:
    for entry in cast("list[dict[str, Any]]", preset(name).what):
        assert set(entry["methods"]) <= {"GET", "HEAD"}
        assert set(entry) == {"methods", "path"}


def test_no_preset_opens_a_tunnel_that_nobody_judges_or_a_whole_tree() -> None:
    for name in PRESETS:
        judge = compiled(preset(name), options=DOCKER)
        assert not judge.allows_h2c(ask("POST /session upgrade=h2c"))
        for text in ("GET /", "GET /x", "GET /v1.43", "POST /grpc upgrade=h2c", "POST /build", "POST /images/load",
                     "PUT /containers/x/archive", "POST /plugins/pull", "POST /swarm/init", "POST /containers/x/update",
                     "POST /images/create?fromSrc=-", "POST /volumes/create", "POST /networks/create",
                     "POST /secrets/create", "POST /commit", "GET /images/x/get"):  # fmt: skip
            assert not allowed(judge, text), f"{name}: {text}"


USED: dict[str, list[str]] = {
    "docker:ping": ["HEAD /_ping", "GET /v1.43/_ping"],
    "docker:traefik": [
        "HEAD /_ping", "GET /v1.24/version", "GET /v1.24/containers/json?limit=0", "GET /v1.24/containers/0a/json",
        "GET /v1.24/events?filters=x", "GET /services", "GET /v1.24/tasks?filters=x", "GET /v1.24/networks?filters=x",
    ],
    "docker:homepage": [
        "GET /containers/json?all=true", "GET /containers/web/stats?stream=false", "GET /containers/web/json",
        "GET /services/web", "GET /tasks?filters=x",
    ],
    "docker:dozzle": [
        "GET /_ping", "GET /v1.43/info", "GET /v1.43/containers/x/logs?follow=1&stdout=1", "GET /v1.43/events",
        "GET /v1.43/containers/x/stats",
    ],
    "docker:diun": ["GET /v1.43/containers/json", "GET /v1.43/images/sha256:0a/json", "GET /v1.43/services"],
    "docker:autoheal": ["GET /containers/json?filters=x", "POST /containers/0a/restart?t=10"],
    "docker:watchtower": [
        "GET /v1.25/containers/json?filters=x", "POST /v1.25/containers/x/kill?signal=SIGTERM",
        "DELETE /v1.25/containers/x?force=1&v=1", "POST /v1.25/images/create?fromImage=a&tag=b",
        "POST /v1.25/containers/create?name=x", "POST /v1.25/networks/n/connect", "POST /v1.25/containers/x/start",
        "DELETE /v1.25/images/team/app:1", "POST /v1.25/containers/x/rename?name=y",
    ],
    "docker:portainer-readonly": [
        "GET /info", "GET /containers/x/top", "GET /images/a/b/history", "GET /volumes", "GET /services/x/logs",
    ],
    "docker:ci-runner": [
        "HEAD /_ping", "POST /v1.43/containers/create?name=x", "POST /v1.43/containers/x/attach?stream=1 upgrade=tcp",
        "POST /v1.43/containers/x/wait?condition=removed", "POST /v1.43/containers/x/start",
        "POST /v1.43/exec/x/start upgrade=tcp", "DELETE /v1.43/containers/x?force=1",
        "POST /v1.43/images/create?fromImage=docker.io%2Flibrary%2Falpine&tag=latest",
    ],
    "podman:readonly": [
        "GET /v4.6.1/libpod/_ping", "GET /v4.6.1/libpod/containers/json", "GET /v4.6.1/libpod/images/a/b/json",
        "GET /libpod/containers/stats?stream=false", "GET /v5.0.0/libpod/pods/json",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_lets_its_program_do_its_work(name: str) -> None:
    judge = compiled(preset(name), options=DOCKER)
    assert [text for text in USED[name] if not allowed(judge, text)] == []


def test_the_descriptions_are_one_line() -> None:
    assert all("\n" not in one.description and one.description for one in PRESETS.values())


# Docker's own client, version 28, `docker run --rm alpine true`: members at nothing, as it sends them.
RUN: dict[str, Any] = {
    "Hostname": "", "User": "", "AttachStdout": True, "Env": None, "Cmd": ["true"], "Image": "alpine", "Volumes": {},
    "Entrypoint": None, "Labels": {},
    "HostConfig": {
        "Binds": None, "ContainerIDFile": "", "LogConfig": {"Type": "", "Config": {}}, "NetworkMode": "default",
        "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": True,
        "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [0, 0], "CapAdd": None, "CapDrop": None,
        "CgroupnsMode": "", "Dns": [], "ExtraHosts": None, "GroupAdd": None, "IpcMode": "", "Cgroup": "", "Links": None,
        "PidMode": "", "Privileged": False, "SecurityOpt": None, "UTSMode": "", "UsernsMode": "", "Isolation": "",
        "CgroupParent": "", "Devices": [], "DeviceCgroupRules": None, "DeviceRequests": None, "MemorySwappiness": -1,
        "MaskedPaths": None, "ReadonlyPaths": None,
    },
    "NetworkingConfig": {"EndpointsConfig": {"default": {"IPAMConfig": None, "NetworkID": ""}}},
}  # fmt: skip
DANGEROUS: list[tuple[str, object]] = [
    ("Privileged", True),
    ("Binds", ["/:/host"]),
    ("Binds", ["data:/data"]),
    ("Mounts", [{"Type": "bind", "Source": "/", "Target": "/host"}]),
    ("Mounts", [{"Type": "volume", "Target": "/h", "VolumeOptions": {"DriverConfig": {"Options": {"device": "/"}}}}]),
    ("VolumesFrom", ["other"]),
    ("VolumeDriver", "local"),
    ("PidMode", "host"),
    ("PidMode", "container:x"),
    ("IpcMode", "host"),
    ("UTSMode", "host"),
    ("UsernsMode", "host"),
    ("CgroupnsMode", "host"),
    ("NetworkMode", "host"),
    ("NetworkMode", "container:db"),
    ("NetworkMode", "ns:/proc/1/ns/net"),
    ("NetworkMode", "slirp4netns:allow_host_loopback=true"),
    ("Devices", [{"PathOnHost": "/dev/sda"}]),
    ("DeviceRequests", [{"Count": -1}]),
    ("DeviceCgroupRules", ["a *:* rwm"]),
    ("CapAdd", ["SYS_ADMIN"]),
    ("SecurityOpt", ["seccomp=unconfined"]),
    ("SecurityOpt", ["apparmor:unconfined"]),
    ("MaskedPaths", []),
    ("ReadonlyPaths", []),
    ("CgroupParent", "/"),
    ("Runtime", "runc2"),
    ("Sysctls", {"kernel.msgmax": "1"}),
    ("LogConfig", {"Type": "k8s-file", "Config": {"path": "/etc/profile.d/x.sh"}}),  # podman writes there, as root
    ("LogConfig", {"Type": "syslog", "Config": {"syslog-address": "unix:///run/x"}}),  # dockerd connects, as root
    ("LogConfig", {"Type": "passthrough"}),  # podman gives the container the descriptors of its own service
    ("LogConfig", {"Type": "passthrough-tty"}),
    ("LogConfig", {"type": "passthrough"}),
    ("LogConfig", {"Type": "syslog", "Config": {}}),
    ("LogConfig", {"Type": "journald"}),
    ("GroupAdd", ["100", "keep-groups"]),  # podman: the groups of its own service
    ("ContainerIDFile", "/etc/passwd"),
]


def test_the_ci_runner_may_run_what_the_client_runs() -> None:
    judge = compiled(preset("docker:ci-runner"), options=DOCKER)
    request = ask("POST /v1.43/containers/create")
    assert judge.wants_body(request)
    assert judge.judge_body(request, json.dumps(RUN).encode()).allowed
    assert judge.judge_body(request, b'{"Image": "alpine"}').allowed


@pytest.mark.parametrize(("member", "value"), DANGEROUS)
def test_the_ci_runner_gets_nothing_of_the_host(member: str, value: object) -> None:
    """Neither in HostConfig nor beside it, where dockerd reads the same members until version 24."""
    judge = compiled(preset("docker:ci-runner"), options=DOCKER)
    request = ask("POST /v1.43/containers/create")
    inside = {**RUN, "HostConfig": {**RUN["HostConfig"], member: value}}
    beside = {"Image": "alpine", member: value}
    folded = {"Image": "alpine", "HostConfig": {member.upper(): value}}
    renamed = {"Image": "alpine", "hostConfig": {member: value}}
    for body in (inside, beside, folded, renamed):
        assert not judge.judge_body(request, json.dumps(body).encode()).allowed
    assert not judge.judge_body(request, json.dumps({"Image": "x", "Volumes": {"/:/host": {}}}).encode()).allowed


@pytest.mark.parametrize("value", [{}, None, {"IPAMConfig": None, "NetworkID": ""}, {"Aliases": ["a"]}, [], "", False])
@pytest.mark.parametrize("key", ["host", "Host", "HOST"])
@pytest.mark.parametrize("mode", ["default", "bridge", "none", ""])
def test_the_ci_runner_names_the_host_s_network_nowhere(value: object, key: str, mode: str) -> None:
    """EndpointsConfig is a map: to the engine its keys are what counts."""
    judge = compiled(preset("docker:ci-runner"), options=DOCKER)
    request = ask("POST /v1.43/containers/create")
    endpoints = {"default": {"IPAMConfig": None}, key: value}
    config = {**RUN["HostConfig"], "NetworkMode": mode}
    body = {**RUN, "HostConfig": config, "NetworkingConfig": {"EndpointsConfig": endpoints}}
    assert not judge.judge_body(request, json.dumps(body).encode()).allowed
    for name in ("NetworkingConfig", "EndpointsConfig"):
        folded = json.dumps(body).replace(name, name.lower()).encode()
        assert not judge.judge_body(request, folded).allowed


def test_the_ci_runner_starts_containers_as_they_were_created() -> None:
    """dockerd before version 25 takes another HostConfig from the body under a version before 1.24."""
    judge = compiled(preset("docker:ci-runner"), options=DOCKER)
    request = ask("POST /v1.23/containers/x/start")
    assert judge.wants_body(request)
    assert not judge.judge_body(request, b'{"Binds": ["/:/host"]}').allowed
    assert not judge.judge_body(request, b'{"Privileged": true}').allowed
    assert judge.judge_body(request, b"{}").allowed
    assert judge.judge(dataclasses.replace(request, has_body=False, content_type=None)).allowed


def test_the_ci_runner_enters_containers_without_privilege() -> None:
    judge = compiled(preset("docker:ci-runner"), options=DOCKER)
    request = ask("POST /v1.43/containers/x/exec")
    assert judge.judge_body(request, b'{"Cmd": ["sh"], "Privileged": false}').allowed
    assert not judge.judge_body(request, b'{"Cmd": ["sh"], "Privileged": true}').allowed
    assert not judge.judge_body(request, b'{"Cmd": ["sh"], "privileged": true}').allowed
