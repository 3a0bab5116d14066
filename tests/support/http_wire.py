"""Requests as bytes on the wire, well formed and not, and what a strict guard makes of each.

Behind each that a lax reader may take for two stands SMUGGLED, which no rule here allows: had it any effect, somebody
read past the judged request.
"""

from __future__ import annotations

from dataclasses import dataclass

_BODY = b'{"Image":"bb:1","Cmd":["true"]}'
SMUGGLED = (
    b"POST /containers/create?name=smuggled HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)

RULES = """[
  "GET,HEAD /_ping", "GET /containers/json", "GET /containers/{id}/json", "POST,PUT /echo",
  { methods = ["GET"], path = "/asked", query = ["all", "size"] },
  { methods = ["POST"], path = "/exec/{id}/start", upgrade = ["tcp"] },
  { methods = ["POST"], path = "/made", body = { forbid = ["/HostConfig/Privileged=true", "/HostConfig/Binds"] } },
]"""
DENIED = """[ "GET /containers/secret/json" ]"""


@dataclass(frozen=True, slots=True)
class Case:
    """Bytes, and what must come of them.

    first    the statuses, one of which the first answer must have
    reaches  the requests that reach the service, "METHOD /path"; None: whether that one does is the guard's choice
    then     the statuses of all further answers; None: a refusal of what stands behind, or none
    body     a fault in a body: if it is under way already, its request reaches the service, cut short
    """

    name: str
    data: bytes
    first: tuple[int, ...]
    reaches: tuple[str, ...] | None = ()
    then: tuple[int, ...] | None = ()
    body: bool = False


PING = b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n"
_GET = "GET /containers/json"
BAD, NO, OK = (400,), (403,), (200,)


def get(target: bytes, *fields: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join((b"%s %s %s" % (method, target, version), b"Host: x", *fields, b"", b""))


def post(*fields: bytes, body: bytes = b"", target: bytes = b"/echo") -> bytes:
    return get(target, *fields, method=b"POST") + body


def _paths() -> list[Case]:
    def at(name: str, target: bytes, first: tuple[int, ...], reaches: tuple[str, ...] | None = ()) -> Case:
        return Case(f"path: {name}", get(target), first, reaches)

    return [
        at("plain", b"/containers/json", OK, (_GET,)),
        at("with a query", b"/containers/json?all=1", OK, (_GET + "?all=1",)),
        at("no rule", b"/secrets", NO),
        at("denied by name", b"/containers/secret/json", NO),
        at("denied by name, encoded", b"/containers/%73ecret/json", NO),
        at("a prefix of an allowed one", b"/containers", NO),
        at("an allowed one and more", b"/containers/json/x", NO),
        at("an allowed one and a slash", b"/containers/json/", NO),
        at("allowed within another", b"/x/containers/json", NO),
        at("allowed in the query only", b"/secrets?/containers/json", NO),
        at("allowed in the query only, encoded", b"/secrets%3f/containers/json", (400, 403)),
        at("a query key that is named", b"/asked?all=1&size=2", OK, ("GET /asked?all=1&size=2",)),
        at("a query key that is not", b"/asked?other=1", NO),
        at("both, by ampersand", b"/asked?all=1&other=1", NO),
        at("both, by semicolon", b"/asked?all=1;other=1", (400, 403)),
        at("absolute form", b"http://x/containers/json", (200, 400, 403), None),
        at("absolute form, no rule", b"http://x/secrets", (400, 403)),
        at("absolute form, allowed as the host", b"http://containers/json", (400, 403)),
        at("authority form", b"x:80", (400, 403)),
        at("no slash", b"containers/json", BAD),
        at("empty", b"", BAD),
        at("encoded unreserved", b"/cont%61iners/json", OK, None),
        at("encoded slash", b"/containers%2Fjson", NO),
        at("encoded slash in a segment", b"/containers/a%2fb/json", NO),
        at("encoded slash, denied in one reading", b"/containers%2Fsecret/json", NO),
        at("twice encoded", b"/%2563ontainers/json", (400, 403)),
        at("two slashes", b"//containers/json", BAD),
        at("two slashes within", b"/containers//json", BAD),
        at("dot", b"/./containers/json", BAD),
        at("dots", b"/containers/x/../json", BAD),
        at("dots at the end", b"/containers/json/..", BAD),
        at("encoded dots", b"/containers/%2e%2e/containers/json", BAD),
        at("half encoded dots", b"/containers/.%2E/containers/json", BAD),
        at("dots and encoded slash", b"/containers/..%2fjson", BAD),
        at("backslash", b"/containers\\json", BAD),
        at("encoded backslash", b"/containers%5cjson", (400, 403)),
        at("NUL", b"/containers/json\0", BAD),
        at("encoded NUL", b"/containers/json%00", BAD),
        at("fragment", b"/containers/json#x", BAD),
        at("not ASCII", b"/containers/\xc3\xa4/json", BAD),
        at("overlong UTF-8", b"/containers/%c0%ae%c0%ae/json", (200, 400, 403), None),
        at("half an escape", b"/containers/%2/json", BAD),
        at("no escape", b"/containers/%zz/json", BAD),
        at("space", b"/containers/json /x", BAD),
        at("tab", b"/containers/json\tx", BAD),
        at("control character", b"/containers/js\x01on", BAD),
        at("DEL", b"/containers/js\x7fon", BAD),
    ]  # fmt: skip


def _methods() -> list[Case]:
    return [
        Case("method: in lower case", get(b"/containers/json", method=b"get"), (400, 403)),
        Case("method: HEAD where GET is allowed", get(b"/containers/json", method=b"HEAD"), NO),
        Case("method: HEAD where it is allowed", get(b"/_ping", method=b"HEAD"), OK, ("HEAD /_ping",)),
        Case("method: unknown", get(b"/containers/json", method=b"FROB"), NO),
        Case("method: no token", get(b"/containers/json", method=b"G(T"), BAD),
        Case("method: CONNECT", b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", NO),
        Case("method: CONNECT and a path", get(b"/containers/json", method=b"CONNECT"), (400, 403)),
        Case("method: OPTIONS *", get(b"*", method=b"OPTIONS"), NO),
        Case("method: GET *", get(b"*"), BAD),
        Case("method: overridden", get(b"/_ping", b"X-HTTP-Method-Override: DELETE", b"X-HTTP-Method: DELETE",
                                       b"X-Method-Override: DELETE"), OK, ("GET /_ping",)),
        Case("version: 1.0", get(b"/_ping", version=b"HTTP/1.0"), OK, ("GET /_ping",)),
        Case("version: 1.0, no Host", b"GET /_ping HTTP/1.0\r\n\r\n", OK, ("GET /_ping",)),
        *(Case(f"version: {version.decode() or 'none'}", get(b"/_ping", version=version), (400, 505))
          for version in (b"HTTP/1.2", b"HTTP/2.0", b"HTTP/2", b"HTTP/1.10", b"HTTP/01.1", b"HTTP/1", b"http/1.1",
                          b"HTTP/0.9", b"HTTP/1.1 ", b"ICY/1.1", b"")),
        Case("version: the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 505)),
        Case("host: none", b"GET /_ping HTTP/1.1\r\n\r\n", BAD),
        Case("host: two", get(b"/_ping", b"Host: x"), BAD),
        Case("host: another's", b"GET /_ping HTTP/1.1\r\nHost: docker.example\r\n\r\n", OK, ("GET /_ping",)),
    ]  # fmt: skip


def _framing() -> list[Case]:
    def doubt(name: str, *fields: bytes, body: bytes = b"") -> Case:
        return Case(f"framing: {name}", post(*fields, body=body) + SMUGGLED, BAD)

    chunked = b"Transfer-Encoding: chunked"
    end = b"0\r\n\r\n"
    codings = (b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"identity", b"xchunked", b"chunkedx", b"gzip",
               b"chunked;q=1", b'"chunked"', b"", b"\x0bchunked", b"chunked,")  # fmt: skip
    lengths = (b"+5", b"-5", b"-0", b"0x5", b"5 6", b"5,5", b"5, 5", b"5, 6", b"", b"5_0", b"five", b"5.0", b"5;x",
               b"9" * 30, b"\xb2", b"5\x0b", b"18446744073709551621")  # fmt: skip
    return [
        doubt("both lengths", b"Content-Length: 5", chunked, body=end),
        doubt("both lengths, the other way round", chunked, b"Content-Length: 5", body=end),
        doubt("two lengths that differ", b"Content-Length: 0", b"Content-Length: 200"),
        doubt("two lengths that agree", b"Content-Length: 0", b"Content-Length: 0"),
        *(doubt(f"length {value!r}", b"Content-Length: " + value, body=b"01234") for value in lengths),
        *(doubt(f"coding {value!r}", b"Transfer-Encoding: " + value, body=end) for value in codings),
        doubt("two codings", chunked, chunked, body=end),
        doubt("two codings, one unknown", chunked, b"Transfer-Encoding: identity", body=end),
        doubt("space before the colon", b"Content-Length : 5", body=b"01234"),
        doubt("space before the colon, coding", b"Transfer-Encoding : chunked", body=end),
        doubt("tab before the colon", b"Transfer-Encoding\t: chunked", body=end),
        doubt("space before the name", b" Content-Length: 5", body=b"01234"),
        doubt("folded", b"X-Long: a\r\n b", b"Content-Length: 0"),
        doubt("folded length", b"Content-Length:\r\n 5", body=b"01234"),
        doubt("folded coding", b"Transfer-Encoding:\r\n chunked", body=end),
        doubt("no colon", b"Content-Length", b"Content-Length: 0"),
        doubt("no name", b": x", b"Content-Length: 0"),
        doubt("name that is no token", b"Content(Length: 5", body=b"01234"),
        doubt("name that is not ASCII", b"Content-Length\xa0: 5", body=b"01234"),
        doubt("NUL in a value", b"X-Y: a\0b"),
        doubt("bare CR in a value", b"X-Y: a\rContent-Length: 5"),
        doubt("bare CR behind a value", b"X-Y: a\r", b"Content-Length: 0"),
        doubt("bare LF in a value", b"X-Y: a\nContent-Length: 5"),
        doubt("control character in a value", b"X-Y: a\x01b"),
        Case("framing: bare LF all through", PING.replace(b"\r\n", b"\n") + SMUGGLED, BAD),
        Case("framing: bare LF at the end", b"GET /_ping HTTP/1.1\r\nHost: x\r\n\n" + SMUGGLED, BAD),
        Case("framing: bare LF behind the request line", b"GET /_ping HTTP/1.1\nHost: x\r\n\r\n" + SMUGGLED, BAD),
        Case("framing: bare CR all through", PING.replace(b"\r\n", b"\r") + b"\r\n\r\n" + SMUGGLED, BAD),
        Case("framing: coding on 1.0", get(b"/echo", chunked, method=b"POST", version=b"HTTP/1.0") + end + SMUGGLED,
             BAD),
        Case("framing: two spaces", b"GET  /_ping HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
        Case("framing: space at the start", b" GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
        Case("framing: folded request line", b"GET /_ping HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n", BAD),
        Case("framing: the length is named as hop-by-hop",
             post(b"Connection: content-length", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED),
             (200, 400), None, None),
        Case("framing: a body with GET",
             get(b"/_ping", b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED, (200, 400), None),
    ]  # fmt: skip


def _bodies() -> list[Case]:
    def chunks(name: str, data: bytes, first: tuple[int, ...] = BAD) -> Case:
        request = post(b"Transfer-Encoding: chunked", body=data)
        if first == OK:
            return Case(f"chunks: {name}", request, first, ("POST /echo",))
        return Case(f"chunks: {name}", request + SMUGGLED, first, None, None if 200 in first else (), body=True)

    def json(name: str, data: bytes, first: tuple[int, ...]) -> Case:
        fields = (b"Content-Type: application/json", b"Content-Length: %d" % len(data))
        reaches = ("POST /made",) if first == OK else ()
        return Case(f"body: {name}", post(*fields, body=data, target=b"/made"), first, reaches)

    return [
        chunks("two", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", OK),
        chunks("none", b"0\r\n\r\n", OK),
        chunks("leading zeros", b"0005\r\nhello\r\n000\r\n\r\n", OK),
        chunks("extension", b"5;a=b\r\nhello\r\n0;last\r\n\r\n", OK),
        chunks("trailer", b"5\r\nhello\r\n0\r\nX-After: 1\r\n\r\n", OK),
        chunks("trailer that frames", b"0\r\nContent-Length: 50\r\nTransfer-Encoding: x\r\n\r\n", (200, 400)),
        chunks("a size and more", b"5x\r\nhello\r\n0\r\n\r\n"),
        chunks("a plus sign", b"+5\r\nhello\r\n0\r\n\r\n"),
        chunks("a minus sign", b"-5\r\nhello\r\n0\r\n\r\n"),
        chunks("0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
        chunks("a space before", b" 5\r\nhello\r\n0\r\n\r\n"),
        chunks("underscore", b"0_5\r\nhello\r\n0\r\n\r\n"),
        chunks("no size", b"\r\nhello\r\n0\r\n\r\n"),
        chunks("a size of 68 bits", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
        chunks("longer than it says", b"5\r\nhelloXX\r\n0\r\n\r\n"),
        chunks("no line end behind the data", b"5\r\nhello0\r\n\r\n"),
        chunks("bare LF behind the size", b"5\nhello\r\n0\r\n\r\n"),
        chunks("bare LF behind the data", b"5\r\nhello\n0\r\n\r\n"),
        chunks("bare LF in an extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
        chunks("bare CR in an extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
        chunks("bare LF in a trailer", b"0\r\nX: 1\n\r\n"),
        json("allowed", b'{"Image":"bb:1","HostConfig":{"Privileged":false}}', OK),
        json("forbidden value", b'{"HostConfig":{"Privileged":true}}', NO),
        json("forbidden key", b'{"HostConfig":{"Binds":["/:/host"]}}', NO),
        json("key twice", b'{"HostConfig":{"Privileged":true,"Privileged":false}}', (400, 403)),
        json("object twice", b'{"HostConfig":{"Privileged":true},"HostConfig":{}}', (400, 403)),
        json("key in another case", b'{"hostconfig":{"privileged":true}}', (400, 403)),
        json("key in another case by folding", '{"Ho\u017ftConfig":{"Privileged":true}}'.encode(), (400, 403)),
        json("key escaped", b'{"\\u0048ostConfig":{"Privi\\u006ceged":true}}', (400, 403)),
        json("no JSON", b"HostConfig=Privileged", (400, 403)),
        json("JSON and more", b'{} {"HostConfig":{"Privileged":true}}', (400, 403)),
        json("byte order mark", b'\xef\xbb\xbf{"HostConfig":{"Privileged":true}}', (400, 403)),
        json("UTF-16", '{"HostConfig":{"Privileged":true}}'.encode("utf-16"), (400, 403)),
        json("UTF-8 that is none", b'{"HostConfig":{"Privileged":true},"\xff":1}', (400, 403)),
        json("deeply nested", b'{"a":' * 20_000 + b"1" + b"}" * 20_000, (400, 403)),
        json("a compressed one", b"\x1f\x8b\x08\x00", (400, 403)),
        json("too long", b'{"a":"' + b"x" * (2 << 20) + b'"}', (413,)),
        json("no body: nothing in it is forbidden", b"", OK),
        Case("body: no body, in chunks", post(b"Content-Type: application/json", b"Transfer-Encoding: chunked",
                                              body=b"0\r\n\r\n", target=b"/made"), (400, 403)),
    ]  # fmt: skip


def _upgrades() -> list[Case]:
    upgrade = b"Connection: Upgrade"
    start = (upgrade, b"Upgrade: tcp", b"Content-Length: 0")
    exec_start = "POST /exec/x/start"
    return [
        Case("upgrade: allowed, not taken", post(*start, target=b"/exec/x/start"), OK, (exec_start,)),
        Case("upgrade: bytes behind one that is not taken", post(*start, target=b"/exec/x/start") + SMUGGLED, OK,
             (exec_start,)),
        Case("upgrade: to what the rule does not name",
             post(upgrade, b"Upgrade: websocket", b"Content-Length: 0", target=b"/exec/x/start"), NO),
        Case("upgrade: two, one not named",
             post(upgrade, b"Upgrade: tcp, websocket", b"Content-Length: 0", target=b"/exec/x/start"), (400, 403)),
        Case("upgrade: where no rule has one", get(b"/containers/json", upgrade, b"Upgrade: tcp"), NO),
        Case("upgrade: not named in Connection", get(b"/containers/json", b"Upgrade: tcp"), (200, 400, 403), None),
        Case("upgrade: h2c is stripped", get(b"/containers/json", b"Connection: Upgrade, HTTP2-Settings",
                                             b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"), OK, (_GET,)),
        Case("hop by hop: stripped", get(b"/_ping", b"Connection: close, X-Mine", b"X-Mine: 1", b"Keep-Alive: 5",
                                         b"Proxy-Connection: close", b"TE: trailers"), OK, ("GET /_ping",)),
        Case("hop by hop: names Host", get(b"/_ping", b"Connection: host"), (200, 400), None),
    ]  # fmt: skip


def _sequences() -> list[Case]:
    ping = "GET /_ping"
    small = b"POST /denied HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(SMUGGLED), SMUGGLED)
    chunked = (b"POST /denied HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
               % (len(SMUGGLED), SMUGGLED))  # fmt: skip
    expect = get(b"/denied", b"Content-Length: %d" % len(SMUGGLED), b"Expect: 100-continue", method=b"POST")
    return [
        Case("pipeline: denied among allowed", PING + get(b"/secrets") + PING, OK, (ping, ping), (403, 200)),
        Case("pipeline: denied first", get(b"/secrets") + PING, NO, (ping,), (200,)),
        Case("pipeline: bad behind allowed", PING + get(b"//") + PING, OK, (ping,), (400,)),
        Case("pipeline: 40 requests", (PING + get(b"/secrets")) * 20, OK, (ping,) * 20, (403, 200) * 19 + (403,)),
        Case("denied body: read away", small + PING, NO, (ping,), (200,)),
        Case("denied body: chunks read away", chunked + PING, NO, (ping,), (200,)),
        Case("denied body: large", get(b"/denied", b"Content-Length: 100000000", method=b"POST"), NO),
        Case("denied body: was waited for", expect, NO),
        Case("denied body: was waited for, came all the same", expect + SMUGGLED + PING, NO, None, None),
        Case("expect: something else", post(b"Content-Length: 2", b"Expect: 200-ok", body=b"hi"),
             (200, 400, 417), None),
        Case("limit: a long field", get(b"/_ping", b"X-Long: " + b"x" * (70 << 10)), (431,)),
        Case("limit: many fields", get(b"/_ping", *(b"X-%d: %s" % (n, b"y" * 20) for n in range(3000))), (431,)),
        Case("limit: a long target", get(b"/" + b"x" * (70 << 10)), (414, 431)),
        Case("limit: just below", get(b"/_ping", b"X-Long: " + b"x" * (60 << 10)), OK, (ping,)),
        Case("no HTTP: TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", BAD),
        Case("no HTTP: text", b"hello\r\n\r\n", BAD),
    ]  # fmt: skip


CASES: tuple[Case, ...] = (*_paths(), *_methods(), *_framing(), *_bodies(), *_upgrades(), *_sequences())
