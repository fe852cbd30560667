"""What enters and leaves each network, against published code; files of weights that are not what they should be.

Golden outputs lie in ``tests/golden/audio_*.npz``; each says in ``source`` which published code made it, at which
commit and with which versions, and the tests below repeat the essence.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patterns import patterned, voice
from torch import Tensor, nn

from layersync.core.adapter import Example
from layersync.core.errors import InputError
from layersync.core.features import FeatureExtractor
from layersync.core.metric import parse_metric
from layersync.modalities.audio.adapter import AudioAdapter
from layersync.modalities.audio.clip import Clip
from layersync.modalities.audio.features import encodec
from layersync.modalities.audio.features.clap import CLAP, fadtk_windows, whole_windows
from layersync.modalities.audio.features.encodec import Encodec
from layersync.modalities.audio.features.ge2e import GE2E
from layersync.modalities.audio.features.vggish import VGGish, VGGishNetwork
from layersync.modalities.audio.features.waveform import published_waveform
from layersync.modalities.audio.features.wavlm import WavLM

GOLDEN = Path(__file__).parents[2] / "golden"
CPU = torch.device("cpu")


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"audio_{name}.npz", allow_pickle=False) as stored:
        assert len(str(stored["source"])) > 50
        return {key: stored[key] for key in stored.files}


def example(waveform: np.ndarray, rate: int, text: str | None = None) -> Example:
    return Example(Clip(waveform, rate), {} if text is None else {"text": text}, "somebody.wav")


@contextmanager
def entering(module: nn.Module) -> Iterator[list[Tensor]]:
    """The tensors that enter ``module`` meanwhile, positional or not."""
    seen: list[Tensor] = []

    def note(_: nn.Module, positional: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(next(value for value in (*positional, *named.values()) if isinstance(value, Tensor)).cpu())

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def one_line(raised: pytest.ExceptionInfo[InputError], *words: str) -> None:
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


@pytest.fixture(scope="module", autouse=True)
def on_the_processor() -> Iterator[None]:
    """Golden outputs were made on a CPU, whose arithmetic an accelerator repeats less exactly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layersync.core.device.default_device", lambda: CPU)
        yield


class TestResampling:
    @pytest.mark.parametrize("rate", [16000, 24000, 48000])
    def test_is_fadtks(self, rate: int) -> None:
        """microsoft/fadtk ``fad.py`` ``load_audio`` at ec74b1f, through torchaudio 2.5.1's soundfile backend."""
        recorded = golden("fadtk")
        found = published_waveform(example(voice(1.1, 44100, level=0.97), 44100), rate, "vggish")
        assert len(found) == recorded["lengths"][[16000, 24000, 48000].index(rate)]
        difference = found[::4] * 32768 - recorded[f"waveform_{rate}"]
        assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 1e-3

    def test_a_file_at_the_wanted_rate_is_left_as_it_is(self) -> None:
        sound = voice(0.2, 16000)
        found = published_waveform(example(sound, 16000), 16000, "vggish")
        np.testing.assert_array_equal(found, golden("fadtk")["waveform_same"] / np.float32(32768))
        np.testing.assert_array_equal(found, sound)

    def test_what_passes_full_scale_is_clipped_and_the_rest_lies_on_16_bits(self) -> None:
        loud = np.linspace(-1.5, 1.5, 16000, dtype=np.float32)
        found = published_waveform(example(loud, 16000), 16000, "vggish")
        assert found.min() == -1 and found.max() == 32767 / 32768
        np.testing.assert_array_equal(found * 32768, np.round(found * 32768))
        inside = np.abs(loud) < 0.99
        assert np.abs(found - loud)[inside].max() <= 1 / 32768

    def test_an_odd_rate_goes_through_a_common_one_and_says_so_once(self) -> None:
        time = np.arange(44099) / 44099
        tone = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
        with pytest.warns(UserWarning, match=r"44099 Hz.*44100 Hz by SoX first"):
            found = published_waveform(example(tone, 44099), 16000, "vggish")
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(found)) / 16000)
        assert abs(len(found) - 16000) <= 1
        assert np.abs(found - expected)[500:-500].max() < 2e-3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            published_waveform(example(tone, 44099), 16000, "vggish")

    @pytest.mark.parametrize("waveform", [np.zeros(0, np.float32), np.array([0, np.nan] * 50, np.float32)])
    def test_nothing_and_nan_are_refused_with_their_source(self, waveform: np.ndarray) -> None:
        with pytest.raises(InputError) as raised:
            published_waveform(example(waveform, 16000), 16000, "vggish")
        one_line(raised, "vggish", "somebody.wav")


