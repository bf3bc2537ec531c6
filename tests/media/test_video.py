"""The frames that are kept of a video, and the errors for files that are malformed or hostile."""

import io
import random
import struct
import time
from typing import Any

import av
import numpy as np
import pytest
from filmed import STEP, animation, film, numbers, url

from serve.errors import BadRequest, ServeError, TooLarge
from serve.media import video_decoder
from serve.media.video import Video, decode_video, video_from_url
from serve.media.video_caps import CAPS, Caps, evenly, sniff
from serve.tasks.request import Request


def caps(**changed: Any) -> Caps:
    return Caps(**{**vars(CAPS), **changed})


def patched(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """An MP4 with other bytes at an offset into a box's body."""
    at = data.index(box) + 4 + offset
    return data[:at] + value + data[at + len(value) :]


def refusal(data: bytes, limits: Caps = CAPS) -> ServeError:
    with pytest.raises(ServeError) as caught:
        decode_video(data, "video", limits)
    assert caught.value.param == "video"
    for leak in ("/", "0x", "errno", "ffmpeg", "moov"):
        assert leak not in caught.value.message.lower()
    return caught.value


# Which frames


@pytest.mark.parametrize(("total", "count"), [(9, 3), (32, 8), (3, 8), (5, 1), (100_000, 32), (1, 32)])
def test_evenly_is_numpys_linspace(total: int, count: int) -> None:
    assert evenly(total, count) == np.linspace(0, total - 1, min(total, count)).round(6).astype(int).tolist()


def test_a_sample_is_evenly_spaced_and_keeps_its_times() -> None:
    frames = np.arange(32, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(9, 2).repeat(3, 3)
    whole = Video(frames, tuple(at / 10 for at in range(32)), 3.2)
    sampled = whole.sample(8)
    assert sampled.frames[:, 0, 0, 0].tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    assert sampled.times == (0.0, 0.4, 0.8, 1.3, 1.7, 2.2, 2.6, 3.1)
    assert (sampled.seconds, sampled.width, sampled.height) == (3.2, 9, 8)
    assert whole.sample(32) is whole.sample(99) is whole


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "mpeg4", "libvpx-vp9"])
def test_every_codec_gives_the_even_frames_with_their_times(codec: str) -> None:
    seen = decode_video(film(45, codec))
    assert seen.frames.shape == (32, 48, 64, 3) and seen.frames.dtype == np.uint8
    assert numbers(seen.frames) == evenly(45, 32)
    assert seen.times == pytest.approx([at / 10 for at in evenly(45, 32)], abs=0.002)
    assert seen.seconds == pytest.approx(4.5, abs=0.11)
    assert np.abs(seen.frames[:, 24, 4].astype(int) - (254, 0, 0)).max() < 30  # red is red


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_is_a_video(kind: str) -> None:
    seen = decode_video(animation(45, kind))
    assert numbers(seen.frames) == evenly(45, 32)
    assert seen.times[:3] == (0.0, 0.04, 0.08) and seen.seconds == pytest.approx(1.8)


def test_animation_without_times_gets_the_times_of_browsers() -> None:
    assert decode_video(animation(5, duration=0)).seconds == 0.5


def test_a_transparent_animation_is_seen_on_white() -> None:
    import PIL.Image

    file = io.BytesIO()
    clear, dot = PIL.Image.new("RGBA", (20, 20), (0, 0, 0, 0)), PIL.Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    dot.paste((255, 0, 0, 255), (0, 0, 10, 10))
    clear.save(file, "WEBP", save_all=True, append_images=[dot], lossless=True)
    seen = decode_video(file.getvalue()).frames
    assert (seen[0] == 255).all() and seen[1, 5, 5].tolist() == [255, 0, 0] and (seen[1, 15] == 255).all()


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33])
def test_all_frames_of_a_short_video_are_kept(count: int) -> None:
    seen = decode_video(film(count))
    assert numbers(seen.frames) == evenly(count, 32) and seen.times[0] == 0.0
    assert seen.first_frame().pixels.tolist() == seen.frames[0].tolist()


