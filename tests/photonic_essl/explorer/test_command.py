import http.client
import json
import socket
import threading
from types import SimpleNamespace

import pytest

from data_gen.command_line import run
from photonic_essl.cli import COMMANDS
from photonic_essl.explorer.server import PageServer


def explore(*words):
    return run("photonic-essl", COMMANDS, ["explore", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "nowhere"), "nowhere holds no saved regressor"),
        (("--out", "nowhere/cells.h5"), "nowhere/cells.h5 cannot be written: No such file or directory."),
        (("--out", "."), ". cannot be written: it is no file."),
        (("--out", "text.h5"), "text.h5 cannot be read as a dataset file"),
        (("--port", "70000"), "`port` must be from 0 to 65535, got 70000."),
        (("--port", "many"), "`--port` must be a whole number, got 'many'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.h5").write_text("no dataset")
    try:
        status = explore(*words)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_port_in_use_is_one_line_and_status_2(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert explore("--port", port, "--out", tmp_path / "a.h5") == 2
    assert capsys.readouterr().err == f"photonic-essl: error: `port` {port} is in use; choose another.\n"


@pytest.fixture
def server():
    """The page's server, with tasks that need no solver."""

    def refuse(cell):
        raise ValueError(f"no such cell:\n{cell}")

    with PageServer(0) as server:
        server.session = SimpleNamespace(choices={"families": {}}, tasks={"/draw": json.loads, "/save": refuse})
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_only_this_machines_own_address_is_served(server):
    with pytest.raises(ConnectionRefusedError), socket.socket() as other:
        other.connect(("127.0.0.2", server.server_address[1]))
    for host in ("localhost:80", "127.0.0.1"):
        assert ask(server, "GET", "/", Host=host)[0] == 200
    for host in ("example.org", "127.0.0.1.example.org:8765", "192.0.2.1", "[::1"):
        assert ask(server, "GET", "/", Host=host)[0] == 403
        assert ask(server, "POST", "/draw", "{}", Host=host)[0] == 403


def test_what_another_site_can_send_is_refused(server):
    # A form of another site can send text to any address; JSON only with a leave that nobody gives it.
    assert ask(server, "POST", "/draw", "{}", **{"Content-Type": "text/plain"})[0] == 403
    assert ask(server, "POST", "/draw", '{"a": 1}') == (200, b'{"a": 1}')
    for length in ("-1", "many", "1e3"):
        assert ask(server, "POST", "/draw", "{}", **{"Content-Length": length})[0] == 403
    assert ask(server, "POST", "/draw", b"\xff")[0] == 422


def test_error_of_a_task_is_one_line(server):
    assert ask(server, "POST", "/save", "{}") == (422, b'{"error": "no such cell: {}"}')


def test_nothing_else_is_served(server):
    assert ask(server, "GET", "/catalogue") == (200, b'{"families": {}}')
    for path in ("/server.py", "/../session.py", "/draw"):
        assert ask(server, "GET", path)[0] == 404
    assert ask(server, "POST", "/page.js", "{}")[0] == 404