@pytest.fixture(scope="module")
def vggish_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the published names and shapes in the published format, at half precision to spare the disk."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in VGGishNetwork().state_dict().items()}
    path = tmp_path_factory.mktemp("vggish") / "vggish.pth"
    torch.save({name: tensor.half() for name, tensor in patterned(shapes).items()}, path)
    return path


@pytest.fixture(scope="module")
def vggish(vggish_file: Path) -> VGGish:
    return VGGish(f"{vggish_file}#sha256={hashlib.sha256(vggish_file.read_bytes()).hexdigest()}")


class TestVGGish:
    def test_the_network_is_fed_what_published_code_feeds_it(self, vggish: VGGish) -> None:
        """harritaylor/torchvggish ``vggish_input.waveform_to_examples`` at f3f9096."""
        recorded = golden("vggish")
        with entering(vggish._network) as seen:
            vggish([example(voice(2.0, 16000), 16000), example(voice(0.5, 16000), 16000)])
        expected = np.concatenate([recorded["examples"], recorded["short"]])
        assert seen[0].shape == (3, 1, 96, 64)
        torch.testing.assert_close(seen[0][:, 0], torch.from_numpy(expected), rtol=0, atol=1e-5)

    def test_the_network_answers_as_the_published_one(self, vggish: VGGish) -> None:
        """``VGGish`` of torchvggish with the same weights, its last ReLU removed as fadtk removes it."""
        found = vggish([example(voice(2.0, 16000), 16000)])["features"][0]
        expected = golden("vggish")["embedding"]
        assert found.shape == expected.shape == (2, 128) and (found < 0).any()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize(("seconds", "rows"), [(0.1, 1), (1.0, 1), (1.93, 1), (1.94, 2), (5.0, 5)])
    def test_a_row_for_each_whole_example(self, vggish: VGGish, seconds: float, rows: int) -> None:
        assert vggish([example(voice(seconds, 16000), 16000)])["features"][0].shape == (rows, 128)

    def test_the_score_can_say_which_weights(self, vggish: VGGish, vggish_file: Path) -> None:
        assert vggish.checksum == hashlib.sha256(vggish_file.read_bytes()).hexdigest()
        assert "Kaiser" in vggish.preprocessing and "\n" not in vggish.preprocessing

    def test_another_file_is_taken_only_knowingly(self, vggish_file: Path) -> None:
        with pytest.raises(InputError) as raised:
            VGGish(str(vggish_file))
        one_line(raised, str(vggish_file), "10086976", "#sha256=")

    @pytest.mark.parametrize("kind", ["cut", "foreign", "misshapen", "code", "list", "empty"])
    def test_files_that_hold_something_else(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        contents: Any = {"layer.weight": torch.zeros(3)}
        if kind == "misshapen":
            contents = {"features.0.weight": torch.zeros(64, 1, 5, 5)}
        if kind == "list":
            contents = [torch.zeros(3)]
        torch.save(contents, path)
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:-200])
        if kind == "empty":
            path.write_bytes(b"")
        if kind == "code":
            path.write_bytes(pickle.dumps(Clip(np.zeros(3, np.float32), 1), protocol=2))
        with pytest.raises(InputError) as raised:
            VGGish(f"{path}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}")
        one_line(raised, "vggish", str(path))


