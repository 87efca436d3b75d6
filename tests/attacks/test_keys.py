"""API keys: who is let in, that nothing but health is open, and that a share of compute is one across processes."""

import hmac
import os
import select
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from fastapi import Request, Response
from guarded import Serve
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from service import cli
from service.api import keys as keys_module
from service.api.exposure import is_loopback, keys_of
from service.api.guard import HEALTH
from service.api.keys import ANONYMOUS, Key, Keys, make_key
from service.api.server import run
from service.errors import InvalidSettings, TooManyRequests, Unauthorized
from service.settings import Settings

BODY = {"inputs": [[1, 2, 3]]}
WAIT_S = 10


def keys_file(folder: Path, *lines: str) -> Path:
    path = folder / "keys"
    path.write_text("\n".join(["# whose they are", "", *lines, ""]))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, Keys]:
    """A key, and keys that know it."""
    made, line = make_key("alice")
    return made, Keys.read(keys_file(tmp_path, make_key("bob")[1], line, make_key("carol", 5)[1]))


def test_a_key_is_shown_once_and_kept_as_a_hash() -> None:
    made, line = make_key("alice", 7.5)
    other, _ = make_key("alice")
    assert line == f"alice {sha256(made.encode()).hexdigest()} 7.5"
    assert made != other
    assert len(made) == len("thinnet_") + 43  # 32 bytes in base 64


def test_the_command_prints_a_key_and_the_line_that_lets_it_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["thinnet", "key", "alice", "--cost-per-minute", "30"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    made, line = (told.split(maxsplit=1)[1] for told in capsys.readouterr().out.splitlines())
    key = Keys.read(keys_file(tmp_path, line)).authenticate([(b"x-api-key", made.encode())])
    assert (key.name, key.cost_per_minute) == ("alice", 30)


@pytest.mark.parametrize("header", ["Authorization: Bearer {}", "authorization: bearer  {}", "X-API-Key: {}"])
def test_a_known_key_is_let_in(serve: Serve, pair: tuple[str, Keys], header: str) -> None:
    made, keys = pair
    name, value = header.format(made).split(": ", 1)
    answer = serve(keys).post("/predict", json=BODY, headers={name: value})
    assert answer.status_code == 200, answer.text
    assert made not in answer.text


def test_a_key_behind_another_scheme_is_let_in(serve: Serve, pair: tuple[str, Keys]) -> None:
    made, keys = pair
    headers = {"Authorization": "Basic eDp5", "X-API-Key": made}
    assert serve(keys).get("/limits", headers=headers).json()["key"]["name"] == "alice"


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "an API key is needed"),
        ({"X-API-Key": ""}, "is not known"),
        ({"X-API-Key": "thinnet_" + "A" * 43}, "is not known"),
        ({"Authorization": "Bearer"}, "an API key is needed"),
        ({"Authorization": "Bearer alice"}, "is not known"),
        ({"Authorization": "Basic YWxpY2U6"}, "an API key is needed"),
        ({"Cookie": "key=alice"}, "an API key is needed"),
    ],
)
def test_anyone_else_is_told_to_bring_one(
    serve: Serve, pair: tuple[str, Keys], headers: dict[str, str], told: str
) -> None:
    answer = serve(pair[1]).post("/predict", json=BODY, headers=headers)
    assert answer.status_code == 401
    assert told in answer.json()["error"]
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="thinnet"'


def test_the_hash_itself_opens_nothing(serve: Serve, tmp_path: Path) -> None:
    _, line = make_key("alice")
    keys = Keys.read(keys_file(tmp_path, line))
    for value in (line, line.split()[1], "alice"):
        assert serve(keys).get("/limits", headers={"X-API-Key": value}).status_code == 401


def test_every_route_but_health_asks_for_a_key(serve: Serve, pair: tuple[str, Keys]) -> None:
    client = serve(pair[1])
    document = serve().get("/openapi.json").json()["paths"]
    paths = {path.format(model="line", version="1") for path in document}
    paths |= {"/", "/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js", "/openapi.json", "/nothing", "/metrics"}
    assert {"/predict", "/v2", "/limits"} <= paths
    for path in paths - HEALTH:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
            assert client.request(method, path, follow_redirects=False).status_code == 401, (method, path)
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200


def test_the_document_says_how_a_key_is_sent_where_one_is_needed(serve: Serve, pair: tuple[str, Keys]) -> None:
    made, keys = pair
    document = serve(keys).get("/openapi.json", headers={"X-API-Key": made}).json()
    assert document["security"] == [{"bearer": []}, {"header": []}]
    assert document["components"]["securitySchemes"]["header"]["name"] == "X-API-Key"
    assert "security" not in serve().get("/openapi.json").json()


