import av
import numpy as np
import pytest
from PIL import Image

from emblema.core.errors import BadData
from emblema.data import catalog
from emblema.data.video import by_folder, decode, middles


def write_video(path, greys, size=32):
    """One frame a grey value."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), grey, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def greys_of(frames):
    return [float(np.asarray(f).mean()) for f in frames]


def test_middles():
    assert middles(8, 8) == list(range(8)) and middles(16, 4) == [2, 6, 10, 14] and middles(1, 3) == [0, 0, 0]
    assert middles(3, 8) == [0, 0, 0, 1, 1, 2, 2, 2] and middles(5, 1) == [2]


def test_frames_of_a_video(tmp_path):
    path = write_video(tmp_path / "clip.mp4", range(20, 220, 10))
    found = decode(path, 4)
    assert greys_of(found) == pytest.approx([20 + 10 * i for i in middles(20, 4)], abs=4)
    assert all(f.mode == "RGB" and f.size == (32, 32) for f in found)
    short = write_video(tmp_path / "short.avi", (50, 150))
    assert greys_of(decode(short, 4)) == pytest.approx([50, 50, 150, 150], abs=4)


def test_what_is_no_video_teaches(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(BadData, match=r"text\.mp4 cannot be decoded as a video"):
        decode(tmp_path / "text.mp4", 4)
    with pytest.raises(BadData, match="no video file"):
        decode(tmp_path / "none.mp4", 4)


def test_folders_of_videos(tmp_path):
    for split in ("train", "test"):
        for action, grey in (("running", 40), ("jumping", 200)):
            (tmp_path / split / action).mkdir(parents=True)
            write_video(tmp_path / split / action / "a.mp4", [grey] * 3)
    assert catalog.sniff(tmp_path)[0] == "video-folder"
    data = catalog.load(tmp_path)
    assert data.class_names == ["jumping", "running"] and data.splits == {"train": 2, "test": 2}
    assert data.split("test").keys == ["test/jumping/a.mp4", "test/running/a.mp4"]


def test_folders_of_frames_become_clips(tmp_path):
    for action in ("running", "jumping"):
        for clip, count in (("one", 11), ("two", 2)):
            (tmp_path / action / clip).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (10 * i,) * 3).save(tmp_path / action / clip / f"frame{i}.png")
    pictures = catalog.load(tmp_path)
    assert len(pictures) == 26
    clips = by_folder(pictures)
    assert clips.keys == ["jumping/one", "jumping/two", "running/one", "running/two"]
    assert clips.labels == [0, 0, 1, 1] and [len(c.image) for c in clips] == [11, 2, 11, 2]
    assert [f.name for f in clips[0].image] == [f"frame{i}.png" for i in range(11)]  # 9 before 10


def test_class_folders_of_pictures_stay_pictures(tmp_path):
    for action in ("running", "jumping"):
        (tmp_path / "test" / action).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "test" / action / "1.png")
    data = catalog.load(tmp_path)
    assert by_folder(data) is data