def save_model(model: Any, folder: Path) -> None:
    """Write ``model`` as it is published, with weights that are the same everywhere."""
    names = {name: tensor.shape for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    missing, _ = model.load_state_dict(patterned(names), strict=False)
    assert not set(missing) & set(names)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def encodec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import EncodecConfig, EncodecModel

    folder = tmp_path_factory.mktemp("encodec")
    config = EncodecConfig(
        num_filters=4, hidden_size=8, codebook_dim=8, codebook_size=16, upsampling_ratios=[8, 5, 4, 2]
    )
    model = EncodecModel(config)
    encoder = {f"encoder.{name}": tensor.shape for name, tensor in model.encoder.state_dict().items()}
    model.load_state_dict(patterned(encoder), strict=False)
    model.save_pretrained(folder)
    return folder


class TestEncodec:
    def test_latents_are_those_of_the_published_network(self, encodec_folder: Path) -> None:
        """``SEANetEncoder`` of facebookresearch/encodec at 0e2d0ae, the same weights, rows as fadtk takes them."""
        found = Encodec(str(encodec_folder))([example(voice(0.8, 24000), 24000)])["features"][0]
        expected = golden("encodec")["latents"]
        assert found.shape == expected.shape == (60, 8)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    def test_a_row_for_each_320_samples_up_to_a_length(
        self, encodec_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert encodec.LONGEST_SECONDS == 180
        monkeypatch.setattr(encodec, "LONGEST_SECONDS", 2)
        sounds = [np.full(length, 0.1, np.float32) for length in (1, 321, 24000 * 3)]
        rows = Encodec(str(encodec_folder))([example(sound, 24000) for sound in sounds])["features"]
        assert [len(row) for row in rows] == [1, 2, 2 * 75]

    def test_a_stereo_model_is_refused(self, encodec_folder: Path, tmp_path: Path) -> None:
        config = json.loads((encodec_folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "audio_channels": 2, "sampling_rate": 48000}))
        (tmp_path / "model.safetensors").write_bytes((encodec_folder / "model.safetensors").read_bytes())
        with pytest.raises(InputError) as raised:
            Encodec(str(tmp_path))
        one_line(raised, "2 channels at 48000 Hz")


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small WavLM with a head for speech recognition, as fadtk's repository is one."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForCTC

    folder = tmp_path_factory.mktemp("wavlm")
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        vocab_size=12,
    )
    save_model(WavLMForCTC(config), folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


class TestWavLM:
    def test_the_network_is_fed_what_fadtk_feeds_it(self, wavlm_folder: Path) -> None:
        """fadtk's ``WavLMModel._get_embedding`` and ``load_audio`` at ec74b1f."""
        recorded = golden("wavlm")
        extractor = WavLM(str(wavlm_folder))
        with entering(extractor._model) as seen:
            extractor([example(voice(0.9, 44100), 44100)])
        assert seen[0].shape == (1, int(recorded["length"]))
        torch.testing.assert_close(seen[0][0, ::2], torch.from_numpy(recorded["inputs"]), rtol=0, atol=2e-4)

    def test_rows_are_the_last_layer_of_the_model_in_the_folder(self, wavlm_folder: Path) -> None:
        from transformers import Wav2Vec2FeatureExtractor, WavLMModel

        sound = voice(0.6, 16000)
        inputs = Wav2Vec2FeatureExtractor.from_pretrained(wavlm_folder)(
            sound, sampling_rate=16000, return_tensors="pt"
        ).input_values
        with torch.inference_mode():
            states = WavLMModel.from_pretrained(wavlm_folder).eval()(inputs, output_hidden_states=True).hidden_states
        found = WavLM(str(wavlm_folder))([example(sound, 16000)])["features"][0]
        assert found.shape == (29, 16) and len(states) == 3
        np.testing.assert_allclose(found, states[2][0].numpy(), rtol=0, atol=1e-5)

    def test_what_the_folder_says_of_normalisation_is_done_and_said(self, wavlm_folder: Path, tmp_path: Path) -> None:
        for file in wavlm_folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": False}))
        plain, scaled = WavLM(str(tmp_path)), WavLM(str(wavlm_folder))
        assert plain.checksum == scaled.checksum and plain.preprocessing != scaled.preprocessing
        sound = voice(0.1, 16000)
        with entering(plain._model) as seen:
            plain([example(sound, 16000)])
        torch.testing.assert_close(seen[0][0], torch.from_numpy(sound), rtol=0, atol=0)

    def test_a_sound_too_short_for_one_row_is_refused(self, wavlm_folder: Path) -> None:
        extractor = WavLM(str(wavlm_folder))
        assert len(extractor([example(voice(0.025, 16000), 16000)])["features"][0]) == 1
        with pytest.raises(InputError) as raised:
            extractor([example(voice(0.0249, 16000), 16000)])
        one_line(raised, "somebody.wav", "398", "400")

    def test_a_folder_without_its_preprocessing_is_refused(self, wavlm_folder: Path, tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((wavlm_folder / name).read_bytes())
        with pytest.raises(InputError) as raised:
            WavLM(str(tmp_path))
        one_line(raised, "wavlm", "preprocessor_config.json")


TINY_TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 90,
    "projection_dim": 512,
}


def save_tokenizer(folder: Path) -> None:
    """A byte-pair tokenizer of RoBERTa's kind that knows letters only."""
    from transformers import RobertaTokenizerFast

    letters = ["<s>", "<pad>", "</s>", "<unk>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audio branch in its published size, a small text branch, weights of a pattern."""
    from transformers import ClapConfig, ClapModel

    folder = tmp_path_factory.mktemp("clap")
    save_model(ClapModel(ClapConfig(text_config=TINY_TEXT, projection_dim=512)), folder)
    return folder


@pytest.fixture(scope="module")
def small_clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both branches small, and a tokenizer: for what does not depend on the size."""
    from transformers import ClapConfig, ClapModel

    folder = tmp_path_factory.mktemp("small-clap")
    audio = {"patch_embeds_hidden_size": 16, "hidden_size": 128, "depths": [1, 1, 1, 1]}
    audio |= {"num_attention_heads": [1, 2, 2, 4], "projection_dim": 512}
    save_model(ClapModel(ClapConfig(text_config=TINY_TEXT, audio_config=audio, projection_dim=512)), folder)
    save_tokenizer(folder)
    return folder


class TestCLAP:
    def test_sound_is_what_laions_and_fadtks_code_make_of_it(self, clap_folder: Path) -> None:
        """LAION-AI/CLAP at 1fd4c37 (its mel layers, ``get_audio_features`` and HTSAT-tiny) under fadtk's windows.

        ``whole`` was prepared by Stability-AI/stable-audio-metrics ``clap_score.py`` at fd55536.
        """
        recorded, clap = golden("clap"), CLAP(str(clap_folder))
        with entering(clap._model.audio_model) as seen:
            streams = clap([example(voice(2.2, 48000), 48000)])
        assert [len(inputs) for inputs in seen] == [3, 1] and seen[0].shape[1:] == (1, 1001, 64)
        for window, expected in zip((0, -1), torch.from_numpy(recorded["mel"]), strict=True):
            torch.testing.assert_close(seen[0][window, 0, ::7], expected, rtol=0, atol=1e-3)
        np.testing.assert_allclose(streams["features"][0], recorded["embedding"], rtol=0, atol=1e-5)
        whole = clap([example(voice(1.5, 44100, level=0.3), 44100)])["whole"][0]
        np.testing.assert_allclose(whole, recorded["whole"], rtol=0, atol=1e-5)

    def test_windows_start_each_second_and_a_long_sound_is_read_to_its_end(self) -> None:
        ramp = np.linspace(-0.9, 0.9, 12 * 48000 + 5, dtype=np.float32)
        windows = fadtk_windows(ramp)
        assert windows.shape == (13, 480000)
        torch.testing.assert_close(windows[3, :48000], windows[2, 48000:96000])
        assert windows[2, -1] != 0 and not windows[3, 9 * 48000 + 5 :].any()
        whole = whole_windows(Clip(ramp, 48000))
        assert whole.shape == (2, 480000) and whole[1, -1] == whole.max()
        assert float(whole.max()) == pytest.approx(10 ** (-1 / 20), abs=1e-4)

    def test_texts_have_one_row_each_that_does_not_depend_on_the_others(self, small_clap_folder: Path) -> None:
        clap, sound = CLAP(str(small_clap_folder)), voice(0.1, 48000)
        texts = ["a dog", "rain on a roof of tin", "a dog", "a" * 75, "a" * 200]
        rows = clap([example(sound, 48000, text) for text in texts])["text"]
        assert [row.shape for row in rows] == [(1, 512)] * 5
        np.testing.assert_allclose(rows[0], rows[2], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(rows[3], rows[4])  # LAION cuts at 77 tokens, two of which mark the ends
        assert np.abs(rows[0] - rows[1]).max() > 1e-3
        alone = clap([example(sound, 48000, texts[0])])["text"][0]
        np.testing.assert_allclose(alone, rows[0], rtol=0, atol=1e-5)
        assert np.linalg.norm(rows[1]) == pytest.approx(1, abs=1e-5)

    def test_there_is_no_text_stream_unless_every_sample_has_one(self, small_clap_folder: Path) -> None:
        sound = voice(0.1, 48000)
        streams = CLAP(str(small_clap_folder))([example(sound, 48000, "a dog"), example(sound, 48000)])
        assert set(streams) == {"features", "whole"}

    def test_a_model_with_fusion_is_refused(self, small_clap_folder: Path, tmp_path: Path) -> None:
        config = json.loads((small_clap_folder / "config.json").read_text())
        config["audio_config"]["enable_fusion"] = True
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes((small_clap_folder / "model.safetensors").read_bytes())
        with pytest.raises(InputError) as raised:
            CLAP(str(tmp_path))
        one_line(raised, "fusion", "laion/clap-htsat-unfused")

    def test_texts_need_a_tokenizer_and_sounds_do_not(self, small_clap_folder: Path, tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((small_clap_folder / name).read_bytes())
        extractor = CLAP(str(tmp_path))
        assert extractor([example(voice(0.1, 48000), 48000)])["features"][0].shape == (1, 512)
        with pytest.raises(InputError) as raised:
            extractor([example(voice(0.1, 48000), 48000, "a dog")])
        one_line(raised, str(tmp_path), "tokenizer")


@pytest.fixture(scope="module")
def ge2e() -> GE2E:
    """The published weights, out of the wheel."""
    return GE2E()


class TestGE2E:
    def test_published_code_and_weights_give_the_same(self, ge2e: GE2E) -> None:
        """Resemblyzer 0.1.4 itself, run on the same voice: faint at 22,050 Hz, loud and short at 8,000 Hz."""
        recorded = golden("ge2e")
        with entering(ge2e._network) as seen:
            rows = ge2e([example(voice(2.9, 22050, level=0.03), 22050)])["features"][0]
        expected = torch.from_numpy(recorded["mel"])
        torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
        assert rows.shape == (1, 256)
        np.testing.assert_allclose(rows[0], recorded["embedding"], rtol=0, atol=1e-4)
        short = example(voice(0.4, 8000, level=0.9, pitch=210.0), 8000)
        dropped = example(voice(2.7, 16000), 16000)  # of whose third window less than three quarters are sound
        with entering(ge2e._network) as seen:
            rows = np.concatenate(ge2e([short, dropped])["features"])
        assert len(seen[0]) == 1 + 2
        np.testing.assert_allclose(rows, np.stack([recorded["short"], recorded["dropped"]]), rtol=0, atol=1e-4)

    def test_another_voice_lies_further_than_other_words_of_the_same(self, ge2e: GE2E) -> None:
        low, high = (voice(6.0, 16000, pitch=pitch) for pitch in (110.0, 210.0))
        sounds = [low[: 16000 * 3], low[16000 * 3 :], high[: 16000 * 3]]
        rows = np.concatenate(ge2e([example(sound, 16000) for sound in sounds])["features"])
        assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.05
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)

    def test_silence_and_loudness(self, ge2e: GE2E) -> None:
        faint, fainter = (voice(2.0, 16000) * np.float32(gain) for gain in (0.02, 0.01))
        rows = ge2e([example(sound, 16000) for sound in (faint, fainter, np.zeros(16000, np.float32))])["features"]
        np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=1e-4)
        assert all(np.isfinite(row).all() for row in rows)

    def test_a_given_file_must_be_the_published_one(self, ge2e: GE2E, tmp_path: Path) -> None:
        path = tmp_path / "pretrained.pt"
        torch.save({"model_state": {}}, path)
        with pytest.raises(InputError) as raised:
            GE2E(str(path))
        one_line(raised, str(path), "checksum", ge2e.checksum[:16])


def vggish_extractor(request: pytest.FixtureRequest) -> FeatureExtractor:
    return request.getfixturevalue("vggish")


EXTRACTORS: dict[str, Callable[[pytest.FixtureRequest], FeatureExtractor]] = {
    "vggish": vggish_extractor,
    "clap": lambda request: CLAP(str(request.getfixturevalue("small_clap_folder"))),
    "encodec": lambda request: Encodec(str(request.getfixturevalue("encodec_folder"))),
    "wavlm": lambda request: WavLM(str(request.getfixturevalue("wavlm_folder"))),
    "ge2e": lambda request: request.getfixturevalue("ge2e"),
}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_do_not_depend_on_what_else_is_scored(name: str, request: pytest.FixtureRequest) -> None:
    """Alone, together, in another order, with others of the same and of other lengths and rates."""
    extractor = EXTRACTORS[name](request)
    assert extractor.name == name and len(extractor.checksum) == 64
    sounds = [(0.9, 16000, 100.0), (0.5, 22050, 150.0), (0.9, 16000, 200.0)]
    examples = [example(voice(seconds, rate, pitch=pitch), rate) for seconds, rate, pitch in sounds]
    together, turned = extractor(examples), extractor(examples[::-1])
    for stream in set(extractor.streams) - set(extractor.text_streams):
        for number, single in enumerate(examples):
            alone = extractor([single])[stream][0]
            assert alone.dtype == np.float32 and alone.ndim == 2
            scale = np.abs(alone).max()
            np.testing.assert_allclose(together[stream][number], alone, rtol=0, atol=1e-4 * scale)
            np.testing.assert_allclose(turned[stream][2 - number], alone, rtol=0, atol=1e-4 * scale)
        assert np.abs(together[stream][0] - together[stream][2]).max() > 1e-3 * scale


@pytest.mark.parametrize("kind", [Encodec, WavLM, CLAP])
@pytest.mark.parametrize("damage", ["cut", "foreign", "misshapen", "incomplete", "other model", "no config"])
def test_folders_that_hold_something_else(
    kind: type[FeatureExtractor], damage: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = request.getfixturevalue("small_clap_folder" if kind is CLAP else f"{kind.name}_folder")
    for file in source.iterdir():
        (tmp_path / file.name).symlink_to(file)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage in ("cut", "foreign", "misshapen", "incomplete"):
        weights.unlink()
    if damage == "cut":
        weights.write_bytes((source / weights.name).read_bytes()[:-1000])
    if damage == "foreign":
        save_file({"layer.weight": torch.zeros(3)}, weights, metadata={"format": "pt"})
    if damage in ("misshapen", "incomplete"):
        tensors = load_file(source / weights.name)
        first = sorted(name for name in tensors if "encoder" in name)[0]
        tensors[first] = torch.zeros(3, 3)
        if damage == "incomplete":
            del tensors[first]
        save_file(tensors, weights, metadata={"format": "pt"})
    if damage == "other model":
        contents = json.loads(config.read_text())
        config.unlink()
        config.write_text(json.dumps({**contents, "model_type": "bert"}))
    if damage == "no config":
        config.unlink()
    with pytest.raises(InputError) as raised:
        kind(str(tmp_path))
    one_line(raised, kind.name, str(tmp_path))


EXTRACTOR_NAMES = ("vggish", "clap", "encodec", "wavlm", "ge2e")
NAMES = {
    "fad": ("fd", "vggish", None, "lower"),
    "fad-inf": ("fd-inf", "vggish", None, "lower"),
    "clap-score": ("similarity", "clap", "whole", "higher"),
    **{f"fad-{name}": ("fd", name, None, "lower") for name in EXTRACTOR_NAMES},
    **{f"fad-inf-{name}": ("fd-inf", name, None, "lower") for name in EXTRACTOR_NAMES},
    **{f"fad-each-{name}": ("fd-each", name, None, "lower") for name in EXTRACTOR_NAMES},
}


def test_the_fields_names_are_these_scores_and_improve_this_way() -> None:
    adapter = AudioAdapter()
    assert set(adapter.features()) == set(EXTRACTOR_NAMES) and not adapter.metrics()
    assert set(adapter.aliases()) == set(NAMES) and "whole" in CLAP.streams
    for name, expected in NAMES.items():
        found = parse_metric("audio", name)
        assert (found.kind, found.extractor, found.stream, found.better) == expected
