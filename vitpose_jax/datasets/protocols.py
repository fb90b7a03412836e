"""How each dataset is evaluated: one record each, from the configurations of the original ViTPose repository.

All share the flip test, boxes padded by 1.25, the score of a pose (box score times the mean of the keypoint scores
above 0.2) and the OKS-NMS at 0.9. The records hold what differs.
"""

import dataclasses
from typing import Literal

from vitpose_jax.skeletons import AIC, AP10K, APT36K, COCO, CROWDPOSE, MPII, WHOLEBODY, Skeleton, canonical_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one dataset is read and evaluated.

    Attributes:
        name: of the dataset.
        skeleton: of its annotations; the skeleton's name selects the model's head (OCHuman uses COCO's).
        decode: how heatmaps become points, see pipeline/postprocess.py; "quarter" implies the crop without UDP and
            the shift of the mirrored heatmaps.
        boxes: the published figures use a detector's boxes or the annotated ones.
        metric: "coco", "wholebody" and "crowdpose" are average precisions, "pckh" is MPII's.
        use_area: OKS uses the annotated area; False: 0.53 times the area of the box.
        category: `category_id` of detections and results; None: each annotation has its own, as for animals.
        format: of the annotation file; see dataset.py.
        stretch: the region of a box is stretched to the crop's aspect.
    """

    name: str
    skeleton: Skeleton
    decode: Literal["udp", "quarter"]
    boxes: Literal["detections", "annotations"]
    metric: Literal["coco", "wholebody", "crowdpose", "pckh"] = "coco"
    use_area: bool = True
    category: int | None = 1
    format: Literal["coco", "mpii"] = "coco"
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
            format="mpii",
            stretch=True,
        ),
        Protocol(name="ap10k", skeleton=AP10K, decode="quarter", boxes="annotations", category=None),
        Protocol(name="apt36k", skeleton=APT36K, decode="quarter", boxes="annotations", category=None),
    )
}


def own_protocol(skeleton: Skeleton) -> Protocol:
    """How a dataset with a skeleton of one's own is evaluated: as COCO, in annotated boxes of any category."""
    return Protocol(name=skeleton.name, skeleton=skeleton, decode="udp", boxes="annotations", category=None)


def get_protocol(name: str) -> Protocol:
    """The protocol of a dataset; case, "-" and "_" do not matter.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    key = canonical_name(name)
    if key not in PROTOCOLS:
        raise ValueError(f"no dataset named {name!r} to evaluate; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[key]
