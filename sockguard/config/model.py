"""The shape of the file: its tables and keys, their types, bounds, defaults and descriptions, as pydantic models.

The one place where a key is declared, but for those that a protocol reads itself (requests.py); the JSON Schema for
editors is made from both. It knows what stands in one key and nothing about two of them: whatever compares keys,
tables or files is in resolve.py and crosscheck.py, because pydantic skips such checks after the first mistake. No
unions either: pydantic would report each member.

Every key may be absent here; ``required`` in the schema is checked by resolve.py. In a list of values, None stands
where there was a mistake (TOML has no null).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, PlainValidator, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from sockguard.config import available, runtime, values
from sockguard.config.settings import Listen
from sockguard.config.values import Bad
from sockguard.protocols.registry import PROTOCOLS, rules_of
from sockguard.words import did_you_mean, kind, quoted

_SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class _OneOf:
    """Beside a Literal: say what would have been right, in plain words."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        names: tuple[str, ...] = get_args(source)

        def check(value: object) -> object:
            if value in names and isinstance(value, str):
                return value
            wanted = f"must be {'one of ' if len(names) > 1 else ''}{', '.join(map(quoted, names))}"
            if not isinstance(value, str):
                raise Bad(f"{wanted}, not {kind(value)}")
            raise Bad(f"{wanted}, not {quoted(value)}{did_you_mean(value, names)}")

        return core_schema.no_info_before_validator_function(check, handler(source))


_ID_SCHEMA: Final = {"type": "integer", "minimum": 0, "maximum": values.MAX_ID}
_TEXT_SCHEMA: Final = {"type": "string", "minLength": 1}

Seconds: TypeAlias = Annotated[
    float, PlainValidator(values.seconds), WithJsonSchema({"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"})
]
Count: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
Text: TypeAlias = Annotated[str | None, PlainValidator(values.text), WithJsonSchema(_TEXT_SCHEMA)]
Account: TypeAlias = Annotated[
    str | int | None,
    PlainValidator(lambda value: None if value is None else values.account(value)),
    WithJsonSchema({"anyOf": [_TEXT_SCHEMA, _ID_SCHEMA]}),
]
User: TypeAlias = Annotated[
    str | int | tuple[int, int] | None,
    PlainValidator(lambda value: None if value is None else values.user(value)),
    WithJsonSchema({"anyOf": [_TEXT_SCHEMA, _ID_SCHEMA]}),
]


def _pattern(check: Any, **schema: str) -> Any:
    """The element of a list of patterns."""
    return (
        PlainValidator(lambda value: None if value is None else check(value)),
        WithJsonSchema({**_TEXT_SCHEMA, **schema}),
    )


Executable: TypeAlias = Annotated[str | None, *_pattern(values.executable, pattern="^/")]
Unit: TypeAlias = Annotated[str | None, *_pattern(values.unit)]
Label: TypeAlias = Annotated[str | None, *_pattern(values.label)]
SetName: TypeAlias = Annotated[str | None, *_pattern(values.text)]


class Table(BaseModel):
    """What every table has in common: no unknown key, no silent conversion."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DaemonTable(Table):
    """The daemon as a whole."""

    control: Annotated[
        str | None, PlainValidator(runtime.control), WithJsonSchema({"type": "string", "pattern": "^(/.*)?$"})
    ] = Field(default=None, description='Path of the control socket (status, reload); "" for none.')
    metrics: Annotated[str, PlainValidator(runtime.metrics), WithJsonSchema({"type": "string"})] = Field(
        default="", description='Where Prometheus reads: "ADDRESS:PORT", or the path of a socket; "" for nowhere.'
    )
    relays: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="Number of relay processes; 0: one per CPU, at most 8."
    )
    drain_timeout: Seconds = Field(
        default="30s",
        validate_default=True,
        description='After SIGTERM: how long live connections may go on, such as "30s".',
    )


class LogTable(Table):
    """Audit events go to standard output, other log lines to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _OneOf()] = Field(
        default="info", description="Least level of log lines that are written; never filters audit events."
    )
    format: Annotated[Literal["auto", "console", "json"], _OneOf()] = Field(
        default="auto", description="auto: console on a terminal, else json."
    )
    requests: Annotated[Literal["denied", "all"], _OneOf()] = Field(
        default="denied", description="all: one audit event for each allowed request too."
    )


