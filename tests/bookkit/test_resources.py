"""What a run needs before it starts: sizes from headers, memory, batches, time."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from bookkit.project import list_papers
from bookkit.run import resources as sizing
from bookkit.run.chapter import find_chapter
from bookkit.run.resources import Reference, Size, estimate, folder_size
from replib.errors import UsageError
from replib.interventions import budget
from replib.models import hub
from replib.models.load import prepare_model
from replib.models.sources import networks_of
from replib.models.tiny import tiny_parts

ROOT = Path(__file__).parents[2]
GPT2 = Size(124_439_808, 50257 * 768, 768)
REFERENCE = Reference(Size(100_000_000, 20_000_000, 500), 1e9, 100.0, 1e10)
WORKING = 1e9 * 768 / 500  # of GPT-2, by the reference


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_folder_s_size_is_that_of_the_loaded_model(arch, tmp_path):
    model, _ = tiny_parts(arch, seed=0)
    model.save_pretrained(tmp_path)
    size = folder_size(tmp_path)
    assert size.n_params == model.num_parameters()
    assert (size.d_model, size.n_embedding) == (32, 32 * model.config.vocab_size)
    assert size.n_active == size.n_params - size.n_embedding


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"vocab_size": -1},
        {"n_embd": "32"},
        {"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"},  # nobody is asked about it
    ],
)
def test_a_configuration_without_sizes_is_one_line(change, tmp_path, capsys):
    model, _ = tiny_parts("gpt2", seed=0)
    model.save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    path = tmp_path / "config.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match="its size cannot be read") as error:
        folder_size(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    said = capsys.readouterr()
    assert "custom code" not in said.out + said.err


def test_the_models_of_every_paper_profile_have_a_size():
    for paper in (paper for paper in list_papers(ROOT) if not networks_of(paper)):
        profile = find_chapter(ROOT, paper).profile("paper")
        second = profile.parameters.get("against")
        assert {*profile.models, *([second] if second else [])} <= set(sizing.PUBLISHED)


# --- the estimate ---------------------------------------------------------------------------------


def test_what_fits_runs_as_it_is():
    found = estimate(GPT2, "float32", "cpu", 20e9, REFERENCE, 1.0, 2e10)
    assert found.batch_scale == 1
    assert found.needed_bytes == pytest.approx(0.9e9 + 2 * 4 * GPT2.n_params + WORKING)
    assert found.seconds == pytest.approx(10 + 100 * GPT2.n_active / 80e6 * 0.5)
    line = found.line()
    assert "124 million parameters in float32" in line and "20.0 GB are free" in line
    assert "takes about" in line and "batches" not in line
    unknown = estimate(GPT2, "float32", "cpu", 20e9, None, 1.0, 1e10)
    assert unknown.seconds is None and "takes" not in unknown.line()


def test_batches_shrink_before_a_run_is_refused():
    need = 0.9e9 + 2 * 4 * GPT2.n_params
    found = estimate(GPT2, "float32", "cpu", need + 0.3 * WORKING, REFERENCE)
    assert found.batch_scale == 0.25 and "batches × 0.25" in found.line()
    assert found.needed_bytes <= need + 0.3 * WORKING
    with pytest.raises(UsageError) as error:
        estimate(GPT2, "float32", "cpu", need, REFERENCE)
    text = str(error.value)
    assert "124 million parameters" in text and "what fits: about" in text
    assert "--dtype bfloat16" in text and "\n" not in text


@pytest.mark.parametrize(("dtype", "device"), [("float32", "cpu"), ("bfloat16", "cuda")])
def test_a_refusal_names_a_size_that_fits_and_hardly_a_smaller_one(dtype, device):
    with pytest.raises(UsageError) as error:
        estimate(Size(70_000_000_000, 0, 500), dtype, device, 24e9, REFERENCE)
    fits = float(re.search(r"about ([\d.]+) billion parameters", str(error.value))[1]) * 1e9
    estimate(Size(int(0.99 * fits), 0, 500), dtype, device, 24e9, REFERENCE)
    with pytest.raises(UsageError):
        estimate(Size(int(1.01 * fits), 0, 500), dtype, device, 24e9, REFERENCE)


def test_a_gpu_with_room_takes_larger_batches_and_a_processor_does_not():
    assert estimate(GPT2, "bfloat16", "cuda", 80e9, REFERENCE).batch_scale == 4
    assert estimate(GPT2, "bfloat16", "cpu", 80e9, REFERENCE).batch_scale == 1
    assert estimate(GPT2, "bfloat16", "cuda", 80e9, None).batch_scale == 1


def test_a_reference_is_what_a_record_measured():
    calibration = {"n_params": 100, "n_embedding": 20, "d_model": 8, "speed": 1e9}
    record = {
        "calibration": calibration | {"batch_scale": 1.0},
        "model": {"dtype": "float32"},
        "peak_memory_mb": 2900.0,
        "wall_time_s": 70.0,
    }
    found = sizing.reference(record)
    assert found.size == Size(100, 20, 8) and found.seconds == 60.0 and found.speed == 1e9
    assert found.working_bytes == pytest.approx(2e9 - 800)
    assert sizing.reference(record | {"calibration": None}) is None
    for model in ({}, {"dtype": None}, {"dtype": "int3"}):  # nothing is known about memory
        assert sizing.reference(record | {"model": model}) is None


def test_this_machine_has_memory_and_speed():
    assert sizing.available_bytes("cpu") > 1e8
    assert sizing.measure_speed(64, "float32", "cpu", 1) > 1e6


def test_durations():
    durations = {0.2: "1 s", 40: "40 s", 200: "3 min", 7200: "2 h", 300_000: "3 days"}
    assert {seconds: sizing.rough_duration(seconds) for seconds in durations} == durations


def test_a_model_of_the_hub_that_cannot_fit_is_refused_before_the_download(monkeypatch):
    info = SimpleNamespace(
        siblings=[SimpleNamespace(rfilename="model.safetensors")],
        safetensors=SimpleNamespace(total=70_000_000_000),
    )
    api = SimpleNamespace(model_info=lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "_snapshot", lambda *_, **__: pytest.fail("downloaded"))

    with pytest.raises(UsageError, match="70 billion parameters"):
        prepare_model(
            "org/large",
            before_download=lambda n: estimate(Size(n, 0, 1), "float32", "cpu", 24e9, None),
        )


def test_batches_follow_the_variable(monkeypatch):
    monkeypatch.delenv(budget.VARIABLE, raising=False)
    assert budget.at_once(100) == 100
    monkeypatch.setenv(budget.VARIABLE, "0.25")
    assert budget.at_once(100) == 25 and budget.at_once(1) == 1
    for wrong in ("0", "-1", "many", "inf"):
        monkeypatch.setenv(budget.VARIABLE, wrong)
        with pytest.raises(UsageError, match="is not a number above 0"):
            budget.at_once(100)