@pytest.mark.parametrize(
    ("matrix", "red"),
    [((1, 0, 0, 1), "left"), ((0, 1, -1, 0), "top"), ((-1, 0, 0, -1), "right"), ((0, -1, 1, 0), "bottom")],
)
def test_rotated_video_of_a_phone_becomes_upright(matrix: tuple[int, ...], red: str) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    turned = patched(film(), b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    frame = decode_video(turned).frames[-1].astype(int)
    assert frame.shape[:2] == ((48, 64) if red in ("left", "right") else (64, 48))
    edges = {"left": frame[:, 4], "top": frame[4], "right": frame[:, -5], "bottom": frame[-5]}
    redness = {name: (edge[:, 0] - edge[:, 1]).mean() for name, edge in edges.items()}
    assert max(redness, key=lambda name: redness[name]) == red


@pytest.mark.slow
def test_large_frames_are_scaled_down_in_proportion() -> None:
    seen = decode_video(film(3, width=1280, height=720))
    assert (seen.width, seen.height) == (682, 384) and seen.width * seen.height <= CAPS.pixels
    assert len(seen.frames) == 3
    assert decode_video(animation(2, width=800, height=600)).frames.shape[1:] == (443, 591, 3)


def test_video_too_long_to_decode_gives_key_frames() -> None:
    assert numbers(decode_video(film(60), caps=caps(frames=4)).frames) == [0, 19, 39, 59]
    file = io.BytesIO()  # a key frame every ten
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream(
            "libx264", rate=10, options={"g": "10", "keyint_min": "10", "sc_threshold": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for at in range(50):
            grey = np.full((48, 64, 3), at * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    seen = decode_video(file.getvalue(), caps=caps(frames=3, work=1000))
    assert numbers(seen.frames) == [0, 20, 40] and seen.times == (0.0, 2.0, 4.0) and seen.seconds == 5.0


def test_only_kept_frames_of_a_video_of_key_frames_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    file, frames = io.BytesIO(), 60
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"g": "1", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for at in range(frames):
            grey = np.full((48, 64, 3), at * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    fed = list[int | None]()

    def counted(packet: Any) -> Any:
        fed.append(packet.pts)
        return packet.decode()

    monkeypatch.setattr(video_decoder, "_decoded", counted)
    written = list[bytes]()
    reply = video_decoder.decode_frames(file.getvalue(), "mp4", caps(work=1000, frames=8), written.append)
    kept = evenly(frames, 8)
    assert reply["times"] == pytest.approx([at / 10 for at in kept], abs=0.01)
    assert numbers([np.frombuffer(frame, np.uint8).reshape(48, 64, 3) for frame in written]) == kept
    assert len([pts for pts in fed if pts is not None]) == 8


# What is refused


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"hello" * 100, "not an MP4"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an MP4"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not an MP4"),
        (b"\0\0\0\x1cftypavif" + bytes(100), "not an MP4"),
        (b"\0\0\0\x20ftypisom" + random.Random(1).randbytes(20_000), "damaged"),
        (b"\x1aE\xdf\xa3" + random.Random(1).randbytes(20_000), "damaged"),
        (b"GIF89a" + random.Random(1).randbytes(2_000), ""),
        (b"RIFF\xff\xff\0\0WEBP" + random.Random(1).randbytes(2_000), "damaged"),
    ],
    ids=["empty", "text", "png", "playlist", "avif", "noise in mp4", "noise in webm", "noise in gif", "noise in webp"],
)
def test_file_of_another_format_is_refused(data: bytes, says: str) -> None:
    error = refusal(data)
    assert error.code in ("invalid_video", "video_too_large") and says in error.message


def test_a_video_cut_short_is_refused() -> None:
    data = film(60)
    assert "cut short" in refusal(data[: len(data) // 2]).message  # its index stood at the end
    at, mdat = data.index(b"moov") - 4, data.index(b"mdat") - 4
    head, moved, body = data[:mdat], bytearray(data[at:]), data[mdat:at]
    offsets = moved.index(b"stco") + 12  # the index moved to the front, as for the web
    for i in range(struct.unpack(">I", moved[offsets - 4 : offsets])[0]):
        where = slice(offsets + 4 * i, offsets + 4 * i + 4)
        moved[where] = struct.pack(">I", struct.unpack(">I", moved[where])[0] + len(moved))
    assert numbers(decode_video(head + bytes(moved) + body).frames) == evenly(60, 32)
    assert "cut short" in refusal((head + bytes(moved) + body)[:-200]).message


@pytest.mark.slow
def test_truncated_recording_gives_its_readable_frames() -> None:
    data = film(60, "libvpx-vp9")
    seen = decode_video(data[: len(data) * 2 // 3])
    assert 0 < len(seen.frames) <= 32 and seen.seconds < 6 and numbers(seen.frames)[0] == 0


def test_file_without_a_video_stream_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="flt", layout="mono")
        silence.rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    assert "no moving pictures" in refusal(file.getvalue()).message


def test_a_video_beyond_a_cap_is_refused() -> None:
    big = refusal(film(60), caps(bytes=1000))
    assert isinstance(big, TooLarge) and big.code == "video_too_large"
    assert "(64 x 48)" in refusal(film(), caps(area=1000)).message
    assert "(64 x 48)" in refusal(animation(), caps(side=60)).message
    assert "at least 8 pixels" in refusal(animation(width=32, height=4)).message
    for data in (film(60), animation(60)):
        assert "more than 50 frames" in refusal(data, caps(total_frames=50)).message


# Hostile files


def test_gif_header_is_checked_before_decoding() -> None:
    data = bytearray(animation(2))
    data[6:10] = struct.pack("<HH", 65535, 65535)
    assert isinstance(refusal(bytes(data)), TooLarge)


@pytest.mark.parametrize("samples", [2**31 - 1, 170_000_000, 60_000_000])
def test_false_frame_count_costs_neither_time_nor_memory(samples: int) -> None:
    lie = patched(film(), b"stsz", 4, struct.pack(">II", 1, samples))
    lie = patched(lie, b"stts", 4, struct.pack(">III", 1, samples, 512))
    lie = patched(lie, b"stsc", 8, struct.pack(">III", 1, samples, 1))
    assert "damaged" in refusal(lie, caps(memory=2**30)).message


@pytest.mark.parametrize("seconds", [0, 2**32 - 16])
def test_false_length_is_ignored(seconds: int) -> None:
    lie = struct.pack(">I", seconds)
    seen = decode_video(patched(patched(film(), b"mvhd", 16, lie), b"mdhd", 16, lie))
    assert numbers(seen.frames) == list(range(12)) and seen.seconds == pytest.approx(1.2)


def test_false_size_is_refused_or_ignored() -> None:
    seen = decode_video(patched(film(), b"avc1", 24, struct.pack(">HH", 65535, 65535)))
    assert seen.frames.shape == (12, 48, 64, 3)


@pytest.mark.slow
def test_video_over_its_time_limit_is_refused() -> None:
    began = time.monotonic()
    error = refusal(film(100, width=640, height=480), caps(seconds=0.05))
    assert isinstance(error, TooLarge) and "shorter" in error.message
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_video_over_its_memory_limit_is_refused() -> None:
    data = film(40, width=1280, height=720)
    for megabytes in (8, 16, 32):
        error = refusal(data, caps(memory=megabytes * 2**20))
        assert isinstance(error, TooLarge) and "memory" in error.message


@pytest.mark.slow
def test_random_damage_is_seen_or_refused() -> None:
    dice = random.Random(5)
    for at in range(12):
        data = bytearray((film(20), film(20, "libvpx-vp9"), animation(20))[at % 3])
        for _ in range(dice.choice((1, 5, 50))):
            data[dice.randrange(12, len(data))] = dice.randrange(256)
        try:
            seen = decode_video(bytes(data))
        except ServeError as error:
            assert error.status in (400, 413) and error.param == "video"
        else:
            assert 1 <= len(seen.frames) == len(seen.times) <= 32


# On the wire


def test_data_url_gives_an_undecoded_video() -> None:
    data = film()
    given = video_from_url(url(data))
    assert given.file == data and not given.decoded
    assert sniff(film()) == "mp4" and sniff(film(12, "libvpx-vp9")) == "webm" and sniff(animation()) == "gif"


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ("https://example.org/cat.mp4", "invalid_video_url", "Videos by URL are not fetched"),
        ("cat.mp4", "invalid_video_url", "must be a data URL: data:video/mp4;base64,"),
        ("data:video/mp4;base64,!!!", "invalid_video_url", "not valid base64"),
        ("data:video/mp4;base64,", "invalid_video", "empty"),
        (7, "invalid_type", "data URL"),
    ],
)
def test_malformed_data_url_is_refused(given: Any, code: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Request.model_validate({"video": given})
    assert (caught.value.param, caught.value.code) == ("video", code) and says in caught.value.message


def test_a_request_is_about_an_image_or_a_video() -> None:
    request = Request(video=decode_video(film()))  # type: ignore[call-arg]
    assert (request.image.width, request.image.height) == (64, 48) and request.video is not None
    assert Request(image=request.image).video is None
    with pytest.raises(BadRequest, match="not both") as both:
        Request(image=request.image, video=request.video)
    assert both.value.param == "video"
    for given in ({}, {"video": None}):
        with pytest.raises(BadRequest, match="image is required") as neither:
            Request.model_validate(given)
        assert (neither.value.param, neither.value.code) == ("image", "missing_required_parameter")
    given = Request.model_validate({"image": None, "video": film()}).video
    assert given is not None and not given.decoded