class WhoTable(Table):
    """Conditions on the peer. All keys that are given must hold; in each, any value of the list will do."""

    users: list[User] | None = Field(
        default=None, description='Effective uid: a name, a number, a range "1000-1999", or "*" for anyone.'
    )
    groups: list[Account] | None = Field(
        default=None, description="Effective gid or any supplementary group: a name or a number."
    )
    executables: list[Executable] | None = Field(
        default=None,
        description="Path of the program, exact or a glob. Narrows a rule, does not authenticate: "
        "an allow also needs users or groups.",
    )
    units: list[Unit] | None = Field(
        default=None,
        description="systemd unit: a name such as x.service (never below user.slice), or the whole cgroup path from "
        "'/'; globs do not cross '/'. Narrows a rule: an allow also needs users or groups.",
    )
    labels: list[Label] | None = Field(default=None, description="Label of the security module, a glob.")


WHO_KEYS: Final = ("users", "groups", "executables", "units", "labels")
"""The keys of conditions; a rule has "who" besides."""


class RuleTable(WhoTable):
    """One rule; it needs at least one of who, users, groups, executables, units, labels."""

    name: Text = Field(default=None, description="The rule's name in logs and messages; else PROXY.allow[0].")
    who: list[SetName] | None = Field(default=None, description="Named sets [who.NAME]; one of them must hold too.")
    until: Annotated[
        datetime | None, PlainValidator(values.until), WithJsonSchema({"type": "string", "format": "date-time"})
    ] = Field(
        default=None,
        description="The rule ends then, for live connections too: a date-time with its offset, 2027-01-31T00:00:00Z.",
    )

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [key]} for key in ("who", *WHO_KEYS)]})


class ExpectTable(Table):
    """A verdict that the rules must give to such a peer, or the file is refused. It needs user or uid, and verdict."""

    user: Text = Field(default=None, description="Name of the user; gid and groups are those of the account.")
    uid: Annotated[int | None, PlainValidator(values.identifier), WithJsonSchema(_ID_SCHEMA)] = Field(
        default=None, description="Effective uid, instead of user; gid and groups are then only what is given here."
    )
    gid: Account = Field(default=None, description="Effective gid: a name or a number.")
    groups: list[Account] | None = Field(default=None, description="Supplementary groups: names or numbers.")
    executable: Annotated[str | None, PlainValidator(values.program), WithJsonSchema(_TEXT_SCHEMA)] = Field(
        default=None, description="Path of the program."
    )
    unit: Annotated[str | None, PlainValidator(values.cgroup), WithJsonSchema(_TEXT_SCHEMA)] = Field(
        default=None, description="Unit (x.service: /system.slice/x.service), or the whole cgroup path."
    )
    label: Text = Field(default=None, description="Label of the security module.")
    request: Text = Field(
        default=None, description="A request, as explain --request takes it; stream and seqpacket proxies have none."
    )
    verdict: Annotated[Literal["allow", "deny"], _OneOf()] | None = Field(
        default=None, description="What the rules must say."
    )

    model_config = ConfigDict(
        json_schema_extra={"required": ["verdict"], "oneOf": [{"required": ["user"]}, {"required": ["uid"]}]}
    )


