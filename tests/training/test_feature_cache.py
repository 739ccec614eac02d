"""``data.feature_cache``: training with it equals training without it, and what it costs is said beforehand."""

import logging
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

from nemo_desta.config import ModelConfig, parse
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import FrozenEncoder
from nemo_desta.perception.feature_store import shards
from nemo_desta.training.feature_command import run_features
from nemo_desta.training.fit import fit
from nemo_desta.training.run_settings import SettingsChanged, compare_run, describe_run

SHORT = {"trainer.max_steps": 8, "model.lr_scheduler.warmup_steps": 1}
VALID = "data.validation_ds.datasets"


def cached(folder, **settings) -> dict[str, str]:
    pairs = ",".join(f"{key}:{value}" for key, value in {"folder": folder, **settings}.items())
    return {"data.feature_cache": f"{{{pairs}}}"}


@pytest.fixture
def encoded(monkeypatch):
    """The number of clips in each call of an encoder."""
    calls, forward = [], FrozenEncoder.forward
    monkeypatch.setattr(
        FrozenEncoder, "forward", lambda self, audio, lens: calls.append(len(audio)) or forward(self, audio, lens)
    )
    return calls


@pytest.fixture
def said(monkeypatch):
    """Lines of this package's log; a handler of its own, because NeMo sets the level of those of the root."""
    lines, handler, logger = [], logging.Handler(), logging.getLogger("nemo_desta")
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield lines
    logger.removeHandler(handler)


def test_losses_and_weights_are_bit_equal_and_a_second_run_encodes_nothing(workplace, tmp_path, encoded, said):
    rows = {"data.train_ds.input_cfg.0.rows": workplace.few_rows(), **SHORT}  # 2 epochs
    losses, counts, weights = {}, {}, {}
    for run, more in {"plain": {}, "cold": cached(tmp_path), "warm": cached(tmp_path, precompute="true")}.items():
        encoded.clear()
        weights[run] = fit(workplace.config(f"features_{run}", **rows, **more)).state_dict()
        losses[run] = [step["loss"] for step in workplace.steps(f"features_{run}")]
        counts[run] = sum(encoded)
    assert losses["plain"] == losses["cold"] == losses["warm"] and len(losses["plain"]) == 8
    for run in ("cold", "warm"):
        assert all(torch.equal(weights["plain"][key], value) for key, value in weights[run].items())
    assert counts["plain"] == 2 * counts["cold"] > 0
    text = "\n".join(said)
    assert re.search(r"feature cache: \d+ clips, 0.\d+ h", text) and "outputs were read (100.0%)" in text
    encoded.clear()
    fit(workplace.config("features_again", **rows, **cached(tmp_path)))
    assert encoded == []


def test_the_job_encodes_each_clip_once_and_says_what_it_takes(workplace, tmp_path, caplog, encoded):
    config = workplace.config("unused", **cached(tmp_path))
    with caplog.at_level("INFO", "nemo_desta"):
        assert run_features(config).startswith("40 of 40 clips were encoded")
    assert sum(encoded) == 80  # by two encoders
    said = re.search(r"40 clips, ([\d.]+) h of audio: ([\d.]+) GB \([\d.]+ GB per hour", caplog.text)
    size = sum(size for _, size, _ in shards(tmp_path))
    assert size == pytest.approx(float(said[2]) * 1e9, rel=0.2, abs=5e5)
    encoded.clear()
    assert run_features(config).startswith("0 of 40 clips were encoded") and encoded == []
    with pytest.raises(ConfigError, match="do not fit into max_gb=1e-06"):
        run_features(workplace.config("unused", **cached(tmp_path, max_gb=1.0e-6)))
    with pytest.raises(ConfigError, match="'data.feature_cache' is null"):
        run_features(workplace.config("unused"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{foldr: x}", "unknown key 'data.feature_cache.foldr'.*Did you mean 'folder'"),
        ("{dtype: int8}", "'feature_cache.dtype' is 'int8'"),
        ("{max_gb: 0}", "'feature_cache.max_gb' must be above 0"),
        ("true", "'data.feature_cache' must be a mapping"),
    ],
)
def test_wrong_settings_are_refused(workplace, settings, message):
    with pytest.raises(ConfigError, match=message):
        fit(workplace.config("refused", check="true", **{"data.feature_cache": settings}))


