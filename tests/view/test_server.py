"""What stands in the way of a viewer ends in one sentence; nothing is read before that."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from clm.errors import ClmError
from clm.formats.ply_write import write_ply
from clm.view.server import PORT, free_port, where
from scripts.doubles.scenes import random_rows
from tests.demo_run import DEMO, clm


@pytest.mark.parametrize("words", [("view", "nowhere.ply"), ("train", str(DEMO), "-o", "RUN", "--viewer")])
def test_without_viser_one_sentence_names_what_to_install(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    done = clm(*(str(tmp_path / "run") if word == "RUN" else word for word in words))
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr == (
        "error: The viewer needs the package viser, which is not installed. Run `pip install 'clm[view]'`.\n"
    )


def test_a_port_that_is_taken_is_named_and_one_that_is_not_stated_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClmError, match=f"Port {port} is taken. Pass another one, such as `--port {port + 1}`"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port and free_port("127.0.0.1", None) >= PORT


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", 0, "--port is 0."),
        ("127.0.0.1", 70000, "--port is 70000."),
        ("192.0.2.7", None, "no address of this machine"),
        ("", None, "--host `` is no address"),
        ("a..b", None, "--host `a..b` is no address"),
        ("999.1.1.1", 9000, "--host `999.1.1.1` is no address"),
    ],
)
def test_a_port_or_an_address_that_cannot_be_is_refused(host: str, port: int | None, said: str) -> None:
    with pytest.raises(ClmError, match=said):
        free_port(host, port)


def test_what_a_page_could_not_show_is_refused_before_there_is_one(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", [random_rows(20)])
    (tmp_path / "scene").mkdir()
    for words, said in (
        (("a.ply", "--background", "pinkish"), "`background` is `pinkish`"),
        (("a.ply", "--data", "scene"), "--data is of a run, and a.ply belongs to none"),
    ):
        places = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in words]
        done = clm("view", *places)
        [line] = done.stderr.replace(f"{tmp_path}/", "").splitlines()
        assert done.returncode == 2 and line.startswith("error: ") and said in line


def test_a_port_without_a_viewer_is_a_contradiction(tmp_path: Path) -> None:
    done = clm("train", DEMO, "-o", tmp_path / "run", "--port", "9000")
    assert (
        done.returncode == 2 and done.stderr == "error: --port is of the viewer, and none is asked for. Add --viewer.\n"
    )


def test_where_to_look_names_the_tunnel_only_where_one_is_needed() -> None:
    assert "ssh -L 8085:localhost:8085" in where("127.0.0.1", 8085) and "http://127.0.0.1:8085 " in where(
        "127.0.0.1", 8085
    )
    assert "open to the network" in where("0.0.0.0", 8085)