class ProxyTable(Table):
    """One guarded service: the public socket, the private one, and who may pass."""

    listen: Annotated[
        Listen | None, PlainValidator(values.listen), WithJsonSchema({"type": "string", "pattern": "^(/|@.|fd:.)"})
    ] = Field(
        default=None,
        description='The public socket: a path, "@abstract", or "fd:NAME" (systemd\'s FileDescriptorName).',
    )
    mode: Annotated[
        int, PlainValidator(values.mode), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 0o777})
    ] = Field(default=0o666, description="Mode of the public socket, where listen is a path: an integer such as 0o660.")
    owner: Account = Field(default=None, description="Owner of the public socket, where listen is a path.")
    group: Account = Field(default=None, description="Group of the public socket, where listen is a path.")
    backend: Annotated[
        str | None, PlainValidator(values.backend), WithJsonSchema({"type": "string", "pattern": "^/"})
    ] = Field(default=None, description="The private socket that the service listens on: an absolute path.")
    protocol: Annotated[available.Protocol, _OneOf()] = Field(
        default="stream",
        description="What is spoken; stream: bytes, seqpacket: records, neither read by anyone; dbus, http: requests, "
        "each judged by the rules.",
    )
    identity: Annotated[available.Identity, _OneOf()] = Field(
        default="proxy",
        description="Whom the backend sees as its peer; proxy: sockguard; client: the client's uid, gid and groups.",
    )
    allow_root_identity: bool = Field(
        default=False, description='With identity = "client": may the backend be shown uid 0.'
    )
    fds: Annotated[Literal["forward", "refuse"], _OneOf()] | None = Field(
        default=None,
        description="What becomes of file descriptors that are passed along (SCM_RIGHTS); default: forward for stream, "
        "seqpacket and dbus, else refuse.",
    )
    sender: Annotated[available.Sender, _OneOf()] = Field(
        default="any",
        description="Who may send on a connection; any: whoever holds it; same-user: the uid that connected.",
    )
    delivery: Annotated[available.Delivery, _OneOf()] = Field(
        default="relay", description="How a connection reaches the service; relay: its bytes are passed on."
    )
    enforce: bool = Field(
        default=True, description="false: permissive; what the rules would deny is logged (would_deny) and let through."
    )
    max_connections: Count = Field(default=1024, description="Connections at one time.")
    max_connections_per_user: Count = Field(default=128, description="Connections of one user at one time.")
    connect_timeout: Seconds = Field(
        default="5s", validate_default=True, description="How long a connection may wait for the backend."
    )
    idle_timeout: Seconds = Field(
        default="0s",
        validate_default=True,
        description='A connection idle for so long is closed; "0s": never.',
    )
    allow: list[RuleTable] = Field(default=[], description="Rules that let a peer in, unless a deny matches it.")
    deny: list[RuleTable] = Field(default=[], description="Rules that keep a peer out; they beat every allow.")
    expect: list[ExpectTable] = Field(
        default=[], description="Verdicts that check and every reload must find, or the file is refused."
    )

    model_config = ConfigDict(json_schema_extra={"required": ["listen", "backend", "allow"]})


_NAMES: Final[dict[str, Any]] = {"propertyNames": {"pattern": f"^{values.NAME_PATTERN}$"}}


class FileTable(Table):
    """The configuration of sockguard."""

    daemon: DaemonTable = Field(default_factory=DaemonTable, description="The daemon as a whole.")
    log: LogTable = Field(default_factory=LogTable, description="Log lines and audit events.")
    who: dict[str, WhoTable] = Field(
        default={}, description='Named sets of peers, used as who = ["NAME"].', json_schema_extra=_NAMES
    )
    proxy: dict[str, ProxyTable] = Field(
        default={}, description="One table for each guarded service.", json_schema_extra=_NAMES
    )

    model_config = ConfigDict(title="sockguard.toml")


def keys_of(path: tuple[str | int, ...]) -> tuple[str, ...]:
    """The keys that the table at ``path`` may have; none when there is no table there."""
    table: type[Table]
    match path:
        case ():
            table = FileTable
        case ("daemon",):
            table = DaemonTable
        case ("log",):
            table = LogTable
        case ("who", _):
            table = WhoTable
        case ("proxy", _):
            return (*ProxyTable.model_fields, *(entry.options for entry in PROTOCOLS.values()))
        case ("proxy", _, "allow" | "deny", _):
            return (*RuleTable.model_fields, *(key for entry in PROTOCOLS.values() for key in entry.what))
        case ("proxy", _, "expect", _):
            table = ExpectTable
        case _:
            return ()
    return tuple(table.model_fields)


class _EditorSchema(GenerateJsonSchema):
    """Without what TOML has no use for: null, and titles made up from key names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of one file, for editors. Imports every protocol's rules."""
    made = FileTable.model_json_schema(schema_generator=_EditorSchema)
    tables = made["$defs"]
    for name, entry in PROTOCOLS.items():
        schema: Mapping[str, Any] = rules_of(name).schema
        tables["RuleTable"]["properties"].update({key: schema["what"][key] for key in entry.what})
        tables["ProxyTable"]["properties"][entry.options] = schema["options"]
    return {"$schema": _SCHEMA_DIALECT, **made}
