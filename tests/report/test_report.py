"""The page of a run: whole, self-contained, bounded, made of whatever files there are, and never a reason for a run to fail."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from clm.report.curves import read_curves
from clm.report.facts import command, read_facts
from clm.report.page import make_page
from clm.report.views import error_map
from clm.run.begun import read_run_config
from clm.settings import load_config
from tests.demo_run import DEMO, clm, files_under, read_events, read_json

VOID = {"meta", "img", "input", "br", "link", "path"}
LINKS = {"src", "href", "data", "action", "poster", "srcset", "xlink:href"}


class Checked(HTMLParser):
    """Fails where tags are not closed in order, an id comes twice, or anything is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.images = 0
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe", "object", "embed"), "it would fetch something"
        for name, value in attributes:
            if name == "id":
                assert value and value not in self.ids
                self.ids.add(value)
            if name in LINKS:
                assert value and value.startswith(("data:image/", "#")), f"{tag} {name} leaves the page"
            assert not name.startswith("on"), "scripts are in one place"
        self.images += tag == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)
        else:
            assert not re.search(r"https?:|@import|url\(", data), "nothing is fetched by styles or scripts"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run that may be damaged."""
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "point_cloud", "input.ply"))
    return tmp_path / "copy"


def page(run: Path, *options: str | Path) -> Checked:
    done = clm("report", run, *options)
    assert done.returncode == 0, done.stderr
    return Checked((run / "report.html").read_text())


def test_a_finished_run_has_a_page_that_is_whole_and_fetches_nothing(run: Path) -> None:
    text = (run / "report.html").read_text()
    shown, metrics, receipt = Checked(text), read_json(run / "metrics.json"), read_json(run / "report.json")
    assert "default-src 'none'" in text and len(text) < 1_000_000
    for words in (
        f"{metrics['test']['psnr']:.2f} dB",
        "40 images in 0:0",
        f"{receipt['num_gaussians']:,}",
        "Held-out views",
        "what consecutive views share stays (CLM)",
        "One batch",
        "send back",
        "budget",
        str(receipt["machine"]["numpy"]),
        *metrics["test"]["per_view"],
    ):
        assert words in shown.text, words
    assert shown.images == 5 * 3, "render, photo and error of each held-out view"


def test_the_command_on_the_page_trains_the_same_model_again(run: Path, tmp_path: Path) -> None:
    before = read_run_config(run)[1]
    words, file = command(read_facts(run))
    assert words in Checked((run / "report.html").read_text()).text and not file
    typed = shlex.split(words)
    assert typed[:3] == ["clm", "train", str(DEMO)]
    typed[typed.index("-o") + 1] = str(tmp_path / "again")
    assert clm(*typed[1:], "-q").returncode == 0
    assert read_run_config(tmp_path / "again")[1] == before


def test_keys_without_a_flag_go_into_the_file_that_the_command_names(copy: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((copy / "config.yaml").read_text()) | {
        "means_lr": 1e-3,
        "antialias": True,
        "densify_every": 7,
    }
    (copy / "config.yaml").write_text(yaml.safe_dump(values))
    words, file = command(read_facts(copy))
    assert "--antialias" in words and words.endswith("--config FILE.yaml") and "means_lr" not in words
    (tmp_path / "FILE.yaml").write_text(file)
    flags = {"iterations": 40, "downscale": "8", "offload": "host", "eval_every": 16, "seed": 3, "antialias": True}
    assert load_config(flags, file=tmp_path / "FILE.yaml") == read_run_config(copy)[1]


def test_curves_of_a_long_run_are_bounded_and_follow_the_run_through_resumes(tmp_path: Path) -> None:
    def batch(image: int, loss: float) -> dict[str, Any]:
        facts = {"step": image // 4, "iteration": image, "loss": loss, "num_gaussians": image, "seconds": 0.5}
        return {"type": "batch_done", **facts}

    def started(image: int) -> dict[str, Any]:
        return {"type": "started", "iteration": image}

    events = [started(0), *(batch(k, 1.0) for k in range(4, 40_001, 4))]
    events += [started(20_000), *(batch(k, 0.25) for k in range(20_004, 60_001, 4)), batch(60_004, float("nan"))]
    lines = [json.dumps(event) for event in events]
    lines[5:5] = ["half a li", "[]", "7", '{"type": "batch_done"}', '{"type": "message", "level": 3}', '{"no": "type"}']
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + '\n{"type": "bat')
    curves = read_curves(tmp_path / "events.jsonl")
    assert len(curves.buckets) <= 480 and len(curves.begun) == 2
    loss = dict(curves.series("loss"))
    assert max(loss) == 60_004 and all(value == 1.0 for x, value in loss.items() if x <= 20_000)
    assert all(value == 0.25 for x, value in loss.items() if x > 20_000 + curves.width)
    assert 0 <= sum(bucket.batches for bucket in curves.buckets.values()) - 15_001 < curves.width / 4
    assert all(rate == pytest.approx(8.0) for _, rate in curves.series("rate"))


def test_a_page_is_made_of_whatever_files_there_are(copy: Path) -> None:
    for name, content in (
        ("metrics.json", None),
        ("report.json", "[1, 2"),
        ("cameras.json", "{}"),
        ("config.yaml", "a: ["),
        ("events.jsonl", '{"type": "lanes_sampled", "spans": [[1]], "seconds": null}\n\x00\xff'),
    ):
        (copy / name).unlink() if content is None else (copy / name).write_text(content, encoding="latin-1")
        page(copy)
    shutil.rmtree(copy / "eval")
    assert "Loss" not in page(copy).text
    (copy / "events.jsonl").unlink()
    done = clm("report", copy)
    assert done.returncode == 0, "a damaged config.yaml still says that it is a run"


@pytest.mark.parametrize("value", [None, [], 3, {"test": 5}, {"test": {"per_view": {"a": 1, "b": {"psnr": "x"}}}}])
def test_odd_values_are_left_out_of_the_page(copy: Path, value: Any) -> None:
    for name in ("metrics.json", "report.json"):
        (copy / name).write_text(json.dumps(value))
    for folder in (copy / "eval").iterdir():
        (folder / "metrics.json").write_text(json.dumps(value))
    page(copy)


def test_names_of_views_are_text_and_never_markup(copy: Path) -> None:
    name = "<script>alert('1')</script> & \"2\".png"
    metrics, cameras = read_json(copy / "metrics.json"), read_json(copy / "cameras.json")
    per_view = metrics["test"]["per_view"]
    first = next(iter(per_view))
    per_view[name] = per_view.pop(first)
    next(c for c in cameras if c["img_name"] == first)["img_name"] = name
    (copy / "metrics.json").write_text(json.dumps(metrics))
    (copy / "cameras.json").write_text(json.dumps(cameras))
    assert name in page(copy).text and (copy / "report.html").read_text().count("<script>") == 1


def test_of_many_views_the_worst_and_the_best_are_shown_and_the_tables_end(copy: Path) -> None:
    metrics = read_json(copy / "metrics.json")
    names = [entry["img_name"] for entry in read_json(copy / "cameras.json")]
    figures = {name: {"psnr": 10.0 + k, "ssim": 0.5} for k, name in enumerate(names)}
    metrics["test"]["per_view"] = figures | {f"gone_{k}.jpg": {"psnr": 30.0, "ssim": 0.9} for k in range(5000)}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    folder = copy / "eval" / "step_40"
    for name in names:
        Image.new("RGB", (40, 30), (200, 10, 10)).save(folder / f"{Path(name).stem}.png")
    shown = page(copy)
    assert shown.images == 6 * 3 and "4,740 better ones" in shown.text
    order = [shown.text.index(f"{rank} {name}") for rank, name in (("worst", names[0]), ("best", names[-1]))]
    assert order == sorted(order) and len((copy / "report.html").read_text()) < 1_000_000


def test_a_run_whose_scene_is_gone_has_a_page_without_photos(copy: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((copy / "config.yaml").read_text()) | {"data": str(tmp_path / "gone")}
    (copy / "config.yaml").write_text(yaml.safe_dump(values))
    done = clm("report", copy)
    assert done.returncode == 0 and "the report has no photos" in done.stderr and "--data DIR" in done.stderr
    assert Checked((copy / "report.html").read_text()).images == 5
    assert page(copy, "--data", DEMO).images == 15


def test_errors_are_dark_where_there_are_none_and_black_where_a_mask_is() -> None:
    photo = np.full((4, 6, 3), 100, np.uint8)
    render = photo.copy()
    render[0], render[1], mask = 110, 255, np.ones((4, 6), bool)
    mask[3] = False
    brightness = error_map(render, photo, mask).astype(int).sum(axis=(1, 2))
    assert brightness[1] > brightness[0] > brightness[2] > brightness[3] == 0


def test_a_page_that_cannot_be_written_costs_a_warning_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> str:
        raise ValueError("a bug")

    monkeypatch.setattr("clm.report.page.make_page", broken)
    done = clm("train", DEMO, "-o", tmp_path / "run", "--iterations", "4", "--downscale", "8")
    assert done.returncode == 0 and done.stderr.count("report.html") == 1, done.stderr
    assert "warning: report.html was not written: a bug Try again with `clm report" in done.stderr
    files = files_under(tmp_path / "run")
    assert {"report.json", "metrics.json"} <= files and "report.html" not in files


def test_the_lanes_of_ten_batches_are_told(run: Path) -> None:
    sampled = [event for event in read_events(run) if event["type"] == "lanes_sampled"]
    assert [event["iteration"] for event in sampled] == list(range(4, 41, 4))
    for event in sampled:
        lanes = {lane for lane, *_ in event["spans"]}
        assert {"load", "compute", "send_back", "update"} <= lanes
        assert all(0 <= start <= end <= event["seconds"] for *_, start, end in event["spans"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere",), "No such directory: nowhere"),
        (("EMPTY",), "is not a run directory: it has neither"),
        (("RUN", "-o", "EMPTY"), "is a folder"),
        (("RUN", "-o", "README.md/report.html"), "README.md is no folder"),
        (("RUN", "--data", "EMPTY"), "No COLMAP model"),
    ],
)
def test_a_report_that_cannot_be_made_is_refused_in_one_sentence(
    run: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    places = {"EMPTY": str(tmp_path), "RUN": str(run)}
    done = clm("report", *(places.get(word, word) for word in words))
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]
    assert not list(tmp_path.iterdir())


def test_an_empty_run_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("")
    Checked(make_page(read_facts(tmp_path), None))
