"""The clips that a user names: video files, folders of frames, folders of either, and patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from vpeft.data.clips.clip import ClipFile, ClipFrames, ClipPicture, frame_folders, frames_in
from vpeft.data.clips.video_file import is_video_name
from vpeft.data.images import files_below, readable
from vpeft.data.problems import DataError


def find_clips(patterns: Iterable[str | Path]) -> dict[str, ClipPicture]:
    """The clips that files, folders (searched through) and glob patterns name, by path, sorted within each.

    A folder with images directly in it is one clip. A file named as such is kept whatever its suffix.

    Raises:
        DataError: a pattern finds nothing.
    """
    found: dict[str, ClipPicture] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        named = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        clips = {readable(str(one)): clip for start in named for one, clip in _below(start, alone=start == path)}
        if not clips:
            what = "holds no video and no frames" if path.is_dir() else "does not exist, nor does it match a video"
            raise DataError(
                f"{pattern} {what}. Give video files, folders of frames, or patterns such as 'clips/*.mp4'."
            )
        found.update(clips)
    return found


def _below(path: Path, *, alone: bool) -> list[tuple[Path, ClipPicture]]:
    if path.is_file():
        return [(path, ClipFile(path))] if alone or is_video_name(path) else []
    videos = [one for one in files_below(path).files if is_video_name(one)]
    if videos:
        return [(one, ClipFile(one)) for one in videos]
    return [(one, ClipFrames(one)) for one in frame_folders(path) if frames_in(one)]