def test_a_socket_of_another_kind_is_closed(serve: Serve, pair: tuple[str, Keys]) -> None:
    client = serve(pair[1])
    with pytest.raises(WebSocketDisconnect, match=r"^$") as closed, client.websocket_connect("/v2/health/live"):
        pass
    assert closed.value.code == 1000


@pytest.mark.parametrize(
    "path",
    [
        "/v2/health/live/",
        "/V2/HEALTH/LIVE",
        "/v2/health/live/../../models",
        "/v2/health/live%2f..%2f..%2fmodels",
        "/v2/health/live;x=/predict",
        "/v2/health/live%00",
        "/v2/health/livex",
        "/api/v2/health/live",
    ],
)
def test_no_spelling_of_a_health_route_opens_another(serve: Serve, pair: tuple[str, Keys], path: str) -> None:
    assert serve(pair[1]).get(path).status_code in (401, 404)


def test_health_is_open_behind_a_proxys_prefix_too(serve: Serve, pair: tuple[str, Keys]) -> None:
    client = TestClient(serve(pair[1]).app, root_path="/api")
    assert client.get("/api/v2/health/live").status_code == client.get("/v2/health/live").status_code == 200
    assert client.get("/api/v2/models").status_code == client.get("/apiv2/health/live").status_code == 401


def test_metrics_are_open_only_where_told_so(serve: Serve, pair: tuple[str, Keys]) -> None:
    assert serve(pair[1]).get("/metrics").status_code == 401
    assert serve(pair[1], open_metrics=True).get("/metrics").status_code != 401
    assert serve(pair[1], open_metrics=True).get("/limits").status_code == 401


def test_without_keys_everyone_is_anonymous(serve: Serve) -> None:
    assert Keys().authenticate([(b"x-api-key", b"anything")]) is ANONYMOUS
    told = serve().get("/limits", headers={"X-API-Key": "anything"}).json()["key"]
    assert told == {"name": "anonymous", "cost_s_per_minute": None, "left_s": None}


def test_a_key_is_compared_with_every_hash_whichever_it_is(
    pair: tuple[str, Keys], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, keys = pair
    compared, compare_digest = [], hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return compare_digest(one, other)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    keys.authenticate([(b"x-api-key", made.encode())])
    with pytest.raises(Unauthorized, match="is not known"):
        keys.authenticate([(b"x-api-key", b"x")])
    assert len(compared) == 6


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ((), "has no key; make one with `thinnet key NAME`"),
        (("alice",), "line 3: it should be `name sha256-hex"),
        (("a/b " + "0" * 64,), "line 3: 'a/b' is no name"),
        (("alice " + "0" * 63,), "it should be `name sha256-hex"),
        (("alice " + "G" * 64,), "it should be `name sha256-hex"),
        (("alice " + "0" * 64 + " 1 2",), "it should be `name sha256-hex"),
        (("alice " + "0" * 64 + " many",), "'many' is no number of seconds"),
        (("alice " + "0" * 64 + " 0",), "'0' is no number of seconds"),
        (("alice " + "0" * 64 + " inf",), "'inf' is no number of seconds"),
        (("alice " + "0" * 64, "alice " + "1" * 64), "has a name twice"),
        (("alice " + "0" * 64, "bob " + "0" * 64), "has a key twice"),
    ],
)
def test_a_file_of_keys_is_right_or_refused_by_line(tmp_path: Path, lines: tuple[str, ...], told: str) -> None:
    with pytest.raises(InvalidSettings, match=told.replace("[", r"\[")):
        Keys.read(keys_file(tmp_path, *lines))


def test_a_key_put_in_the_file_in_place_of_its_hash_is_not_repeated(tmp_path: Path) -> None:
    made, _ = make_key("alice")
    with pytest.raises(InvalidSettings, match="line 3") as refusal:
        Keys.read(keys_file(tmp_path, f"alice {made}"))
    assert made not in str(refusal.value)


def test_a_file_that_is_not_there_or_endless_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read: No such file"):
        Keys.read(tmp_path / "none")
    (tmp_path / "big").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InvalidSettings, match="more than 1048576 bytes"):
        Keys.read(tmp_path / "big")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "no-such-host.invalid"])
def test_a_public_address_is_refused_without_keys_unless_told_to(host: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"nobody is asked for a key; .*THINNET_KEYS_FILE.*THINNET_ALLOW_ANONY"):
        run(Settings(host=host, models=tmp_path))
    assert not keys_of(Settings(host=host, allow_anonymous=True))
    assert keys_of(Settings(host=host, keys_file=keys_file(tmp_path, make_key("alice")[1])))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_the_loopback_is_served_without_keys(host: str) -> None:
    assert is_loopback(host)
    assert not keys_of(Settings(host=host))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1e6
        monkeypatch.setattr(keys_module.time, "monotonic", lambda: self.now_s)


