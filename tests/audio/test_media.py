"""What PyAV reads, and what is said where it is not installed."""

from __future__ import annotations

import fractions
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from clicks import clicking, clicks, coded, kinds

from maestro_jax.audio.containers import media
from maestro_jax.audio.reading import read_recording
from maestro_jax.errors import UserError

SECONDS, RATE = 4, 48_000
SPEECH = clicking(SECONDS, RATE)
FILES = {
    "a.m4a": "aac",
    "lossless.m4a": "alac",
    "a.mp4": "aac",
    "a.mov": "aac",
    "a.webm": "libopus",
    "a.mka": "flac",
    "a.mkv": "libopus",
    "a.aac": "aac",
    "a.ts": "aac",
    "a.avi": "libmp3lame",
    "a.ac3": "ac3",
    # Not read by PyAV, but written.
    "mp3_within.wav": "libmp3lame",
    "adpcm.wav": "adpcm_ms",
    "a.flv": "aac",
}


def write(path: Path, codec: str, samples: np.ndarray = SPEECH, tracks: int = 1, **options: str):
    """Writes `[samples]` or `[samples, 2]` at 48 kHz."""
    av = pytest.importorskip("av")
    layout = "mono" if samples.ndim == 1 else "stereo"
    wide = samples.reshape(len(samples), -1).astype(np.float32)
    with av.open(str(path), "w", options=options) as container:
        streams = [container.add_stream(codec, rate=RATE, layout=layout) for _ in range(tracks)]
        for begin in range(0, len(wide), 960):
            block = np.ascontiguousarray(wide[begin : begin + 960].T)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = RATE, fractions.Fraction(1, RATE)
            for stream in streams:
                frame.pts = begin
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", FILES)
def test_all_of_a_file(tmp_path, name):
    path = write(tmp_path / name, FILES[name])
    found = read_recording(path)
    # AAC ends with a whole frame, and in raw frames begins with its delay.
    assert SECONDS <= len(found.samples) / 16_000 < SECONDS + 0.06
    assert clicks(found.samples) == SECONDS and not found.findings
    span = read_recording(path, [(1.0, 2.5)])
    # Away from the edges, where a decoder that seeks knows nothing of what was before.
    np.testing.assert_allclose(span.samples[400:-400], found.samples[16_400:39_600], atol=2 / 32768)


@pytest.mark.parametrize("name", ["a.m4a", "a.webm", "a.mka", "a.aac"])
def test_a_file_behind_another(tmp_path, name):
    write(tmp_path / name, FILES[name])
    content = (tmp_path / name).read_bytes()
    sound = {second: coded(SPEECH, second, RATE) for second in ("WAV/PCM_16", "MP3", "FLAC")}
    pairs = [content + sound["WAV/PCM_16"], content + sound["MP3"], sound["MP3"] + content]
    pairs += [sound["WAV/PCM_16"] + content, sound["FLAC"] + content]
    # AAC frames may follow one another.
    pairs += [] if name == "a.aac" else [content + content]
    for pair in pairs:
        (tmp_path / "both").write_bytes(pair)
        found = read_recording(tmp_path / "both")
        assert clicks(found.samples) == 2 * SECONDS and kinds(found) == ["header mismatch"]


def test_a_cut_file(tmp_path):
    cut = {
        "a.webm": write(tmp_path / "a.webm", "libopus"),
        "a.mka": write(tmp_path / "a.mka", "flac"),
        "a.avi": write(tmp_path / "a.avi", "libmp3lame"),
        "a.m4a": write(tmp_path / "a.m4a", "aac", movflags="faststart"),
    }
    for path in cut.values():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 6 // 10])
        found = read_recording(path)
        assert "cut short" in kinds(found)
        assert 1.5 < len(found.samples) / 16_000 < 3 and clicks(found.samples) == 2
    # The index of an mp4 file is at its end.
    path = write(tmp_path / "end.mp4", "aac")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"end.mp4 cannot be read as audio \(.*a damaged mp4 file"):
        read_recording(path)


def test_tracks_and_channels(tmp_path):
    found = read_recording(write(tmp_path / "two.mka", "flac", tracks=2))
    assert kinds(found) == ["several tracks"] and clicks(found.samples) == SECONDS
    many = coded(np.stack([SPEECH] * 12, axis=1), "WAV", RATE)
    (tmp_path / "many.wav").write_bytes(many)
    samples, rate, _ = media.decode(str(tmp_path / "many.wav"))
    assert (rate, samples.shape) == (RATE, (len(SPEECH), 12))
    np.testing.assert_allclose(samples[:, 11], SPEECH, atol=1.01 / 32768)
    inverted = np.stack([SPEECH, -SPEECH], axis=1)
    found = read_recording(write(tmp_path / "inverted.m4a", "aac", inverted))
    assert kinds(found) == ["cancelled channels"] and clicks(found.samples) == SECONDS


@pytest.mark.parametrize(
    "shift", [lambda n: n // 50 * 3, lambda n: 4000 * (n > 90), lambda n: -(n // 9)]
)
def test_recordings_of_browsers_that_were_put_into_ogg(tmp_path, shift):
    """Packets of Opus with the time stamps of a webm file, which are milliseconds."""
    av = pytest.importorskip("av")
    webm = write(tmp_path / "a.webm", "libopus")
    with av.open(str(webm)) as source, av.open(str(tmp_path / "a.ogg"), "w") as target:
        track = source.streams.audio[0]
        stream = target.add_stream_from_template(track)
        for number, packet in enumerate(source.demux(track)):
            if packet.pts is not None:
                packet.pts = packet.dts = packet.pts + shift(number)
                packet.stream = stream
                target.mux(packet)
    found = read_recording(tmp_path / "a.ogg")
    assert len(found.samples) / 16_000 == pytest.approx(SECONDS, abs=0.05)
    assert clicks(found.samples) == SECONDS and not found.findings


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    path = write(tmp_path / "talk.m4a", "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError) as caught:
        read_recording(path)
    assert str(caught.value) == (
        f"{path} is mp4, which takes the extra `media`; pip install maestro_jax[media], or convert "
        "it to wav, flac, ogg, opus or mp3."
    )


@pytest.mark.parametrize("installed", [True, False])
def test_no_remedy_names_what_the_file_is(tmp_path, monkeypatch, installed):
    if not installed:
        monkeypatch.setitem(sys.modules, "av", None)
    broken = {
        "a.wav": b"RIFF\x10\0\0\0WAVEfmt \x04\0\0\0\1\0\1\0",
        "b.wav": bytes(range(256)) * 9,
        "c.flac": b"fLaC\0\0\0\x22" + b"\xff\xfe" * 400,
        "d.ogg": b"OggS\0\2" + bytes(400),
        "e.opus": b"OggS\0\2" + bytes(400),
        "f.mp3": b"ID3\3\0\0\0\0\0\0" + bytes(500),
    }
    for name, content in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as audio") as caught:
            read_recording(path)
        message = str(caught.value)
        assert message.count(str(path)) == 1 and "\n" not in message
        # "convert it to wav, flac, ogg, opus or mp3", or "export it as".
        formats = set(re.split(r", | or ", re.split(" it to | it as ", message)[1].rstrip(".")))
        assert formats >= {"flac", "mp3", "wav"} - {path.suffix[1:]}
        assert path.suffix[1:] not in formats


def test_text_is_called_text(tmp_path):
    page = tmp_path / "a.mp3"
    page.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20)
    with pytest.raises(UserError, match=r"it is text: '<!DOCTYPE html>"):
        read_recording(page)
