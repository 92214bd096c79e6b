import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from report_study import HOSTILE, grid, poison, write
from synthetic import Made, id_of, stale
from test_report_html import Reader

from ablora import cli
from ablora.store import atomic, lines
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora_analysis.report import detail, layers, main, page, pictures, series, words
from ablora_analysis.report.evidence import Evidence, read
from ablora_analysis.report.warnings import warnings

THREE = grid(("lora", "pissa", "milora"), (5e-4, 1e-3, 2e-3))


def evidence(roots: Roots, runs: list[Made], measured: tuple[Made, ...] = ()) -> Evidence:
    write(roots, "s", runs, measured)
    return read(roots, "s", stale)


def told(found: Evidence) -> str:
    return "\n".join(warned.text for warned in warnings(found))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the 5 MB of the library, which these tests do not look at."""
    monkeypatch.setattr(page, "_library", lambda: "window.Plotly = {};")


def test_equal_runs_give_equal_bytes(roots: Roots, tmp_path: Path, small: None) -> None:
    runs = [replace(m, state="diverged") if m.lr == 2e-3 and m.seed == 0 else m for m in THREE]
    write(roots, "s", runs, [runs[0]])
    other = Roots(tmp_path / "b" / "runs", tmp_path / "b" / "studies", tmp_path / "b" / "cache")
    shutil.copytree(roots.runs, other.runs)
    shutil.copytree(roots.studies, other.studies)
    for run in other.runs.iterdir():  # started at another time
        if (run / "env.json").exists():
            env = atomic.read_json(run / "env.json")
            env["starts"][0]["time_s"] += 86400
            atomic.write_json(run / "env.json", env)
    (one, two) = (main.write(where, "s", stale).read_bytes() for where in (roots, other))
    assert one == two
    assert str(tmp_path).encode() not in one


def test_scripts_and_style_are_those_whose_hashes_the_policy_has(roots: Roots) -> None:
    write(roots, "s", [Made()])
    text = main.write(roots, "s", stale).read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    policy = policy.replace("&#x27;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    for element, name in (("script", "script-src"), ("style", "style-src")):
        bodies = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        assert bodies
        (allowed,) = re.findall(rf"{name} ([^;]*)", policy)
        for body in bodies:
            digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in allowed
    assert len(text.encode()) < 10e6


def test_hostile_texts_make_no_element_and_no_attribute(roots: Roots, small: None) -> None:
    runs = [Made(seed=seed) for seed in range(len(HOSTILE))]
    ids = write(roots, "s", runs)
    poison(roots, "s", ids)
    text = main.write(roots, "s", stale).read_text(encoding="utf-8")
    found = Reader(text)
    kinds = {name for name, _ in found.elements}
    assert not kinds & {"img", "iframe", "object", "embed", "base", "form", "link", "b"}
    assert len([1 for name, _ in found.elements if name == "script"]) == 3
    assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]
    links = [attributes["href"] for _, attributes in found.elements if "href" in attributes]
    assert all(re.fullmatch(r"#[a-z]+|figures/[\w.%-]+", str(link)) for link in links)
    ours = {"class", "viewbox", "width", "height", "aria-hidden", "d", "fill"}
    for name, attributes in found.elements:  # every shape in the page was drawn by us
        assert name not in ("svg", "path") or set(attributes) <= ours
    content = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])
    assert content["runs"][ids[0]]["samples"]["items"][0][4] == HOSTILE[0]
    assert "root:" not in text


def test_the_question_is_the_sweep_files(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "# @package _global_\n# Question: does it\n#           work?\n# Says:     little.\nrank: 8\n# Paper: none\n"
    )
    assert words.header_of_sweep({"overrides": ["seed=0", "+sweeps=x"]}, tmp_path) == {
        "Question": "does it work?",
        "Says": "little.",
    }
    for name in ("../x", "", "y", "x/../x"):
        assert words.header_of_sweep({"overrides": [f"+sweeps={name}"]}, tmp_path) == {}


def test_a_result_in_words_agrees_with_the_table(roots: Roots) -> None:
    found = evidence(roots, THREE)
    by_metric = {finding.metric: " ".join(finding.sentences) for finding in words.findings(found)}
    panel = next(p for p in found.result.panels if p.metric == "answer_loss_nats")
    best = next(cell for cell in panel.cells if cell.best)
    said = by_metric["answer_loss_nats"]
    assert f"{best.arm}, {best.score.mean:.3f} [{best.score.low:.3f}, {best.score.high:.3f}]" in said
    for cell in panel.cells:
        if cell.tied:
            assert re.search(rf"{cell.arm}.* are tied", said)
        elif cell.to_best and not cell.best:
            assert f"{cell.arm} (+{cell.to_best.difference:.3f}" in said
        if cell.not_ranked == "edge":
            assert f"Not ranked: {cell.arm}, whose best rate is the least or greatest" in said
    assert "validation" in words.protocol(found) or "reported items" in words.protocol(found)


def test_two_seeds_and_one_are_not_called_a_test(roots: Roots) -> None:
    two = evidence(roots, grid(("lora", "milora"), (1e-3,), seeds=2))
    assert "Nothing is called best" in words.findings(two)[0].sentences[0]
    assert "Two seeds per arm" in told(two)
    one = evidence(roots, grid(("lora", "milora"), (1e-3,), seeds=1))
    assert "One seed per arm" in told(one)
    assert "is best" not in str(words.findings(one))


def test_every_run_that_is_not_done_is_warned_of_and_listed(roots: Roots, small: None) -> None:
    states = ("done", "done", "done", "diverged", "bug", "stale", "planned")
    runs = [Made(seed=seed, state=state) for seed, state in enumerate(states)]
    found = evidence(roots, runs)
    text = told(found)
    for words_ in ("1 of 7 runs diverged", "1 of 7 runs failed and are left out (1 bug)", "1 of 7 runs are stale",
                   "1 of 7 runs have not been run"):  # fmt: skip
        assert words_ in text
    table = Reader(main.write(roots, "s", stale).read_text(encoding="utf-8"))
    listed = {a["data-run"]: a["data-f-state"] for name, a in table.elements if name == "tr" and "data-run" in a}
    shown = {"bug": "failed"}
    assert listed == {id_of(made): shown.get(made.state, made.state) for made in runs}
    assert "shapes (8, 64) and (32, 8) do not fit" in table.text


def test_unequal_terms_are_warned_of(roots: Roots) -> None:
    runs = [*THREE, *grid(("goat",), (1e-3,))]
    write(roots, "s", runs)
    run = id_of(runs[-1])
    env = atomic.read_json(folder_of(roots, run).env)
    env["starts"][0] |= {"code_sha256": "cd" * 32, "device": "NVIDIA H100"}
    atomic.write_json(folder_of(roots, run).env, env)
    result = folder_of(roots, run).read_result()
    atomic.write_json(folder_of(roots, run).result, {**result, "trainable_parameters": 10**6})
    text = told(read(roots, "s", stale))
    assert "Unequal tuning" in text
    assert "Unequal budgets" in text
    assert "2 versions of the code: abababab (" in text
    assert "2 kinds of device" in text
    assert "least or greatest that was tried: pissa (0.0005)" in text


@pytest.mark.parametrize("states", [("planned", "diverged", "stale"), ("planned",)], ids=["failures", "nothing"])
def test_a_study_without_a_finished_run_has_a_page(roots: Roots, small: None, states: tuple[str, ...]) -> None:
    write(roots, "s", [Made(seed=seed, state=state) for seed, state in enumerate(states)])
    shutil.rmtree(roots.cache, ignore_errors=True)
    (roots.studies / "s" / "plan.json").unlink()
    text = Reader(main.write(roots, "s", stale).read_text(encoding="utf-8")).text
    assert "No run has finished" in text
    assert "has no plan.json" in text
    assert ("the loss is nan at step 27" in text) == ("diverged" in states)


def test_damaged_files_are_in_the_page_and_then_an_error(roots: Roots, small: None) -> None:
    runs = [Made(seed=seed) for seed in range(6)]
    ids = write(roots, "s", runs)
    folders = [folder_of(roots, run) for run in ids]
    folders[0].result.write_text("{")
    folders[1].env.write_text("[]")
    folders[2].timing.write_text("not json\n")
    folders[3].metrics.write_text('{"kind": "train"}\n')
    folders[4].items("generation").write_text("x\n")
    with pytest.raises(Corrupted):
        main.write(roots, "s", stale)
    text = Reader((roots.studies / "s" / "report.html").read_text(encoding="utf-8")).text
    for name in ("result.json", "env.json", "timing.jsonl", "metrics.jsonl", "generation.jsonl"):
        assert re.search(rf"Cannot be read: runs/\w+/(evals/)?{name}", text), name
    assert "unreadable" in text


def test_commands_can_be_pasted(roots: Roots) -> None:
    found = evidence(roots, [Made()])
    odd = found._replace(plan={"overrides": ["method=lora,pissa", "x=$(reboot)"]}, name="a b")
    assert words.reproduce(odd) == [
        "ablora run -m method=lora,pissa 'x=$(reboot)' study='a b'",
        "ablora figures 'a b'",
        "ablora report 'a b'",
    ]
    assert words.reproduce(found._replace(plan={})) == []


def test_samples_share_the_room_and_say_what_is_left_out(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evidence(roots, [Made(seed=0), Made(seed=1)])
    every = detail.details(found)
    run = every["runs"][found.runs.id.iloc[0]]
    items = list(lines.read(folder_of(roots, found.runs.id.iloc[0]).items("generation")))
    assert [item[0] for item in run["samples"]["items"]] == [item["item"] for item in items]
    assert every["prompts"]["arithmetic"].keys() == {item["item"] for item in items}
    monkeypatch.setattr(detail, "SAMPLE_CHARACTERS", 1500)
    cut = detail.details(found)["runs"]
    kept = {len(own["samples"]["items"]) for own in cut.values()}
    assert len(kept) == 1
    assert 0 < kept.pop() < len(items)
    assert all(own["samples"]["of"] == len(items) for own in cut.values())


def test_curves_keep_their_ends_and_say_how_many_there_were(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evidence(roots, [Made(steps=400), Made(seed=1, state="diverged", steps=400)])
    own = series.curves(found)
    run = found.runs.id.iloc[0]
    place, values, recorded = own["runs"][run]["loss_nats"]
    steps = own["steps"][place]
    raw = {r["step"]: r["loss_nats"] for r in lines.read(folder_of(roots, run).metrics) if r["kind"] == "train"}
    assert (len(values), recorded, steps[0], steps[-1]) == (200, 400, 1, 400)
    assert values == [pytest.approx(raw[step], rel=1e-4) for step in steps]
    assert own["runs"][found.runs.id.iloc[1]]["loss_nats"][1][-1] is None or series.last_steps(own)[run] == 400


def test_layers_are_the_measures_values(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = grid(("lora", "goat"), (1e-3,), seeds=1)
    found = evidence(roots, runs, tuple(runs))
    own = layers.layers(found)
    frame = pd.read_parquet(roots.studies / "s" / "measures" / "subspace.parquet")
    row = frame[(frame["id"] == id_of(runs[0])) & (frame["against"] == "top") & (frame["side"] == "left")].iloc[3]
    at = [module[0] for module in own["modules"]].index(row["module"])
    values = own["runs"][id_of(runs[0])]["update"]["φ with W0's top left vectors"]
    assert values[at] == pytest.approx(row["phi"], rel=1e-3)
    low, middle, high = (column[at] for column in own["bands"]["φ with W0's top left vectors"])
    assert low < middle < high
    assert "expert 0" in own["runs"][id_of(runs[-1])]
    assert own["left_out"] == ""
    num = sum(len(v) for parts in own["runs"].values() for part in parts.values() for v in part.values())
    monkeypatch.setattr(layers, "VALUES", num // 2)
    assert "left out" in layers.layers(found)["left_out"]
    frame.loc[frame.index[:5], ["phi", "reason"]] = [float("nan"), "the update is zero"]
    frame.to_parquet(roots.studies / "s" / "measures" / "subspace.parquet")
    assert "the update is zero" in str(layers.layers(found)["reasons"])


def draw(folder: Path, name: str, size: tuple[int, int] = (990, 600), **side: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / f"{name}.png")
    (folder / f"{name}.svg").write_text(f"<svg xmlns='http://www.w3.org/2000/svg'>{' ' * 9000}</svg>")
    atomic.write_json(folder / f"{name}.json", {"schema": 1, "runs": ["a"], "notes": ["Foot <b>."], **side})


def test_pictures_are_the_smaller_file_and_know_when_they_are_old(
    roots: Roots, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    found = evidence(roots, [Made()])
    folder = roots.studies / "s" / "figures"
    draw(folder, "b", choices=[])
    draw(folder, "result_table", (1980, 600))
    (folder / "b.csv").write_text("arm,value\n<i>x</i>,0.123456789\n")
    (folder / "c.json").write_text("[")
    one, two = pictures.pictures(found)
    assert (one.name, two.name) == ("result_table", "b")
    assert two.source.startswith("data:image/png;base64,")
    assert (two.width, two.height) == (475, 288)
    assert (one.outdated, two.outdated) == (False, True)
    assert any("c.json" in str(problem) for problem in found.problems)
    made = Reader(pictures.figure(two, folder))
    assert "Foot <b>." in made.text
    assert "<i>x</i>" in made.text
    assert "0.12346" in made.text
    assert ("a", {"href": "figures/b.csv"}) in made.elements
    assert 'class="wide"' in pictures.figure(one, folder)
    kept, left = pictures.within([one, two], len(one.source))
    assert (kept.source, left.source) == (one.source, "")
    assert "Too large" in pictures.figure(left, folder)


def test_the_command_names_the_page_and_refuses_an_unknown_study(
    roots: Roots, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: None
) -> None:
    write(roots, "s", [Made(state="planned")])
    monkeypatch.setenv("ABLORA_RUNS", str(roots.runs))
    assert cli.main(["report", "s"]) == 0
    assert capsys.readouterr().out.startswith(str(roots.studies / "s" / "report.html"))
    assert cli.main(["report", "t"]) == 2
    monkeypatch.undo()
    monkeypatch.setenv("ABLORA_RUNS", str(roots.runs))
    page._library.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["report", "s"]) == 2
    assert "ablora[report]" in capsys.readouterr().err