def limited(cost_per_minute: float) -> Key:
    made, line = make_key("alice", cost_per_minute)
    name, digest, share = line.split()
    return Keys([(name, bytes.fromhex(digest), float(share))]).authenticate([(b"x-api-key", made.encode())])


def test_a_share_is_a_minutes_worth_that_fills_steadily(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, key = Clock(monkeypatch), limited(6)
    for _ in range(6):
        key.spend(1)
    with pytest.raises(TooManyRequests, match=r"key 'alice' has spent its share of 6 seconds") as refusal:
        key.spend(0.5)
    assert refusal.value.retry_after_s == pytest.approx(5)
    clock.now_s += 4.9
    with pytest.raises(TooManyRequests, match=r"ask again in 0\.1 s"):
        key.spend(0.5)
    clock.now_s += 0.1
    key.spend(0.5)
    assert key.left_s() == pytest.approx(0)
    clock.now_s += 1e9
    assert key.left_s() == 6


def test_a_request_above_a_minutes_worth_waits_for_a_full_share_and_is_paid_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, key = Clock(monkeypatch), limited(6)
    key.spend(1)
    with pytest.raises(TooManyRequests, match="ask again in 10") as refusal:
        key.spend(60)
    clock.now_s += refusal.value.retry_after_s or 0
    key.spend(60)
    with pytest.raises(TooManyRequests, match="ask again") as refusal:
        key.spend(1)
    assert refusal.value.retry_after_s == pytest.approx(550)


def test_one_keys_share_is_not_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    made = {name: make_key(name, 2) for name in ("alice", "bob")}
    entries = [(name, sha256(key.encode()).digest(), 2.0) for name, (key, _) in made.items()]
    alice, bob = (Keys(entries).authenticate([(b"x-api-key", key.encode())]) for key, _ in made.values())
    alice.spend(2)
    bob.spend(2)
    with pytest.raises(TooManyRequests, match="'alice'"):
        alice.spend(1)


def test_a_key_without_a_share_and_nobody_spend_what_there_is() -> None:
    made, line = make_key("alice")
    key = Keys([("alice", bytes.fromhex(line.split()[1]), None)]).authenticate([(b"x-api-key", made.encode())])
    for each in (key, ANONYMOUS):
        each.spend(1e9)
        assert each.left_s() is None


def test_threads_spend_one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    key = limited(50)

    def spent(_: int) -> bool:
        try:
            key.spend(1)
        except TooManyRequests:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spent, range(400))) == 50


def test_one_thread_waits_for_another_to_write_what_it_spent() -> None:
    key = limited(600)
    assert key.ledger is not None
    with ThreadPoolExecutor(1) as pool:
        with key.ledger.entry(key.index):
            spending = pool.submit(key.spend, 1)
            time.sleep(0.1)
            assert not spending.done()
        assert spending.result(WAIT_S) is None


def test_one_process_waits_for_another_to_write_what_it_spent() -> None:
    key, (told, tell), (answered, answer) = limited(600), os.pipe(), os.pipe()
    assert key.ledger is not None
    child = os.fork()
    if child == 0:
        os.read(told, 1)
        key.spend(200)
        os.write(answer, b"x")
        os._exit(0)
    with key.ledger.entry(key.index):
        os.write(tell, b"x")
        assert not select.select([answered], [], [], 0.2)[0]
    assert os.read(answered, 1) == b"x"
    assert os.waitpid(child, 0)[1] == 0
    for end in (told, tell, answered, answer):
        os.close(end)
    assert 400 <= (key.left_s() or 0) < 500


def test_processes_spend_one_share_and_a_dead_one_locks_nobody_out() -> None:
    key = limited(600)
    child = os.fork()
    if child == 0:
        key.spend(200)
        assert key.ledger is not None
        with key.ledger.entry(key.index):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    began = time.monotonic()
    left_s = key.left_s()
    assert left_s is not None
    assert 400 <= left_s < 500
    assert time.monotonic() - began < 1


def test_a_spent_share_is_answered_429_with_when_to_ask_again(serve: Serve) -> None:
    made, line = make_key("alice", 6)
    client = serve(Keys([("alice", bytes.fromhex(line.split()[1]), 6.0)]))

    async def spend(request: Request) -> Response:
        request.state.key.spend(6)
        return Response()

    client.app.add_api_route("/spend", spend)  # type: ignore[attr-defined] # it is our app
    headers = {"X-API-Key": made}
    assert client.get("/spend", headers=headers).status_code == 200
    answer = client.get("/spend", headers=headers)
    assert answer.status_code == 429
    assert 58 <= int(answer.headers["Retry-After"]) <= 60
    assert "share of 6 seconds" in answer.json()["error"]
    assert client.get("/limits", headers=headers).json()["key"]["left_s"] < 1
