"""Image models of timm on videos: frame by frame, or vision transformers over space and time."""

from vimpac_ext.backbones.timm.frames import TimmFrames
from vimpac_ext.backbones.timm.space_time import TimmSpaceTime
from vimpac_ext.backbones.timm.tokens import TimmTokens

__all__ = ["TimmFrames", "TimmSpaceTime", "TimmTokens"]
