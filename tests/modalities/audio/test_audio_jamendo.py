"""MTG-Jamendo's layout, generated small, through reader, tokenizer classes, cache and training; the shipped recipes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import nn

from layersync import load_recipe
from layersync.core.adapter import ConditionSpec
from layersync.core.errors import InputError
from layersync.core.recipe_reading import shipped_recipes
from layersync.modalities.audio.adapter import AudioAdapter
from layersync.modalities.audio.jamendo import MtgJamendo, MtgJamendoConfig, read_tracks

Command = Callable[..., tuple[int, str, str]]
HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\r\n"
ROWS = {
    "train": [(948, ["background"]), (950, ["energetic", "happy"]), (1201, ["dark"]), (1302, ["calm", "film"])],
    "validation": [(77, ["happy"])],
    "test": [(7400, ["calm"]), (501, ["epic", "film"])],
}
RECIPES = sorted(name for name in shipped_recipes() if name.startswith("audio/mtg-jamendo"))


def table(rows: list[tuple[int, list[str]]]) -> str:
    """As data/splits/split-0/autotagging_moodtheme-train.tsv: tab-separated, tags last, lines ended by CR LF."""
    lines = []
    for number, tags in rows:
        named = "\t".join(f"mood/theme---{tag}" for tag in tags)
        path = f"{number % 100:02d}/{number}.mp3"
        lines.append(f"track_{number:07d}\tartist_{number:06d}\talbum_{number:06d}\t{path}\t1.5\t{named}\r\n")
    return HEADER + "".join(lines)


@pytest.fixture(scope="module")
def jamendo(tmp_path_factory: pytest.TempPathFactory, harmonic: Callable[..., np.ndarray]) -> Path:
    """``audio/48/948.mp3`` ... in stereo, and the tables of one split of the repository."""
    root = tmp_path_factory.mktemp("jamendo")
    splits = root / "mtg-jamendo-dataset" / "data" / "splits" / "split-0"
    splits.mkdir(parents=True)
    for part, rows in ROWS.items():
        (splits / f"autotagging_moodtheme-{part}.tsv").write_bytes(table(rows).encode())
        for number, _ in rows:
            file = root / "audio" / f"{number % 100:02d}" / f"{number}.mp3"
            file.parent.mkdir(parents=True, exist_ok=True)
            sides = [harmonic(150 + number % 300, 1.5, 44100), harmonic(250 + number % 300, 1.5, 44100)]
            soundfile.write(file, np.stack(sides, axis=1), 44100, format="MP3")
    return root


@pytest.fixture
def section(jamendo: Path) -> dict[str, Any]:
    return {"path": str(jamendo / "audio"), "metadata": str(jamendo / "mtg-jamendo-dataset")}


def opened(section: dict[str, Any], split: Any = "train", **changes: Any) -> MtgJamendo:
    return MtgJamendoConfig.model_validate({**section, **changes}).build(split)


class TestReader:
    def test_tracks_and_captions_follow_the_tables(self, section: dict[str, Any]) -> None:
        tracks = opened(section)
        texts = [tracks[index].condition["text"] for index in range(len(tracks))]
        assert texts == ["background", "energetic, happy", "dark", "calm, film"]
        assert tracks.classes == () and all("label" not in tracks[index].condition for index in range(4))
        assert [Path(tracks[index].source).name for index in range(4)] == ["948.mp3", "950.mp3", "1201.mp3", "1302.mp3"]
        assert [len(opened(section, "test")), len(opened(section, "test", held_out="validation"))] == [2, 1]

    def test_tracks_are_stereo_and_whole(self, section: dict[str, Any]) -> None:
        clip = opened(section)[0].sample
        assert clip.sample_rate == 44100 and clip.side is not None
        assert clip.seconds == pytest.approx(1.5, abs=0.1)
        assert np.abs(clip.side).max() > 0.05

    def test_seconds_are_the_middle_of_a_track(self, section: dict[str, Any]) -> None:
        whole, middle = opened(section)[1].sample, opened(section, seconds=0.5)[1].sample
        assert middle.seconds == 0.5
        first = (len(whole.waveform) - len(middle.waveform)) // 2
        expected = whole.waveform[first : first + len(middle.waveform)]
        assert np.corrcoef(middle.waveform[2000:], expected[2000:])[0, 1] > 0.99  # an MP3 is found by frames
        assert np.array_equal(opened(section, seconds=60.0)[1].sample.waveform, whole.waveform)

    def test_first_tags_are_labels_when_asked_for(self, section: dict[str, Any]) -> None:
        tracks = opened(section, label="first-tag")
        assert tracks.classes == ("background", "calm", "dark", "energetic", "epic")
        assert [tracks[index].condition["label"] for index in range(4)] == [0, 3, 2, 1]
        assert opened(section, "test", label="first-tag").classes == tracks.classes

    def test_low_quality_is_another_name(self, section: dict[str, Any], jamendo: Path, tmp_path: Path) -> None:
        for file in (jamendo / "audio").rglob("*.mp3"):
            copy = tmp_path / file.parent.name / f"{file.stem}.low.mp3"
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
        low = opened({**section, "path": str(tmp_path)}, quality="low")
        assert Path(low[0].source).name == "948.low.mp3"
        with pytest.raises(InputError, match=r"4 of 4 tracks are missing, .*set data.quality: low, which is there$"):
            opened({**section, "path": str(tmp_path)})

    def test_the_fingerprint_follows_settings_tags_and_files(self, section: dict[str, Any], tmp_path: Path) -> None:
        plain = opened(section).fingerprint
        others = [opened(section, "test"), opened(section, seconds=0.5), opened(section, label="first-tag")]
        assert len({plain, *(other.fingerprint for other in others)}) == 4
        assert opened(section).fingerprint == plain


class TestWrongData:
    def one_line(self, section: dict[str, Any], message: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=message) as error:
            opened(section, **changes)
        assert "\n" not in str(error.value)

    def test_missing_tracks_are_counted(
        self, section: dict[str, Any], jamendo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "48").mkdir()
        (tmp_path / "48" / "948.mp3").write_bytes((jamendo / "audio" / "48" / "948.mp3").read_bytes())
        some = {**section, "path": str(tmp_path)}
        self.one_line(some, r"^data.path: 3 of 4 tracks are missing, such as .*950.mp3.* or set data.on_error: skip")
        with caplog.at_level(logging.WARNING):
            assert len(opened(some, on_error="skip")) == 1
        assert "3 of 4 tracks are not there" in caplog.text

    def test_no_track_at_all_is_an_error_even_when_skipping(self, section: dict[str, Any], tmp_path: Path) -> None:
        self.one_line({**section, "path": str(tmp_path)}, r"4 of 4 tracks are missing.*download.py$", on_error="skip")

    def test_no_tables(self, section: dict[str, Any], jamendo: Path) -> None:
        checkout = r"a checkout of github.com/MTG/mtg-jamendo-dataset$"
        self.one_line({"path": section["path"]}, rf"^data.path: .* has no data/splits/split-0; .*{checkout}")
        self.one_line(section, rf"^data.metadata: .* has no data/splits/split-3; .*{checkout}", split_number=3)
        self.one_line(section, r"^data.metadata: .*autotagging_genre-train.tsv cannot be read", subset="genre")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "does not begin with the columns TRACK_ID"),
            ("a\tb\r\n", "does not begin with the columns TRACK_ID"),
            (HEADER, "lists no track"),
            (HEADER + "track_1\tartist_1\n", "line 2 names no track"),
            (table([(1, ["x"])]) + "t\ta\tb\t../../etc/passwd.mp3\t3\tmood/theme---y\n", "line 3 names no track"),
            (HEADER + "t\ta\tb\t00/1.mp3\t3\thappy\n", r"line 2: a tag is no category---name: \['happy'\]"),
        ],
    )
    def test_tables_of_another_layout(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "table.tsv").write_text(text)
        with pytest.raises(InputError, match=message):
            read_tracks(tmp_path / "table.tsv")

    def test_a_damaged_track_is_found_by_its_header(self, section: dict[str, Any], jamendo: Path) -> None:
        file = jamendo / "audio" / "50" / "950.mp3"
        before = file.read_bytes()
        try:
            file.write_bytes(b"no sound")
            self.one_line(section, r"950.mp3: cannot be read as audio")
            assert len(opened(section, on_error="skip")) == 4
        finally:
            file.write_bytes(before)


def small_autoencoder(folder: Path) -> Path:
    """An AutoencoderOobleck in diffusers' layout: 8 kHz stereo, 64 channels, 256 samples a latent."""
    from diffusers import AutoencoderOobleck

    torch.manual_seed(0)
    network = AutoencoderOobleck(
        encoder_hidden_size=128,
        downsampling_ratios=[16, 16],
        channel_multiples=[1, 1],
        decoder_channels=8,
        decoder_input_channels=64,
        audio_channels=2,
        sampling_rate=8000,
    )
    network.save_pretrained(folder / "vae")
    return folder


