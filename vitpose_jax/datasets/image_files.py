"""Where the image of an annotation is: annotation tools name images in several ways.

COCO            000000000139.jpg
CVAT            train/000000000139.jpg, images/default/139.jpg: the folders of the task
Label Studio    images/3f2a91c4-139.jpg, ..\\upload\\1\\3f2a91c4-139.jpg: folders, and the prefix of an upload
"""

import pathlib
import re

# Label Studio puts eight hexadecimal digits before the name of a file that was uploaded.
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")


def find_image(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of an annotated image.

    Args:
        folder: of the images.
        name: in the annotations, with "/" between folders. The whole name comes first; then its last parts, the longest
            first; then the same without the prefix of an upload.

    Returns:
        The first path that is a file; if none is, the folder and the whole name. Paths outside of the folder are not
        looked for.
    """
    whole = folder / name
    if whole.is_file():
        return whole
    parts = [part for part in pathlib.PurePosixPath(name).parts if part not in ("/", "..")]
    tails = [pathlib.Path(*parts[start:]) for start in range(len(parts))]
    upload = _UPLOAD.fullmatch(parts[-1]) if parts else None
    if upload is not None:
        tails += [tail.with_name(upload[1]) for tail in tails]
    return next((folder / tail for tail in tails if (folder / tail).is_file()), whole)
