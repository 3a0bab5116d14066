"""Explanations as people and programs read them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from sockguard.identity.accounts import Accounts
from sockguard.identity.peer import OVERFLOW_ID, Peer, Unknown
from sockguard.policy.explain import explain, printable, render, to_json
from sockguard.policy.rule import Action, NamedWho, Rule, Users, Who

NOW = datetime(2027, 1, 31, tzinfo=UTC)
NAMES = Accounts([("alice", 1000, 100), ("carol", 1003, 100)], [("users", 100), ("sudo", 27)])
CAROL = Peer(1003, 100, frozenset([100]), executable="/bin/x", cgroup="/user.slice/a.scope", label=Unknown("no module"))


def allow(who: Who, **more: object) -> Rule:
    """The first allow of a proxy."""
    return Rule("db.allow[0]", Action.ALLOW, who, **more)  # type: ignore[arg-type]


def test_rendered() -> None:
    """The verdict, its reason, then for each rule what came of it, in columns."""
    rules = [
        allow(Who(users=Users(uids=frozenset([1000]), ranges=((2000, 2999),)))),
        Rule("db.deny[0]", Action.DENY, Who(groups=frozenset([27, 28]))),
    ]
    assert render(explain(rules, CAROL, NOW, NAMES), "db", NAMES) == (
        "deny  db  user carol (uid 1003), program /bin/x, cgroup /user.slice/a.scope\n"
        "because no allow rule matches\n"
        "  db.allow[0]  does not match  users: uid 1003 is not among alice, 2000-2999\n"
        "  db.deny[0]   does not match  groups: none of its groups (users) is among sudo, 28"
    )


def why(rule: Rule, peer: Peer = CAROL) -> tuple[str, str | None]:
    """The outcome of one rule, and the first condition that failed, in words."""
    outcome = explain([rule], peer, NOW, NAMES).rules[0]
    return outcome.outcome, outcome.why and f"{outcome.condition}: {outcome.why}"


def test_each_condition_in_words() -> None:
    """What the peer has stands beside what the rule asks for."""
    no = "does not match"
    assert why(allow(Who(executables=("/bin/y", "/z/*")))) == (no, "executables: /bin/x matches none of /bin/y, /z/*")
    assert why(allow(Who(units=("a.scope",)))) == (
        no,
        "units: cgroup /user.slice/a.scope, no system unit, matches none of a.scope",
    )
    assert why(allow(Who(labels=("x",)))) == ("may match, so does not allow", "labels: cannot be known: no module")
    assert why(allow(Who(), until=NOW)) == (no, "until: the rule ended at 2027-01-31T00:00:00Z")
    named = (NamedWho("ops", Who(users=Users(uids=frozenset([1000])))), NamedWho("sets", Who(groups=frozenset([27]))))
    assert why(allow(Who(), sets=named)) == (
        no,
        (
            "who: not in ops (users: uid 1003 is not among alice); "
            "not in sets (groups: none of its groups (users) is among sudo)"
        ),
    )


def test_outcomes() -> None:
    """What a rule did, and not only whether it matched."""
    anyone = Who(users=Users(anyone=True))
    deny = Rule("d", Action.DENY, anyone)
    maybe = Rule("m", Action.DENY, Who(labels=("x",)))
    some = Rule("s", Action.DENY, anyone, what=("x",))
    outcomes = [outcome.outcome for outcome in explain([allow(anyone), deny, maybe, some], CAROL, NOW).rules]
    assert outcomes == ["would allow, but a deny beats it", "denies", "may match, so denies", "may deny some requests"]
    assert why(allow(anyone)) == ("allows", None)


def test_long_lists_are_cut() -> None:
    """A thousand users do not fill the screen; how many more there are is said."""
    text = why(allow(Who(users=Users(uids=frozenset(range(2000))))), Peer(5000, 1, frozenset([1])))[1]
    assert text
    assert text.endswith(", 11 and 1988 more")


def test_text_of_a_peer_cannot_lead_a_terminal_astray() -> None:
    """Control characters, newlines, and bytes that are no UTF-8 are shown escaped."""
    peer = Peer(1, 1, frozenset([1]), executable="/tmp/\x1b[2J\nallow\udcff\u202e", user="a\rb")
    text = render(explain([allow(Who(executables=("/x",)))], peer, NOW), "p")
    assert len(text.split("\n")) == 3
    assert text.replace("\n", "").isprintable()
    assert text.encode()
    assert printable("/tmp/é x") == "/tmp/é x"


def test_json() -> None:
    """One object with the verdict, the peer, and the rules; unknown facts are null beside their reasons."""
    data = to_json(explain([allow(Who(groups=frozenset([100])))], CAROL, NOW), "db")
    assert json.loads(json.dumps(data)) == {
        "proxy": "db",
        "verdict": "allow",
        "rule": "db.allow[0]",
        "reason": "allowed by db.allow[0]",
        "peer": {
            "uid": 1003,
            "gid": 100,
            "user": None,
            "pid": 0,
            "groups": [100],
            "executable": "/bin/x",
            "cgroup": "/user.slice/a.scope",
            "unit": None,
            "label": None,
            "unknown": {"label": "no module"},
        },
        "rules": [
            {
                "name": "db.allow[0]",
                "action": "allow",
                "matches": "yes",
                "outcome": "allows",
                "condition": None,
                "why": None,
                "by_request": False,
            }
        ],
    }
    denied = to_json(explain([], Peer(1, OVERFLOW_ID, Unknown("not told")), NOW), "db")
    assert (denied["verdict"], denied["rule"]) == ("deny", None)