class TestRecipes:
    def test_there_are_two_with_their_twins(self) -> None:
        assert [
            f"audio/mtg-jamendo-{name}" for name in ("mel-sit", "mel-sit-baseline", "sit", "sit-baseline")
        ] == RECIPES

    @pytest.mark.parametrize("name", RECIPES[::2])
    def test_twins_differ_in_the_regularizer_alone(self, name: str) -> None:
        ours, twin = (yaml.safe_load(shipped_recipes()[found]) for found in (name, f"{name}-baseline"))
        assert ours.pop("regularizer") == {"name": "layersync", "pairs": [[8, 16]], "weight": 0.2}
        assert twin.pop("regularizer") == {"name": "none"}
        assert ours == twin

    @pytest.mark.parametrize("name", RECIPES)
    def test_each_builds_at_full_size(self, name: str) -> None:
        """SiT-XL without labels: 28 blocks of 1152 channels."""
        recipe = load_recipe(name)
        latent = recipe.tokenizer.latent_spec()
        with torch.device("meta"):
            network: nn.Module = AudioAdapter().backbone(recipe.backbone, latent, ConditionSpec())
        count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        assert round(count / 1e6) == 674
        assert tuple(network.pos_embed.shape) == (1, 640 if "mel" in name else 256, 1152)

    @pytest.mark.parametrize("name", RECIPES)
    def test_each_trains_on_data_of_the_real_format_at_a_shrunk_size(
        self, name: str, jamendo: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MTG_JAMENDO", str(jamendo))
        patch, tokenizer = "1", [f"tokenizer.path={small_autoencoder(tmp_path)}", "tokenizer.num_frames=16"]
        if "mel" in name:
            patch, tokenizer = "[20, 8]", ["tokenizer.num_frames=32", "tokenizer.vocoder=griffin-lim"]
        shrunk = [
            *tokenizer, "backbone.depth=4", "backbone.hidden_size=32", "backbone.num_heads=2",
            f"backbone.patch_size={patch}", "train.steps=2", "train.batch_size=4", "sample.steps=3",
        ]  # fmt: skip
        if "baseline" not in name:
            shrunk.append("regularizer.pairs=[[1, 3]]")
        run = tmp_path / "run"
        status, _, error = command("train", name, "--out", run, *(part for s in shrunk for part in ("--set", s)))
        assert status == 0, error
        assert command("sample", run, "--num", 2)[0] == 0
        wavs = sorted((run / "samples").rglob("*.wav"))
        stereo, rate, length = (1, 24000, 32 * 256) if "mel" in name else (2, 8000, 16 * 256)
        assert [(i.channels, i.samplerate, i.frames) for i in map(soundfile.info, wavs)] == [(stereo, rate, length)] * 2