def test_the_check_says_what_the_cache_costs_and_saves(workplace, tmp_path, capsys):
    lines, shares = {}, {}
    for name, more in {"off": {}, "on": cached(tmp_path), "small": cached(tmp_path, max_gb=1.0e-6)}.items():
        fit(workplace.config("checked", check="true", **more))
        said = capsys.readouterr().out
        lines[name] = re.search(r"feature cache  (.*)", said)[1]
        shares[name] = float(re.search(r"compute .*encoders (\d.*?)%", said)[1]) / 100
    epochs = float(re.search(r"in each of (.*) epochs", lines["on"])[1])
    # a share of p in every epoch becomes p / epochs of what is left
    part = shares["off"] / epochs
    assert shares["on"] == pytest.approx(part / (1 - shares["off"] + part), abs=0.01) and shares["on"] < shares["off"]
    for name, line in lines.items():
        assert "40 clips" in line and re.search(r"GB per hour of audio.* in each of 1\.\d epochs$", line), line
        assert line.startswith("off; it would hold ") == (name == "off")
        assert ("more than max_gb=1e-06" in line) == (name == "small")
    assert not shards(tmp_path)
    fit(workplace.config("checked", check="true", **{"++model.perception.encoders.beats.original_masks": "true"}))
    assert "not possible here (feature_cache: encoder 'beats' has original_masks" in capsys.readouterr().out


def test_a_resume_may_switch_the_cache_but_not_its_rounding(workplace, tmp_path):
    runs = {}
    for name, more in {"off": {}, "auto": cached(tmp_path), "bf16": cached(tmp_path, dtype="bfloat16")}.items():
        settings = OmegaConf.to_container(workplace.config("compared", **more), resolve=True)
        runs[name] = describe_run(parse(ModelConfig, settings["model"]), settings)
    assert compare_run(runs["off"], runs["auto"], force=False) == []
    with pytest.raises(SettingsChanged, match="data.feature_cache.dtype"):
        compare_run(runs["auto"], runs["bf16"], force=False)


@pytest.mark.slow
def test_the_job_resumes_after_a_real_kill(workplace, tmp_path):
    """Small batches, so that the kill comes in the middle."""
    code = (
        "import sys; from nemo_desta.training import feature_precompute as f; f.MAX_CLIPS = 2\n"
        "from nemo_desta.cli.main import main; sys.exit(main(['features', *sys.argv[1:]]))"
    )
    words = ["--config-name", "desta25", *workplace.overrides("unused", **cached(tmp_path))]
    job = [sys.executable, "-c", code, *words]
    process = subprocess.Popen(job, env=workplace.environment(), cwd=workplace.folder)
    until = time.monotonic() + 300
    while len(shards(tmp_path)) < 8 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = subprocess.run(job, env=workplace.environment(), cwd=workplace.folder, capture_output=True, text=True)
    count = int(re.match(r"(\d+) of 40 clips were encoded", found.stdout)[1])
    assert 0 < count <= 40 - 6, found.stdout  # four batches of two encoders, the last of which may be incomplete


@pytest.mark.slow
def test_two_ddp_ranks_share_a_folder_with_equal_losses(workplace, tmp_path):
    more = {"strategy": "ddp", "trainer.devices": 2, **SHORT}
    for run, extra in {"ddp_plain": {}, "ddp_cached": cached(tmp_path, precompute="true")}.items():
        done = workplace.train(run, **more, **extra)
        assert done.returncode == 0, done.stderr[-3000:]
    assert workplace.steps("ddp_plain") == workplace.steps("ddp_cached")
    assert "(100.0%)" in done.stderr + (workplace.folder / "ddp_cached/desta25/records/log.txt").read_text()
