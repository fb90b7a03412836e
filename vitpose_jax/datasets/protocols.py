"""How each data set is evaluated: one record each, from the configurations of the original.

What they share: the flip test, boxes padded by 1.25, the score of a pose (box score times the mean of the keypoint
scores above 0.2) and the OKS-NMS at 0.9. Where they differ stands below.
"""

import dataclasses
from typing import Literal

from vitpose_jax.skeletons import AIC, AP10K, APT36K, COCO, CROWDPOSE, MPII, WHOLEBODY, Skeleton, canonical_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one data set is read and evaluated.

    Attributes:
        name: of the data set.
        skeleton: of its annotations; its name is the model's data set (OCHuman is COCO's).
        decode: how heatmaps become points, see postprocess.py; "quarter" implies the crop without UDP and the shift
            of the mirrored heatmaps.
        boxes: those of the published figures: a detector's or the annotated ones.
        metric: "coco", "wholebody" and "crowdpose" are average precisions, "pckh" is MPII's.
        use_area: whether OKS takes the annotated area, or else 0.53 times that of the box.
        category: `category_id` of detections and results; None for that of each annotation, as for animals.
        layout: of the annotation file; see datasets.py.
        stretch: whether the region of a box is stretched to the crop's aspect.
    """

    name: str
    skeleton: Skeleton
    decode: Literal["udp", "quarter"]
    boxes: Literal["detections", "annotations"]
    metric: Literal["coco", "wholebody", "crowdpose", "pckh"] = "coco"
    use_area: bool = True
    category: int | None = 1
    layout: Literal["coco", "mpii"] = "coco"
    stretch: bool = False


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="coco", skeleton=COCO, decode="udp", boxes="detections"),
        Protocol(name="wholebody", skeleton=WHOLEBODY, decode="quarter", boxes="detections", metric="wholebody"),
        Protocol(name="ochuman", skeleton=COCO, decode="quarter", boxes="annotations"),
        Protocol(
            name="crowdpose",
            skeleton=CROWDPOSE,
            decode="quarter",
            boxes="detections",
            metric="crowdpose",
            use_area=False,
        ),
        Protocol(name="aic", skeleton=AIC, decode="quarter", boxes="annotations", use_area=False),
        Protocol(
            name="mpii",
            skeleton=MPII,
            decode="udp",
            boxes="annotations",
            metric="pckh",
            use_area=False,
            layout="mpii",
            stretch=True,
        ),
        Protocol(name="ap10k", skeleton=AP10K, decode="quarter", boxes="annotations", category=None),
        Protocol(name="apt36k", skeleton=APT36K, decode="quarter", boxes="annotations", category=None),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a data set; case, "-" and "_" do not matter.

    Raises:
        ValueError: for a name that is not known, listing those that are.
    """
    key = canonical_name(name)
    if key not in PROTOCOLS:
        raise ValueError(f"no data set named {name!r} to evaluate; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[key]
