from __future__ import annotations

import asyncio

from pyderp.keys import NodePrivate
from pyderp.server.site.pages import problems
from pyderp.server.site.view import RelayView

from .world import FakeAdmission, FakeServed, bare, client


def found(view: RelayView) -> list[str]:
    return asyncio.run(problems(view))


def with_clients(**more: object) -> RelayView:
    """Return two connections of one key, which fail upstream's check, and one before its login."""
    key = NodePrivate.generate().public
    served = [FakeServed(client(1, key=key)), FakeServed(client(2, key=key)), FakeServed()]
    view = bare(*served, **more)
    for each in served:
        if each.connection is not None:
            view.router.login(each.connection)
    return view


def test_duplicates_are_no_problem() -> None:
    assert found(with_clients()) == []


def test_tables_that_do_not_agree_are_reported() -> None:
    view = with_clients()
    view.router.counters.home_connections += 1
    assert found(view) == ["home connections = 1 != the connections say 0"]


def test_a_login_without_a_socket_is_reported() -> None:
    view = with_clients()
    view.router.login(client(3))
    assert found(view) == ["connections = 3 != 2 sockets are logged in"]


def test_admission_that_allows_this_machine_is_no_problem() -> None:
    assert found(with_clients(admission=FakeAdmission())) == []


def test_a_failed_self_check_that_is_a_trouble_too_is_reported_once() -> None:
    wrong = "localClient.Status: no such socket"
    admission = FakeAdmission(wrong)
    admission.failing = f"local tailscaled does not answer, clients are refused: {wrong}"
    assert found(with_clients(admission=admission)) == [admission.failing]


def test_admission_that_would_refuse_this_machine_is_reported() -> None:
    trouble = "localClient.Status: no such socket"
    assert found(with_clients(admission=FakeAdmission(trouble))) == [trouble]
