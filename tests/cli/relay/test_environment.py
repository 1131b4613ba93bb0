"""Environment variables that look like settings and are none."""

from __future__ import annotations

import pytest

from pyderp.cli.relay.environment import unknown_variables
from pyderp.cli.relay.flags import FLAGS
from pyderp.cli.relay.layers import load_settings
from tests.cli.process import pyderp, running

from .test_run import LOCAL


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("PYDERP_VERIFY_CLIENT", "; did you mean PYDERP_VERIFY_CLIENTS?"),
        ("PYDERP_VERIFYCLIENTS", "; did you mean PYDERP_VERIFY_CLIENTS?"),
        ("PYDERP_verify_clients", "; did you mean PYDERP_VERIFY_CLIENTS?"),
        ("pyderp_verify_clients", "; did you mean PYDERP_VERIFY_CLIENTS?"),
        ("PYDERP_ALLOW_KEYS", "; did you mean PYDERP_ALLOW_KEYS_FILE?"),
        ("PYDERP_A", "; did you mean PYDERP_ADDRESS?"),
        ("PYDERP_C", "; did you mean PYDERP_KEY_FILE?"),
        ("PYDERP_CHECK", "; --check is a flag of the command line only"),
        ("PYDERP_XYZZY", "; remove it"),
        ("PYDERP_PORT", None),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_the_nearest(
    name: str, advice: str | None
) -> None:
    (line,) = unknown_variables({name: "true"})
    assert line.startswith(f"{name} in the environment: no such setting")
    if advice is not None:
        assert line == f"{name} in the environment: no such setting{advice}"


def test_settings_other_commands_and_service_variables_are_ignored() -> None:
    """Kubernetes sets variables for each service, and a service may be called pyderp."""
    settings = [flag.variable for flag in FLAGS if flag.variable]
    others = ["PYDERP_KEY", "TS_NO_SUCH", "PYDERP", "HOME", "MY_PYDERP_X"]
    services = [
        "PYDERP_SERVICE_HOST",
        "PYDERP_SERVICE_PORT",
        "PYDERP_SERVICE_PORT_HTTPS",
        "PYDERP_PORT",
        "PYDERP_PORT_443_TCP",
        "PYDERP_PORT_3478_UDP_ADDR",
        "PYDERP_RELAY_PORT",
        "PYDERP_RELAY_PORT_443_TCP_PROTO",
    ]
    environment = dict.fromkeys([*settings, *others, *services], "tcp://10.0.0.1:443")
    assert list(unknown_variables(environment)) == []


@pytest.mark.parametrize("derper", [False, True])
def test_each_is_a_problem_and_its_value_is_not_shown(derper: bool) -> None:
    environment = {"PYDERP_ACME_EAB_KEYS": "secret", "PYDERP_VERIFY_CLIENT": "", "PATH": "x"}
    problems = load_settings({}, derper=derper, environment=environment).problems
    assert [each.split()[0] for each in problems] == [*sorted(environment)[1:]]
    assert "secret" not in "".join(problems)


@pytest.mark.parametrize("command", ["relay", "derper"])
def test_a_relay_with_a_misspelled_variable_does_not_start(command: str) -> None:
    dash = "-" if command == "derper" else "--"
    result = pyderp(command, f"{dash}dev", PYDERP_VERIFY_CLIENT="true")
    assert result.returncode == 1
    assert result.stderr == (
        "pyderp: PYDERP_VERIFY_CLIENT in the environment: no such setting; did you mean "
        "PYDERP_VERIFY_CLIENTS?\n"
    )
    result = pyderp(command, f"{dash}dev", f"{dash}check", PYDERP_VERIFY_CLIENT="true")
    assert result.returncode == 1
    assert "did you mean PYDERP_VERIFY_CLIENTS?" in result.stderr


def test_a_relay_beside_a_service_of_its_name_starts() -> None:
    with running("--dev", *LOCAL, PYDERP_PORT="tcp://10.0.0.1:443") as process:
        process.address()
